"""What is refused of a pipeline folder before anything of it is made, and how a run folder is loaded."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers import AutoModel

from hf_ebm import (
    DDAEBMPipeline,
    DualMCMCPipeline,
    EnergyScoringPipeline,
    PairInferenceModel,
    UNetEnergyModel,
    UNetGeneratorModel,
    hub_cache,
)
from hf_ebm.config_types import has_type
from hf_ebm.hub_cache import known_checksums, remove_damaged, restore_ref
from hf_ebm.pull import download_pipeline, weight_patterns

X = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def evil_module(folder, tmp_path):
    """Code beside a component that would leave a mark if it ran."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n"
    (folder / "energy_model" / "evil.py").write_text(code)
    (folder / "pipeline.py").write_text(code)


@pytest.mark.parametrize("pipeline", [DDAEBMPipeline, EnergyScoringPipeline])
@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"energy_model": ["evil", "Model"]}, "'energy_model' is a Model of 'evil'.*trust_remote_code=True"),
        ({"energy_model": ["os", "system"]}, "'energy_model' is a system of 'os'"),
        ({"energy_model": ["hf_ebm.training.demo", "main"]}, "only classes of hf_ebm, diffusers and transformers"),
        (
            {"../energy_model": ["hf_ebm.models.unet_energy", "UNetEnergyModel"]},
            "'../energy_model'; it must be a plain",
        ),
        ({"/etc": ["diffusers", "DDIMScheduler"]}, "'/etc'; it must be a plain name"),
        ({"energy_model": ["hf_ebm.models.unet_energy", 3]}, r"must be \[library, class\]"),
        ({"_class_name": ["evil", "Pipeline"]}, "names code of its own"),
        ({"_class_name": None}, "is no pipeline's index"),
        ({"energy_model": ["diffusers", "DiffusionPipeline"]}, "'energy_model' is a DiffusionPipeline of 'diffusers'"),
        ({"energy_model": ["diffusers", "NoSuchModel"]}, "is a NoSuchModel of 'diffusers', which is no network"),
        ({"energy_model": ["hf_ebm.models.no_such", "Model"]}, "cannot be imported here"),
    ],
)
def test_an_index_that_leads_elsewhere(folder, tmp_path, pipeline, index, message):
    evil_module(folder, tmp_path)
    change_json(folder / "model_index.json", **index)
    with pytest.raises(ValueError, match=message):
        pipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_index_that_is_no_json_or_is_not_there(folder, tmp_path):
    (folder / "model_index.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="not valid JSON"):
        DDAEBMPipeline.from_pretrained(folder)
    with pytest.raises(OSError, match="holds no model_index"):
        DDAEBMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("component", ["generator_model", "energy_model"])
def test_pickles_are_not_read(folder, component):
    (file,) = (folder / component).glob("*.safetensors")
    stem = "pytorch_model" if component == "energy_model" else "diffusion_pytorch_model"
    torch.save(load_file(file), folder / component / f"{stem}.bin")
    file.unlink()
    with pytest.raises(ValueError, match=f"holds no safetensors of '{component}'.*pickles"):
        DDAEBMPipeline.from_pretrained(folder)
    model = UNetEnergyModel if component == "energy_model" else UNetGeneratorModel
    with pytest.raises(OSError, match="safetensors"):
        model.from_pretrained(folder / component)
    for loads in (model, DDAEBMPipeline):
        with pytest.raises(ValueError, match="use_safetensors must be True"):
            loads.from_pretrained(folder / component, use_safetensors=False)


@pytest.mark.parametrize("component", ["generator_model", "energy_model"])
def test_safetensors_that_are_cut_off(folder, component):
    (file,) = (folder / component).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file.name} is damaged or cut off"):
        DDAEBMPipeline.from_pretrained(folder)
    model = UNetEnergyModel if component == "energy_model" else UNetGeneratorModel
    with pytest.raises(OSError, match=r"damaged|Unable to load weights"):
        model.from_pretrained(folder / component)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("generator_model/config.json", {"latent_dim": "four"}, "UNetGeneratorModel: latent_dim must be .*int.*'four'"),
        ("generator_model/config.json", {"channel_multipliers": 2}, "channel_multipliers must be .*got 2"),
        (
            "inference_model/config.json",
            {"block_out_channels": [8, "x"]},
            r"block_out_channels must be .*got \[8, 'x'\]",
        ),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "4"}, "num_train_timesteps must be .*got '4'"),
        ("scheduler/scheduler_config.json", {"beta_start": True}, "beta_start must be .*got True"),
        ("energy_model/config.json", {"image_size": "eight"}, "UNetEnergyConfig: image_size must be .*'eight'"),
    ],
)
def test_configs_with_wrong_types(folder, file, values, message):
    change_json(folder / file, **values)
    with pytest.raises(ValueError, match=message):
        DDAEBMPipeline.from_pretrained(folder)


