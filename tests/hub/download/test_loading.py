"""Loading and saving pipeline folders: by every class that can, from a clone, a subfolder or a variant."""

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from fresh_process import run_in_fresh_process
from transformers import AutoModel

from hf_ebm import (
    DDAEBMPipeline,
    DualMCMCPipeline,
    EnergyScoringPipeline,
    PairInferenceModel,
    UNetEnergyModel,
    UNetGeneratorModel,
)

X = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)


def test_loading_without_our_class(folder, tiny_pipeline, tmp_path, monkeypatch):
    pipe = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    assert type(pipe) is DDAEBMPipeline
    energy = AutoModel.from_pretrained(folder, subfolder="energy_model")
    expected = tiny_pipeline.score(X).energies
    assert torch.equal(pipe.score(X).energies, expected) and torch.allclose(energy(2 * X - 1).energy, expected)


def test_a_clone_of_a_pushed_repository_loads_as_any_folder(folder, tiny_pipeline, tmp_path):
    """It holds code for diffusers' own loading; ours runs it only if it is to the letter what we write."""
    from hf_ebm.hub.upload import repository_files

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
    with pytest.raises(ValueError, match=r"files of the `variant=fp16`, but .* has none"):
        DDAEBMPipeline.from_pretrained(folder, variant="fp16")
    tiny_pipeline.save_pretrained(folder, variant="fp16")
    for component in ("energy_model", "generator_model", "inference_model"):
        assert len(list((folder / component).glob("*.fp16.safetensors"))) == 1
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        tiny_pipeline.save_pretrained(folder, safe_serialization=False)
    assert isinstance(PairInferenceModel.from_pretrained(folder, subfolder="inference_model"), PairInferenceModel)


def test_saved_files_do_not_contain_the_path_they_were_loaded_from(folder, tiny_dual_mcmc_pipeline, tmp_path):
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


def test_auto_model_knows_an_energy_after_its_import(folder):
    """In a fresh process, as the README and the card say: here a pipeline was loaded before."""
    code = (
        "from hf_ebm import UNetEnergyModel\n"
        "from transformers import AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(folder)!r}, subfolder='energy_model')) is UNetEnergyModel)"
    )
    assert run_in_fresh_process(code).splitlines()[-1] == "True"
