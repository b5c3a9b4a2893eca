"""A push: one commit with all that users need, and nothing private to this machine."""

import json
import re

import pytest
import torch
import yaml
from loopback_hub.client import ClientError
from loopback_hub.transfers import contents, energies, pull, push
from run_records import METRICS, OOD, evaluation

WARNINGS = """
import hf_ebm.hub.upload as push, logging
result = []
handler = logging.Handler()
handler.emit = lambda record: result.append(record.getMessage())
push.logger.addHandler(handler)
try:
    push.push_folder(folder, repo, **options)
finally:
    push.logger.removeHandler(handler)
"""


def test_a_push_is_one_commit_of_everything_readers_need(hub, client, folder, repo):
    before = contents(folder)
    push(client, folder, repo)
    repository = hub.repositories[repo]
    assert len(repository.history["main"]) == 2  # the repository's own first commit, and ours
    files = repository.files()
    assert files.keys() - {".gitattributes"} == {
        "README.md", "model_index.json", "pipeline.py", "settings.yaml", "train_summary.json", "metrics.json",
        "metrics.jsonl", "samples.png", "scheduler/scheduler_config.json", "energy_model/config.json",
        "energy_model/model.safetensors", "energy_model/preprocessor_config.json", "generator_model/config.json",
        "generator_model/diffusion_pytorch_model.safetensors", "inference_model/config.json",
        "inference_model/diffusion_pytorch_model.safetensors", "energy_model/hf_ebm.models.unet_energy.py",
        "generator_model/hf_ebm.models.unet_generator.py", "inference_model/hf_ebm.models.pair_inference.py",
        "scheduler/hf_ebm.schedulers.scheduling_ddaebm.py", "image_processor/preprocessor_config.json",
        "image_processor/hf_ebm.data.image_processor.py",
    }  # fmt: skip
    for name, data in files.items():
        assert str(folder.parent).encode() not in data, f"{name} names a folder of this machine"
        if name in before and name not in ("README.md", "settings.yaml"):
            assert data == before[name]
    assert yaml.safe_load(files["settings.yaml"]) == {
        "dataset": "digits",
        "batch_size": 8,
        "seed": 0,
        "max_grad_norm": None,
        "license": "mit",
    }
    assert f'from_pretrained("{repo}")' in files["README.md"].decode()
    assert contents(folder) == before


def test_a_push_again_sends_what_changed_and_refreshes_the_metrics(hub, client, folder, repo):
    push(client, folder, repo)
    hub.reset()
    push(client, folder, repo)
    assert len(hub.repositories[repo].history["main"]) == 2 and not hub.count("PUT|/commit/")
    before = hub.repositories[repo].files()
    (folder / "metrics.json").write_text(json.dumps({**METRICS, "auroc": {"noise": 0.5}}))
    push(client, folder, repo)
    after = hub.repositories[repo].files()
    assert {name for name in after if after[name] != before.get(name)} == {"README.md", "metrics.json"}
    assert "value: 0.5" in after["README.md"].decode() and "value: 0.99" not in after["README.md"].decode()
    assert not hub.count("PUT")


def test_a_card_of_ones_own_is_kept_and_its_metrics_are_refreshed(hub, client, folder, repo):
    card = (folder / "README.md").read_text()
    marker = re.search("<!-- .* -->\n", card).group()
    (folder / "README.md").write_text(card.replace(marker, "").replace("## Use", "## My own words"))
    (folder / "metrics.json").write_text(json.dumps({"auroc": {"noise": 0.25}}))
    push(client, folder, repo)
    pushed = hub.repositories[repo].files()["README.md"].decode()
    assert "## My own words" in pushed and "value: 0.25" in pushed and "value: 0.99" not in pushed