def test_types_of_config_values():
    assert has_type(3, int) and has_type(3, float) and has_type(None, int | None) and has_type([1, 2], tuple[int, ...])
    for value, hint in ((True, int), ("3", int), (3.5, int), (None, int), ([1, "2"], list[int]), (3, str), (1, bool)):
        assert not has_type(value, hint)


def test_a_component_that_is_a_pipeline_or_is_not_there(folder):
    (folder / "energy_model" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'energy_model' holds a model_index\.json"):
        DDAEBMPipeline.from_pretrained(folder)
    (folder / "energy_model" / "model_index.json").unlink()
    for name, config in (("scheduler", "scheduler_config.json"), ("energy_model", "config.json")):
        (folder / name / config).unlink()
        with pytest.raises(ValueError, match=f"{folder} lacks '{name}', which its index names"):
            DDAEBMPipeline.from_pretrained(folder)


def test_a_revision_does_not_lead_out_of_the_cache(tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("0" * 40)
    for revision in (str(outside), "../../precious"):
        with pytest.raises(ValueError, match="revision must be the name of a branch"):
            download_pipeline("user/x", revision=revision, cache_dir=tmp_path)
    assert outside.read_text() == "0" * 40


@pytest.mark.parametrize("name", ["outputs/digits/new", "./mistyped", "../x", "/no/such", "~/x", "a\\b", "digits/"])
def test_the_hub_is_not_asked_for_what_can_be_no_id(name, monkeypatch):
    monkeypatch.setattr("hf_ebm.commit_pull.hf_hub_download", None)
    for loads in (DDAEBMPipeline, UNetGeneratorModel, UNetEnergyModel):
        with pytest.raises(OSError, match=f"{re.escape(repr(name))} is no folder here, and can be no Hub id"):
            loads.from_pretrained(name)


@pytest.mark.parametrize("prefix", ["", "./", "runs/"])
def test_a_mistyped_folder_is_answered_with_a_near_one(prefix, tmp_path, monkeypatch, caplog):
    for name in ("ddaebm-digits", "another"):
        (tmp_path / prefix / name).mkdir(parents=True)
    (tmp_path / prefix / "ddaebm-digit").touch()  # is no folder
    monkeypatch.chdir(tmp_path)

    def unreachable(*args, **kwargs):
        assert "Did you mean" in caplog.text  # before the Hub is asked
        raise LocalEntryNotFoundError("no such entry") from ConnectionError("Name or service not known")

    monkeypatch.setattr("hf_ebm.commit_pull.hf_hub_download", unreachable)
    with pytest.raises(OSError, match="is no folder here") as caught:
        DDAEBMPipeline.from_pretrained(f"{prefix}ddaebm-digitz")
    assert str(caught.value).endswith(f". Did you mean {Path(prefix) / 'ddaebm-digits'}?")
    assert ("could not be reached (is there a network?)" in str(caught.value)) is (prefix != "./")


def test_a_ref_is_put_back_only_if_it_was_moved_by_this_pull(tmp_path):
    ref, ours, theirs = tmp_path / "main", "a" * 40, "b" * 40
    for before, held, commit, left in (
        (None, ours, ours, None),
        (b"old", ours, ours, "old"),
        (b"old", theirs, ours, theirs),
        (b"old", ours, None, "old"),
        (b"old", "no commit", None, "no commit"),
    ):
        ref.write_text(held)
        restore_ref(ref, before, commit)
        assert (ref.read_text() if ref.is_file() else None) == left
    restore_ref(tmp_path, b"old", ours)  # a folder, as a branch's name may be the start of another's
    assert tmp_path.is_dir()


def test_loading_without_our_class(folder, tiny_pipeline, tmp_path, monkeypatch):
    pipe = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    assert type(pipe) is DDAEBMPipeline
    energy = AutoModel.from_pretrained(folder, subfolder="energy_model")
    expected = tiny_pipeline.score(X).energies
    assert torch.equal(pipe.score(X).energies, expected) and torch.equal(energy(X).energy, expected)


def test_a_clone_of_a_pushed_repository_loads_as_any_folder(folder, tiny_pipeline, tmp_path):
    """It holds code for diffusers' own loading; ours runs it only if it is to the letter what we write."""
    from hf_ebm.push import repository_files

    for path, content in repository_files(folder, "alice/x").items():
        if isinstance(content, bytes):
            (folder / path).write_bytes(content)
    assert torch.equal(DDAEBMPipeline.from_pretrained(folder).score(X).energies, tiny_pipeline.score(X).energies)
    evil = tmp_path / "evil.py"
    for file in (folder / "None.py", evil):  # diffusers runs f"{custom_pipeline}.py"
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom hf_ebm import DDAEBMPipeline\n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DDAEBMPipeline.from_pretrained(folder)
    (folder / "None.py").unlink()
    for name in (str(evil), str(evil.with_suffix("")), "pipeline"):
        with pytest.raises((ValueError, OSError)):
            DDAEBMPipeline.from_pretrained(folder, custom_pipeline=name)
    assert not (tmp_path / "ran").exists()
    (code,) = (folder / "energy_model").glob("*.py")
    code.write_text(code.read_text() + f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DDAEBMPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_subfolders_and_variants_of_folders(folder, tiny_pipeline, tmp_path):
    shutil.copytree(folder, tmp_path / "outer" / "inner")
    pipe = DDAEBMPipeline.from_pretrained(tmp_path / "outer", subfolder="inner")
    assert torch.equal(pipe.score(X).energies, tiny_pipeline.score(X).energies)
    assert pipe.name_or_path == str(tmp_path / "outer")
    with pytest.raises(ValueError, match="no weights of variant 'fp16'"):
        DDAEBMPipeline.from_pretrained(folder, variant="fp16")
    tiny_pipeline.save_pretrained(folder, variant="fp16")
    for component in ("energy_model", "generator_model", "inference_model"):
        assert len(list((folder / component).glob("*.fp16.safetensors"))) == 1
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        tiny_pipeline.save_pretrained(folder, safe_serialization=False)
    assert isinstance(PairInferenceModel.from_pretrained(folder, subfolder="inference_model"), PairInferenceModel)


def test_what_is_saved_does_not_say_where_it_was_loaded_from(folder, tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")
    for kind, source in ((DDAEBMPipeline, folder), (EnergyScoringPipeline, folder), (DualMCMCPipeline, "dual")):
        pipe = kind.from_pretrained(tmp_path / source)
        pipe.save_pretrained(tmp_path / "saved" / kind.__name__)
        assert pipe.name_or_path == str(tmp_path / source)
        assert set(kind.from_pretrained(tmp_path / "saved" / kind.__name__).components) == set(pipe.components)
    for kind, component in ((UNetEnergyModel, "energy_model"), (UNetGeneratorModel, "generator_model")):
        kind.from_pretrained(folder / component).save_pretrained(tmp_path / "saved" / component)
    configs = list((tmp_path / "saved").rglob("*.json"))
    assert len(configs) > 12
    for path in configs:
        assert "name_or_path" not in path.read_text() and str(tmp_path) not in path.read_text(), path


def test_weights_of_a_variant_are_not_those_of_another(tmp_path):
    names = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors", "model.bin", "other.safetensors",
    ]  # fmt: skip
    (tmp_path / "energy_model").mkdir()
    for name in names:
        (tmp_path / "energy_model" / name).touch()

    def found(variant):
        return {path.name for pattern in weight_patterns("energy_model", variant) for path in tmp_path.glob(pattern)}

    assert found(None) == set(names[:2]) and found("fp16") == set(names[2:4]) and found("bf16") == set()


def test_two_files_of_one_content_are_taken_back(tmp_path):
    """Two links to one damaged content: both go, nothing is raised half-way, and what is whole stays."""
    commit, blobs = tmp_path / "snapshots" / "c", tmp_path / "blobs"
    commit.mkdir(parents=True)
    blobs.mkdir()
    whole = blobs / "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's name of the two bytes "{}"
    damaged = blobs / ("0" * 40)
    links = {"a.json": damaged, "b.json": damaged, "c.json": whole}
    for name, content in links.items():
        content.write_text("{}")
        (commit / name).symlink_to(content)
    expected = known_checksums(commit, [commit / name for name in links])
    assert expected == {name: content.name for name, content in links.items()}
    assert set(remove_damaged(commit, expected)) == {"a.json", "b.json"}
    assert list(commit.iterdir()) == [commit / "c.json"] and list(blobs.iterdir()) == [whole]


def test_what_somebody_replaces_while_it_is_read_is_left(tmp_path, monkeypatch):
    commit = tmp_path / "snapshots" / "c"
    commit.mkdir(parents=True)
    for name in ("a.json", "b.json"):
        (commit / name).write_text("{?")
    whole = tmp_path / "whole"
    whole.write_text("{}")
    checksum = hub_cache.file_checksum

    def read(path, large):
        found = checksum(path, large)
        if path.name == "a.json":
            whole.replace(path)  # as another pull does
        return found

    monkeypatch.setattr(hub_cache, "file_checksum", read)
    expected = dict.fromkeys(("a.json", "b.json"), "9e26dfeeb6e641a33dae4961196235bdb965b21b")
    assert set(remove_damaged(commit, expected)) == {"a.json", "b.json"}
    assert [path.name for path in commit.iterdir()] == ["a.json"] and (commit / "a.json").read_text() == "{}"


def test_auto_model_knows_an_energy_after_its_import_alone(folder):
    """In a fresh process, as the README and the card say: here a pipeline was loaded before."""
    code = (
        "from hf_ebm import UNetEnergyModel\n"
        "from transformers import AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(folder)!r}, subfolder='energy_model')) is UNetEnergyModel)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "True", found.stderr[-2000:]
