"""Push and pull with the real huggingface_hub client against a Hub on the loopback interface; nothing is patched.

After each fault there is the state before or the state after, and an error that says what happened, or a retry.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from hub_client import Client, ClientError, environment
from hub_server import Hub
from huggingface_hub import scan_cache_dir
from test_hub import METRICS, OOD, SUMMARY, evaluation

from hf_ebm.hub import write_card

X = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
PUSH = "from hf_ebm.push import push_folder; result = str(push_folder(folder, repo, **options))"
PULL = """
import torch
import hf_ebm
pipe = getattr(hf_ebm, kind).from_pretrained(repo, **options)
result = pipe.score(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)).energies.tolist()
"""


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    process = Client(hub.url, tmp_path_factory.mktemp("home"), "alice-token")
    yield process
    process.close()


@pytest.fixture(scope="module", autouse=True)
def without_network(tmp_path_factory):
    """A command whose Hub is a port where nobody listens; the client tries for 23 seconds, while other tests run."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    command = [sys.executable, "-m", "hf_ebm.cli", "score", "--model", "alice/x", __file__]  # a file that is there
    variables = environment(url, tmp_path_factory.mktemp("nowhere"), None)
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def _fresh_log(hub):
    hub.reset()


@pytest.fixture
def repo(request):
    """A repository of this test alone."""
    return "alice/" + re.sub(r"\W+", "-", request.node.name)[-80:].strip("-._")


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A run folder with all that a run leaves."""
    folder = tmp_path / "run"
    tiny_pipeline.save_pretrained(folder)
    settings = {"output_dir": str(folder), "dataset": "digits", "batch_size": 8, "seed": 0, "max_grad_norm": None}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "train_summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    PIL.Image.new("L", (8, 8)).save(folder / "samples.png")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "optimizer.bin").write_bytes(b"a pickle")
    write_card(folder)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(client, folder, repo, **options):
    return client(PUSH, folder=str(folder), repo=repo, options=options)


def pull(client, repo, kind="DDAEBMPipeline", **options):
    return client(
        PULL, repo=repo, kind=kind, options={key: str(v) if key == "cache_dir" else v for key, v in options.items()}
    )


def energies(pipeline):
    return pytest.approx(pipeline.score(X).energies.tolist(), rel=1e-5)


def cached(cache):
    """What a cache has, without the names of repository and commit."""
    return {"/".join(path.parts[path.parts.index("snapshots") + 2 :]) for path in cache.rglob("snapshots/*/**/*.*")}


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# push


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
        "scheduler/hf_ebm.schedulers.scheduling_ddaebm.py",
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


def test_a_push_takes_away_what_speaks_of_earlier_weights(hub, client, folder, repo):
    (folder / "ood.png").write_bytes(b"a picture")
    push(client, folder, repo)
    (folder / "ood.png").unlink()
    (folder / "metrics.json").unlink()
    push(client, folder, repo)
    files = hub.repositories[repo].files()
    assert "ood.png" not in files and "metrics.json" not in files and "samples.png" in files
    assert len(hub.repositories[repo].history["main"]) == 3


def test_the_command_to_try_again_has_all_options_but_the_token(hub, client, folder, repo):
    for options, expected in (
        ({"private": True, "commit_message": "my words"}, "--private --message 'my words'"),
        ({"private": False, "revision": "try", "create_pr": True}, "--no-private --branch try --create-pr"),
    ):
        with pytest.raises(ClientError, match=rf"--repo-id {repo} {expected}$"):
            push(client, folder, repo, token="bob-token", **options)
    code = "import hf_ebm; hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo, **options)"
    with pytest.raises(ClientError, match=r"push_to_hub\('.*', variant='fp16', private=True\)$"):
        options = {"private": True, "variant": "fp16", "token": "bob-token"}
        client(code, folder=str(folder), repo=repo, options=options)


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


# pull


def test_a_pull_fetches_what_is_needed_and_then_needs_no_network(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    every = pull(client, repo, cache_dir=tmp_path / "all")
    assert every == energies(tiny_pipeline)
    networks = {f"{name}/config.json" for name in ("energy_model", "generator_model", "inference_model")}
    scoring = {
        "model_index.json", "energy_model/config.json", "energy_model/preprocessor_config.json",
        "energy_model/model.safetensors", "scheduler/scheduler_config.json",
    }  # fmt: skip
    generating = {
        "generator_model/diffusion_pytorch_model.safetensors", "inference_model/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert cached(tmp_path / "all") == scoring | networks | generating
    assert pull(client, repo, "EnergyScoringPipeline", cache_dir=tmp_path / "score") == every
    assert cached(tmp_path / "score") == scoring
    hub.reset()
    assert pull(client, repo, cache_dir=tmp_path / "all", local_files_only=True) == every
    assert pull(client, repo, "EnergyScoringPipeline", cache_dir=tmp_path / "score", local_files_only=True) == every
    assert not hub.log
    with pytest.raises(ClientError, match=f"OSError: '{repo}' is no folder here"):
        pull(client, repo, cache_dir=tmp_path / "empty", local_files_only=True)


def test_calibration_variant_dtype_subfolder_and_auto_model(hub, client, folder, repo, tmp_path, tiny_pipeline):
    code = """