def test_pipelines_push_themselves(hub, client, folder, repo):
    """With the facts of the folder they came from; a pipeline that knows nothing leaves the card that is there."""
    client(
        "import hf_ebm; hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo)", folder=str(folder), repo=repo
    )
    first = hub.repositories[repo].files()
    assert first["samples.png"] == (folder / "samples.png").read_bytes() and b"value: 0.99" in first["README.md"]
    code = """
import torch, hf_ebm
pipe = hf_ebm.DDAEBMPipeline.from_pretrained(repo, torch_dtype=torch.float16)
pipe.push_to_hub(repo, variant="fp16", commit_message="half")
pipe.save_pretrained(target, push_to_hub=True, repo_id=repo + "-saved", private=True)
"""
    client(code, repo=repo, target=str(folder.parent / "saved"))
    second = hub.repositories[repo].files()
    assert second["README.md"] == first["README.md"]
    new = {name for name in second if name not in first}
    assert new == {
        "energy_model/model.fp16.safetensors",
        "generator_model/diffusion_pytorch_model.fp16.safetensors",
        "inference_model/diffusion_pytorch_model.fp16.safetensors",
    }
    assert hub.repositories[repo].commits[hub.repositories[repo].branches["main"]].message == "half"
    saved = hub.repositories[repo + "-saved"]
    assert saved.private and len(saved.history["main"]) == 2 and b"Use" in saved.files()["README.md"]


def test_a_subfolder_holds_a_pipeline_of_its_own(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    before = hub.repositories[repo].files()
    code = """
import hf_ebm
pipe = hf_ebm.DDAEBMPipeline.from_pretrained(folder)
for options in ({"max_shard_size": "50KB"}, {}):
    pipe.energy_model.save_pretrained(folder + "/energy_model", **options)
    pipe.push_to_hub(repo, safe_serialization=True, subfolder="small/ema")
"""
    client(code, folder=str(folder), repo=repo)
    after = hub.repositories[repo].files()
    assert {path: after[path] for path in before} == before
    new = {path.removeprefix("small/ema/") for path in after if path not in before}
    assert new == set(before) - {"README.md", ".gitattributes"}
    assert pull(client, repo, subfolder="small/ema", cache_dir=tmp_path / "c") == energies(tiny_pipeline)
    with pytest.raises(ClientError, match="subfolder must lie inside the repository"):
        client(
            "import hf_ebm; hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo, subfolder='../x')",
            folder=str(folder),
            repo=repo,
        )


def test_no_path_of_this_machine_is_pushed(hub, client, folder, repo):
    """Neither from what evaluate and eval-ood wrote, nor from where the pipeline and its components were loaded."""
    place = folder.parent / "secret-place"
    place.mkdir()
    folder = folder.rename(place / "run")
    (folder / "evaluate.json").write_text(json.dumps(evaluation() | {"models": [f"{folder}/energy_model"]}))
    ood = json.loads(json.dumps(OOD))
    for rows in ood["metrics"].values():
        rows[str(place)] = rows.pop("noise")
    ood["protocol"]["model"] = str(folder)
    (folder / "ood.json").write_text(json.dumps(ood))
    (folder / ".ood.123.tmp.json").write_text("{")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_name_or_path": str(folder)}))
    push(client, folder, repo)
    code = "import hf_ebm; hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo + '-again')"
    client(code, folder=str(folder), repo=repo)
    for name in (repo, f"{repo}-again"):
        files = hub.repositories[name].files()
        assert "ood.json" in files and ".ood.123.tmp.json" not in files
        for path, data in files.items():
            assert str(place).encode() not in data and b"_name_or_path" not in data, path


FOREIGN = ("patient_scan.png", "notes.json", "scores.jsonl", "secrets.env", "samples/x.png", "energy_model/notes.json")


def add_foreign_files(folder):
    for name in FOREIGN:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"path": "/home/somebody/x"}\n')
    (folder / "energy_model" / "optimizer.safetensors").write_bytes(b"")
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.50}\n{"step": 2, "from": "/home/somebody/runs/x", "why": "no /home/somebody/y.png"}\n'
    )
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(re.sub("<!-- .* -->\n", "", card) + "\nSee /home/somebody/z or /bin/ls.\n")