import torch, hf_ebm
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(folder)
images = torch.rand(40, 1, 8, 8) * torch.linspace(-1, 1, 40)[:, None, None, None]
pipe.calibrate(images, target_fpr=0.1).save(folder)
hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo)
hf_ebm.DDAEBMPipeline.from_pretrained(folder, torch_dtype=torch.float16).push_to_hub(repo, variant="fp16")
"""
    client(code, folder=str(folder), repo=repo)
    code = """
import torch, hf_ebm
from transformers import AutoModel
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(repo, variant="fp16", torch_dtype=torch.float16, cache_dir=cache)
energy = AutoModel.from_pretrained(repo, subfolder="energy_model")
generator = hf_ebm.UNetGeneratorModel.from_pretrained(repo, subfolder="generator_model", variant="fp16")
x = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
result = [
    pipe.calibration.num_samples, str(pipe.energy_model.dtype), pipe(x).p_values is not None,
    energy(x).energy.tolist(), type(energy).__module__, str(energy.dtype), type(generator).__name__,
]
"""
    number, dtype, has_p, found, module, full, name = client(code, repo=repo, cache=str(tmp_path / "half"))
    assert (number, dtype, has_p, module, name) == (
        40,
        "torch.float16",
        True,
        "hf_ebm.models.unet_energy",
        "UNetGeneratorModel",
    )
    assert found == energies(tiny_pipeline) and full == "torch.float32"
    assert {"energy_model/model.fp16.safetensors", "calibration.json"} < cached(tmp_path / "half")
    assert not any("/model.safetensors" in path or "generator" in path for path in cached(tmp_path / "half"))
    card = hub.repositories[repo].files()["README.md"].decode()
    assert "## Threshold" in card and "The threshold holds" in card and "no threshold yet" not in card


OFFLINE_SCORER = """
import huggingface_hub, logging, hf_ebm
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("hf_ebm.commit_pull").addHandler(handler)
try:
    pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(repo, cache_dir=cache, **options)
finally:
    logging.getLogger("hf_ebm.commit_pull").removeHandler(handler)
result = [pipe.calibration is not None, told]
"""


def test_offline_a_pipeline_can_be_without_what_lies_beside_it(hub, client, folder, repo, tmp_path):
    """The generation pipeline's pull brings no calibration; offline the scores are made without it, and it is said."""
    code = """
import torch, hf_ebm
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(folder)
images = torch.rand(40, 1, 8, 8) * torch.linspace(-1, 1, 40)[:, None, None, None]
pipe.calibrate(images, target_fpr=0.1).save(folder)
"""
    client(code, folder=str(folder))
    push(client, folder, repo)
    cache = str(tmp_path / "c")
    pull(client, repo, cache_dir=cache)
    hub.reset()
    names = {"repo": repo, "cache": cache}
    calibrated, told = client(OFFLINE_SCORER, **names, options={"local_files_only": True})
    assert not calibrated and len(told) == 1 and not hub.log
    assert "without what the cache lacks of calibration.json; pull it once with the network" in told[0]
    hub.fail("GET .*calibration.json", "status", status=403)
    with pytest.raises(ClientError, match="403"):  # with the network it is an error
        client(OFFLINE_SCORER, **names, options={})
    assert client(OFFLINE_SCORER, **names, options={}) == [True, []]
    assert client(OFFLINE_SCORER, **names, options={"local_files_only": True}) == [True, []]


def test_private_repositories_need_their_owners_token(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo, private=True)
    assert hub.repositories[repo].private
    assert pull(client, repo, token="alice-token", cache_dir=tmp_path / "a") == energies(tiny_pipeline)
    for token in (False, "bob-token", "wrong-token"):
        with pytest.raises(
            ClientError, match=f"OSError: '{repo}' is no folder here, and could not be had from the Hub: .*40"
        ):
            pull(client, repo, token=token, cache_dir=tmp_path / f"{token}")
        assert not cached(tmp_path / f"{token}")
    for token in ("bob-token", "wrong-token", False):
        with pytest.raises(ClientError, match=r"PushError: the push to .* failed: (?s:.*)Try again: hf-ebm push"):
            push(client, folder, repo, token=token)


# faults on the way up


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("PUT /lfs/", {"fault": "cut_request"}),
        ("/preupload/", {"fault": "status", "status": 500}),
        ("/preupload/", {"fault": "status", "status": 429, "headers": {"Retry-After": "0"}}),
    ],
)
def test_a_push_is_tried_again_after_what_goes_away(hub, client, folder, repo, pattern, fault):
    (folder / "samples.png").write_bytes(repo.encode())  # a large file that the Hub does not have yet
    hub.fail(pattern, **fault)
    push(client, folder, repo)
    assert not hub.faults[0]["left"] and hub.count(pattern) > 1
    assert len(hub.repositories[repo].history["main"]) == 2


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST .*/commit/", {"fault": "cut_request"}),
        ("POST .*/commit/", {"fault": "status", "status": 500}),
        ("PUT /lfs/", {"fault": "corrupt"}),  # damaged on its way: the checksum is wrong there
        ("/preupload/", {"fault": "status", "status": 403}),
    ],
)
def test_a_push_that_fails_changes_nothing_and_says_how_to_try_again(hub, client, folder, repo, pattern, fault):
    push(client, folder, repo)
    before, mine = hub.repositories[repo].files(), contents(folder)
    (folder / "samples.png").write_bytes(b"another picture of " + repo.encode())
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    hub.fail(pattern, **fault)
    with pytest.raises(ClientError, match=rf"PushError: (?s:.*)hf-ebm push --model {folder} --repo-id {repo}$"):
        push(client, folder, repo)
    assert hub.repositories[repo].files() == before
    assert contents(folder).keys() == mine.keys()
    push(client, folder, repo)
    assert hub.repositories[repo].files()["metrics.jsonl"] == b'{"step": 2}\n'


# faults on the way down


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("GET .*energy_model/model.safetensors", {"fault": "cut_answer"}),
        ("HEAD .*model_index.json", {"fault": "status", "status": 500}),
        ("GET .*energy_model/model.safetensors", {"fault": "status", "status": 429, "headers": {"Retry-After": "0"}}),
    ],
)
def test_a_pull_is_tried_again_after_what_goes_away(hub, client, folder, repo, tmp_path, tiny_pipeline, pattern, fault):
    push(client, folder, repo)
    hub.fail(pattern, **fault)
    assert pull(client, repo, cache_dir=tmp_path / "c") == energies(tiny_pipeline)
    assert not hub.faults[0]["left"]