def check_nothing_foreign(files):
    assert not {path for path in files if path in FOREIGN or path.endswith("optimizer.safetensors")}
    for path, data in files.items():
        assert b"/home/somebody" not in data, path
    assert files["metrics.jsonl"] == (b'{"step": 1, "loss": 2.5}\n{"step": 2, "from": "x", "why": "no y.png"}\n')


def test_only_files_that_hf_ebm_writes_are_pushed_and_the_others_are_named(hub, client, folder, repo):
    push(client, folder, repo)
    before = hub.repositories[repo].files()
    add_foreign_files(folder)
    mine = contents(folder)
    (said,) = client(WARNINGS, folder=str(folder), repo=repo, options={})
    assert said.startswith("not pushed") and said.endswith(
        "notes.json, patient_scan.png, scores.jsonl, secrets.env, energy_model/notes.json, "
        "energy_model/optimizer.safetensors"
    )
    files = hub.repositories[repo].files()
    check_nothing_foreign(files)
    assert files.keys() == before.keys() and contents(folder) == mine
    assert b"See z or /bin/ls." in files["README.md"]


def test_a_pipeline_of_a_folder_with_foreign_files_pushes_none_of_them(hub, client, folder, repo):
    add_foreign_files(folder)
    code = "import hf_ebm; hf_ebm.{}.from_pretrained(folder).push_to_hub(repo)"
    for name in ("DDAEBMPipeline", "EnergyScoringPipeline"):
        client(code.format(name), folder=str(folder), repo=f"{repo}-{name[:3]}")
        files = hub.repositories[f"{repo}-{name[:3]}"].files()
        check_nothing_foreign(files)
        assert {"samples.png", "metrics.json", "settings.yaml"} <= files.keys()


def test_a_file_that_is_no_json_is_named(client, folder, repo):
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step')
    with pytest.raises(ClientError, match=r"metrics\.jsonl is not valid JSON .* delete it"):
        push(client, folder, repo)


def test_the_card_states_the_licence_that_was_given_or_none(hub, client, folder, repo):
    def pushed():
        files = hub.repositories[repo].files()
        return yaml.safe_load(files["README.md"].decode().split("---\n")[1]), yaml.safe_load(files["settings.yaml"])

    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert client(WARNINGS, folder=str(folder), repo=repo, options={}) == [] and pushed()[0]["license"] == "mit"
    other = {"license": "other", "license_name": "celeba-research"}
    assert client(WARNINGS, folder=str(folder), repo=repo, options=other) == []
    for found in pushed():
        assert {key: found[key] for key in other} == other
    del settings["license"]
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (said,) = client(WARNINGS, folder=str(folder), repo=repo, options={})
    assert said.startswith("the model card states no licence") and "hf-ebm push --license ID" in said
    assert not {"license", "license_name"} & {key for found in pushed() for key in found}
    assert b"apache" not in hub.repositories[repo].files()["README.md"].lower()
    before = hub.repositories[repo].branches["main"]
    for wrong, message in (("apache2", "did you mean apache-2.0"), ("other", "is needed for license other")):
        with pytest.raises(ClientError, match=f"ValueError: license.*{message}"):
            push(client, folder, repo, license=wrong)
    assert hub.repositories[repo].branches["main"] == before


def test_a_card_of_ones_own_takes_a_licence_that_is_given(hub, client, folder, repo):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(re.sub("<!-- .* -->\n", "", card).replace("license: mit\n", ""))
    (said,) = client(WARNINGS, folder=str(folder), repo=repo, options={})
    assert "states no licence" in said
    options = ["--license", "cc-by-nc-4.0"]
    client(PRINTED, folder=str(folder), repo=repo, options=options)
    assert b"license: cc-by-nc-4.0" in hub.repositories[repo].files()["README.md"]


def test_a_push_takes_away_what_speaks_of_earlier_weights(hub, client, folder, repo):
    (folder / "ood.png").write_bytes(b"a picture")
    push(client, folder, repo)
    (folder / "ood.png").unlink()
    (folder / "metrics.json").unlink()
    push(client, folder, repo)
    files = hub.repositories[repo].files()
    assert "ood.png" not in files and "metrics.json" not in files and "samples.png" in files
    assert len(hub.repositories[repo].history["main"]) == 3