FULL_DISK = """
import resource
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file may grow further: what a full disk does
try:
    exec(code_of_pull)
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""


@pytest.mark.parametrize("kind", ["corrupt", "short", "full disk"])
def test_a_pull_that_fails_leaves_what_was_there(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
    push(client, folder, repo)
    cache = tmp_path / "c"
    before = pull(client, repo, cache_dir=cache)
    torch.nn.init.ones_(tiny_pipeline.energy_model.unet.conv_out.bias)
    tiny_pipeline.energy_model.save_pretrained(folder / "energy_model")
    push(client, folder, repo)
    if kind == "full disk":
        with pytest.raises(ClientError, match=r"OSError: .*File too large"):
            client(FULL_DISK, code_of_pull=PULL, repo=repo, kind="DDAEBMPipeline", options={"cache_dir": str(cache)})
    else:
        hub.fail("GET .*energy_model/model.safetensors", kind)
        with pytest.raises(ClientError, match=r"OSError: .*(came damaged|should be of size)"):
            pull(client, repo, cache_dir=cache)
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == before != energies(tiny_pipeline)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == energies(tiny_pipeline)


def test_a_damaged_file_is_not_kept_when_another_fails(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    hub.fail("GET .*generator_model/diffusion_pytorch_model.safetensors", "status", status=403)
    with pytest.raises(ClientError, match=r"OSError: .*could not be had"):
        pull(client, repo, cache_dir=cache)
    assert "energy_model/model.safetensors" not in cached(cache) and not list(cache.rglob("refs/main"))
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*came damaged"):  # fetched again, over what was there
        pull(client, repo, cache_dir=cache, force_download=True)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)


FAILS_BESIDE_ANOTHER = """
import subprocess, sys
from hf_ebm.commit_pull import pull_commit
theirs = "import sys; from huggingface_hub import *; "
with pull_commit(repo, "model_index.json", {"cache_dir": cache}) as pull:
    subprocess.run([sys.executable, "-c", theirs + "snapshot_download(sys.argv[1], cache_dir=sys.argv[2],"
                    "allow_patterns=['generator_model/*', 'scheduler/*'])", repo, cache], check=True)
    pull.fetch(["generator_model/*", "energy_model/*.safetensors"])
    pull.verify()