def test_branch_and_pull_request(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    main = hub.repositories[repo].branches["main"]
    torch.nn.init.ones_(tiny_pipeline.energy_model.unet.conv_out.bias)
    tiny_pipeline.energy_model.save_pretrained(folder / "energy_model")
    assert push(client, folder, repo, create_pr=True).endswith(hub.repositories[repo].branches["refs/pr/1"])
    push(client, folder, repo, revision="try")
    assert hub.repositories[repo].branches["main"] == main
    for revision in ("refs/pr/1", "try", hub.repositories[repo].branches["try"]):
        assert pull(client, repo, revision=revision, cache_dir=tmp_path / "c") == energies(tiny_pipeline)
    assert pull(client, repo, cache_dir=tmp_path / "c") != energies(tiny_pipeline)


def test_where_a_push_went_and_who_sees_it(hub, client, folder, repo):
    code = "from hf_ebm.hub.upload import push_folder, where_it_is\n"
    code += "result = where_it_is(push_folder(folder, repo, **options))"
    for number, private in enumerate((False, True)):
        found = client(code, folder=str(folder), repo=f"{repo}-{number}", options={"private": private})
        seen_by = "private" if private else "public"
        assert found.startswith(f"{hub.url}/{repo}-{number} ({seen_by}), commit ")
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    asked = client(code, folder=str(folder), repo=f"{repo}-0", options={"create_pr": True})
    assert asked.endswith(f"{repo}-0/discussions/1")


@pytest.mark.parametrize("private", [False, True])
def test_a_repository_that_is_there_is_not_pushed_to_as_what_it_is_not(hub, client, folder, repo, private):
    push(client, folder, repo, private=private)
    before = hub.repositories[repo].branches["main"]
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    is_now = "private" if private else "public"
    with pytest.raises(ClientError, match=f"ValueError: private is for a new repository, and .* is there and {is_now}"):
        push(client, folder, repo, private=not private)
    assert hub.repositories[repo].branches["main"] == before and hub.repositories[repo].private == private
    push(client, folder, repo, private=private)
    assert hub.repositories[repo].branches["main"] != before


PRINTED = """
import contextlib, io
from hf_ebm.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    main(["push", "--model", folder, "--repo-id", repo, *options])
result = printed.getvalue()
"""


def test_the_command_prints_the_models_url(hub, client, folder, repo):
    for options, branch, where in (([], "main", ""), (["--branch", "v2"], "v2", "branch v2, ")):
        printed = client(PRINTED, folder=str(folder), repo=repo, options=options)
        commit = hub.repositories[repo].branches[branch]
        assert printed == f"{folder} is on the Hub: {hub.url}/{repo} (public), {where}commit {commit}\n"


def test_no_pull_request_is_opened_for_nothing(hub, client, folder, repo):
    client(PRINTED, folder=str(folder), repo=repo, options=[])
    printed = client(PRINTED, folder=str(folder), repo=repo, options=["--create-pr"])
    assert printed.startswith(f"{folder} has no changes to push, so no pull request was opened: ")
    assert "refs/pr/1" not in hub.repositories[repo].branches


def test_a_push_without_a_login_or_to_no_id_asks_nothing_of_the_hub(hub, client, folder):
    code = """
import os
from hf_ebm.hub.upload import push_folder
token = os.environ.pop("HF_TOKEN")
try:
    push_folder(folder, "alice/x")
finally:
    os.environ["HF_TOKEN"] = token
"""
    with pytest.raises(ClientError, match=r"PushError: .*needs a login: run `hf auth login`"):
        client(code, folder=str(folder))
    with pytest.raises(ClientError, match="ValueError: repo_id must be a Hub id such as user/name, got 'alice/sh ort'"):
        push(client, folder, "alice/sh ort")
    assert not hub.log