"""


def test_a_pull_that_fails_leaves_what_another_process_fetched(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*energy_model/model.safetensors came damaged"):
        client(FAILS_BESIDE_ANOTHER, repo=repo, cache=str(tmp_path / "c"))
    left = cached(tmp_path / "c")
    assert {"generator_model/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"} <= left
    assert "energy_model/model.safetensors" not in left
    assert pull(client, repo, cache_dir=tmp_path / "c") == energies(tiny_pipeline)


@pytest.fixture
def client_without_links(hub, tmp_path):
    """A client whose cache is as on a file system without symbolic links."""
    (tmp_path / "home").mkdir()
    process = Client(hub.url, tmp_path / "home", "alice-token", HF_HUB_DISABLE_SYMLINKS="1")
    yield process
    process.close()


def test_a_cache_without_links(hub, client, client_without_links, folder, repo, tmp_path, tiny_pipeline):
    """Pulled once with the network it is verified without, though every file's inode and time changed since."""
    push(client, folder, repo)
    cache, copied = tmp_path / "c", tmp_path / "copied"
    assert pull(client_without_links, repo, cache_dir=cache) == energies(tiny_pipeline)
    assert not [path for path in cache.rglob("*") if path.is_symlink()]
    hub.reset()
    for folder in (cache, shutil.copytree(cache, copied, copy_function=shutil.copyfile)):
        found = pull(client_without_links, repo, cache_dir=folder, local_files_only=True)
        assert found == energies(tiny_pipeline) and not hub.log
    (weights,) = copied.rglob("energy_model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ClientError, match=r"OSError: .*model.safetensors came damaged"):
        pull(client_without_links, repo, cache_dir=copied, local_files_only=True)
    shutil.rmtree(next(cache.rglob(".hf_ebm_verified")))  # as if another library had fetched it
    advice = r"OSError: .*cannot be verified.*Pull once with the network.*or give the folder .*snapshots"
    with pytest.raises(ClientError, match=advice):
        pull(client_without_links, repo, cache_dir=cache, local_files_only=True)
    assert not hub.log
    hub.fail("POST .*/paths-info/", "status", status=403)
    with pytest.raises(ClientError, match=advice + r"(?s:.*)The Hub could not be asked"):
        pull(client_without_links, repo, cache_dir=cache)
    assert pull(client_without_links, repo, cache_dir=cache) == energies(tiny_pipeline)


KILLED = """
import os, signal
import hf_ebm.commit_pull
hf_ebm.commit_pull.verify_checksums = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
exec(code_of_pull)
"""


@pytest.mark.parametrize("offline", [False, True])
def test_what_a_killed_pull_left_is_verified(hub, client, folder, repo, tmp_path, tiny_pipeline, offline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(RuntimeError, match="client process ended"):
        killed = Client(hub.url, tmp_path, "alice-token")
        killed(KILLED, code_of_pull=PULL, repo=repo, kind="DDAEBMPipeline", options={"cache_dir": str(cache)})
    assert "energy_model/model.safetensors" in cached(cache)
    with pytest.raises(ClientError, match=r"OSError: .*energy_model/model.safetensors came damaged"):
        pull(client, repo, cache_dir=cache, local_files_only=offline)
    assert "energy_model/model.safetensors" not in cached(cache)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    hub.reset()
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == energies(tiny_pipeline) and not hub.log


def test_files_are_verified_once_and_again_when_they_changed(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    pull(client, repo, cache_dir=cache)
    assert not scan_cache_dir(cache).warnings  # the marks are nothing to the client
    verified = """
import hf_ebm.hub_cache as cache
calls, checksum = [], cache.file_checksum
cache.file_checksum = lambda path, large: calls.append(path.name) or checksum(path, large)
try:
    exec(code_of_pull)
finally:
    cache.file_checksum = checksum
    result = calls
"""
    options = {"cache_dir": str(cache), "local_files_only": True}
    again = {"code_of_pull": PULL, "repo": repo, "kind": "DDAEBMPipeline", "options": options}
    assert client(verified, **again) == []
    (weights,) = cache.rglob("energy_model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    os.utime(weights)
    assert client(verified, **again) == ["model.safetensors"]
    weights.write_bytes(content)
    with pytest.raises(ClientError, match=r"OSError: .*model.safetensors came damaged"):
        pull(client, repo, cache_dir=cache)
    assert not scan_cache_dir(cache).warnings
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)


@pytest.mark.parametrize("kind", ["UNetEnergyModel", "UNetGeneratorModel", "AutoModel"])
def test_networks_by_hub_id_are_verified(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
    code = """
import hf_ebm, hf_ebm.models.unet_energy, transformers
loads = getattr(hf_ebm, kind, None) or transformers.AutoModel
model = loads.from_pretrained(repo, subfolder=subfolder, cache_dir=cache)
total = sum(parameter.double().sum().item() for parameter in model.parameters())
result = total, model.config["_name_or_path"] if "Generator" in kind else model.name_or_path
"""
    component = "generator_model" if kind == "UNetGeneratorModel" else "energy_model"
    push(client, folder, repo)
    names = {"repo": repo, "kind": kind, "subfolder": component, "cache": str(tmp_path / "c")}
    hub.fail(f"GET .*{component}/.*safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*safetensors came damaged"):
        client(code, **names)
    assert not [name for name in cached(tmp_path / "c") if name.endswith(".safetensors")]
    total, shown = client(code, **names)
    expected = sum(parameter.double().sum().item() for parameter in getattr(tiny_pipeline, component).parameters())
    assert total == pytest.approx(expected) and shown == repo
    assert {Path(name).parent.name for name in cached(tmp_path / "c")} == {component}
    with pytest.raises(ClientError, match="OSError"):
        client(code, **{**names, "repo": "alice/none"})


def test_a_damaged_index_is_noticed(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    files = hub.repositories[repo].files()
    files["model_index.json"] = json.dumps(json.loads(files["model_index.json"])).encode() + b"!"
    hub.fail("GET .*/resolve/.*/model_index.json", "corrupt")  # "!" becomes " ": whole JSON, but not what was pushed
    with pytest.raises(ClientError, match=r"OSError: .*model_index.json came damaged"):
        pull(client, repo, cache_dir=tmp_path / "c")
    assert "model_index.json" not in cached(tmp_path / "c")


def test_code_that_is_trusted_is_fetched(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    repository = hub.repositories[repo]
    commit = repository.commits[repository.branches["main"]]
    index = json.loads(commit.files["model_index.json"])
    index["energy_model"] = ["my_energy", "UNetEnergyModel"]
    code = b"from hf_ebm.models.unet_energy import UNetEnergyModel\n"
    files = {**commit.files, "model_index.json": json.dumps(index).encode(), "energy_model/my_energy.py": code}
    repository.commit("main", type(commit)("own code", files, commit.large))
    with pytest.raises(ClientError, match="pass trust_remote_code=True"):
        pull(client, repo, cache_dir=tmp_path / "c")
    assert pull(client, repo, cache_dir=tmp_path / "c", trust_remote_code=True) == energies(tiny_pipeline)


# what cannot be


def test_bad_names_and_no_network(hub, client, folder, repo, tmp_path, without_network):
    push(client, folder, repo)
    pull(client, repo, cache_dir=tmp_path / "full")
    for name, options in (
        ("alice/no-such-model", {}),
        (repo, {"revision": "no-such-branch"}),
        (repo, {"subfolder": "no/such/folder"}),
    ):
        with pytest.raises(ClientError, match=f"OSError: '{name}' is no folder here, and could not be had"):
            pull(client, name, cache_dir=tmp_path / "c", **options)
    with pytest.raises(ClientError, match="ValueError: subfolder must lie inside"):
        pull(client, repo, subfolder="../other")
    with pytest.raises(ClientError, match=r"ValueError: .*no weights of variant 'fp8'"):
        pull(client, repo, variant="fp8", cache_dir=tmp_path / "c")
    with pytest.raises(ClientError, match=r"ValueError: .* holds a DDAEBMPipeline, not a DualMCMCPipeline"):
        pull(client, repo, "DualMCMCPipeline", cache_dir=tmp_path / "c")
    hub.stop()
    try:
        with pytest.raises(
            ClientError, match=r"PushError: .*(?s:.*)Connection refused \(is there a network\?\)(?s:.*)Try again"
        ):
            push(client, folder, repo)
        assert len(pull(client, repo, cache_dir=tmp_path / "full")) == 2  # from the cache
    finally:
        hub.start_again()
    _, error = without_network.communicate(timeout=120)
    assert without_network.returncode == 2
    assert re.match(
        r"hf-ebm: error: 'alice/x' is no folder here, and could not be had from the Hub: the Hub could not be reached "
        r"\(is there a network\?\), and the cache does not have all of it: .*Connection refused.*HF_HUB_OFFLINE=1",
        error.splitlines()[-1],
    )


def test_repositories_that_are_refused_when_pulled(hub, client, folder, repo, tmp_path):
    push(client, folder, repo)
    commit = hub.repositories[repo].commits[hub.repositories[repo].branches["main"]]
    good = dict(commit.files)

    def refused(message, **files):
        changed = dict(good)
        for path, data in files.items():
            changed.pop(path.removeprefix("-"), None)
            if not path.startswith("-"):
                changed[path] = data
        large = {path for path in changed if path.endswith(".safetensors")}
        hub.repositories[repo].commit("main", type(commit)("bad", changed, large))
        with pytest.raises(ClientError, match=message):
            pull(client, repo, cache_dir=tmp_path / str(len(hub.repositories[repo].commits)))

    index = json.loads(good["model_index.json"])
    evil = json.dumps({**index, "energy_model": ["evil", "Model"]}).encode()
    refused(
        "ValueError: .*'energy_model' is a Model of 'evil'",
        **{"model_index.json": evil, "energy_model/evil.py": b"1/0"},
    )
    climbing = json.dumps({**index, "../../energy_model": index["energy_model"]}).encode()
    refused(r"ValueError: .*'../../energy_model'; it must be a plain name", **{"model_index.json": climbing})
    refused("ValueError: .*is not valid JSON", **{"model_index.json": b'{"_class'})
    weights = good["energy_model/model.safetensors"]
    refused(
        "ValueError: .*holds no safetensors of 'energy_model'",
        **{"-energy_model/model.safetensors": b"", "energy_model/pytorch_model.bin": weights},
    )
    refused("ValueError: .*damaged or cut off", **{"energy_model/model.safetensors": weights[: len(weights) // 2]})
    config = {**json.loads(good["generator_model/config.json"]), "latent_dim": "four"}
    refused(
        "ValueError: .*latent_dim must be .*int.*'four'", **{"generator_model/config.json": json.dumps(config).encode()}
    )


# the whole way


CARD = """
import os
names = {}
os.chdir(where)
for block in blocks:
    exec(block, names)
result = [type(names["pipe"]).__name__, type(names["energy_model"]).__name__, list(names.get("energies", []))[:0]]
"""


@pytest.mark.parametrize("kind", ["dual_mcmc", "scoring"])
def test_other_cards_run_as_printed(hub, client, folder, repo, tmp_path, tiny_dual_mcmc_pipeline, kind):
    """On the Hub and, as printed in the folder's own card, in the folder."""
    local = tmp_path / "local"
    if kind == "dual_mcmc":
        tiny_dual_mcmc_pipeline.save_pretrained(local)
    else:
        code = "import hf_ebm; hf_ebm.EnergyScoringPipeline.from_pretrained(folder).save_pretrained(local)"
        client(code, folder=str(folder), local=str(local))
    write_card(local)
    push(client, local, repo)
    name = json.loads((local / "model_index.json").read_text())["_class_name"]
    for card in ((local / "README.md").read_text(), hub.repositories[repo].files()["README.md"].decode()):
        blocks = python_blocks(card)
        assert len(blocks) == 3 and "More information needed" not in card and "None" not in card
        assert client(CARD, blocks=blocks, where=str(local))[:1] == [name]


def test_train_push_pull_sample_score_and_read_the_card(hub, client, repo, tmp_path):
    """Training pushes at its end and at checkpoints; a fresh process with an empty cache runs the card as printed."""
    settings = [
        "batch_size=8", "max_steps=2", "checkpoint_every=1", "num_grid_samples=4", "models.unet.base_channels=8",
        "models.generator.latent_dim=4", "models.inference.block_out_channels=[8,16]", f"output_dir={tmp_path / 'run'}",
        "push_to_hub=true", f"hub_model_id={repo}", "push_every_checkpoint=true",
    ]  # fmt: skip
    train = "from hf_ebm.training.train_ddaebm import main; main(settings)"
    hub.fail("POST .*/commit/main", "status", status=503)
    with pytest.raises(
        ClientError, match=rf"SystemExit: hf-ebm: error: the push (?s:.*)hf-ebm push --model .*run --repo-id {repo}"
    ):
        client(train, settings=settings)
    assert len(hub.repositories[repo].history["main"]) == 1  # nothing of it, but the run is whole
    messages = [hub.repositories[repo].commits[sha].message for sha in hub.repositories[repo].history["checkpoints"]]
    assert messages[1:] == ["Checkpoint at step 1", "Checkpoint at step 2"]
    client(train, settings=[*settings, "resume=latest"])  # a finished run is pushed, too
    assert len(hub.repositories[repo].history["main"]) == 2
    arguments = ["push", "--model", str(tmp_path / "run"), "--repo-id", repo]
    client("from hf_ebm.cli import main; main(arguments)", arguments=arguments)
    files = hub.repositories[repo].files()
    assert len(hub.repositories[repo].history["main"]) == 2 and not any("checkpoint" in path for path in files)
    code = "\n".join(python_blocks(files["README.md"].decode()))
    code += "\nprint(tuple(samples.shape), tuple(energies.shape), type(pipe).__name__, type(energy_model).__name__)"
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(hub.url, tmp_path / "home", None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(16, 1, 8, 8) (16,) DDAEBMPipeline UNetEnergyModel"


def test_a_run_that_could_not_push_does_not_start(client, tmp_path):
    code = """
import contextlib, io, os
from hf_ebm.training.train_ddaebm import main
token = os.environ.pop("HF_TOKEN")
try:
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        main(settings)
except SystemExit as end:
    result = [end.code, printed.getvalue()]
finally:
    os.environ["HF_TOKEN"] = token
"""
    settings = ["push_to_hub=true", f"output_dir={tmp_path / 'run'}"]
    exit_code, printed = client(code, settings=settings)
    assert exit_code == 2 and "error: push_to_hub needs a login: run `hf auth login`" in printed
    code = code.replace('os.environ.pop("HF_TOKEN")', '"alice-token"')
    exit_code, printed = client(code, settings=[*settings, "hub_model_id=a//b"])
    assert exit_code == 2 and "error: hub_model_id must be like 'user/name', got 'a//b'" in printed
    assert not (tmp_path / "run").exists()
