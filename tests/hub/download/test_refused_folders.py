"""Pipeline folders rejected before anything is built: foreign code, pickles, damage, wrong types."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_ebm import DDAEBMPipeline, EnergyScoringPipeline, UNetEnergyModel, UNetGeneratorModel
from hf_ebm.cli.main import main
from hf_ebm.utils.validation import has_type


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
        ({"_class_name": None}, "is not a pipeline's index"),
        ({"energy_model": ["diffusers", "DiffusionPipeline"]}, "'energy_model' is a DiffusionPipeline of 'diffusers'"),
        ({"energy_model": ["diffusers", "NoSuchModel"]}, "is a NoSuchModel of 'diffusers', not a network"),
        ({"energy_model": ["hf_ebm.models.no_such", "Model"]}, "This version of hf-ebm exports no such class"),
    ],
)
def test_an_index_that_leads_elsewhere(folder, tmp_path, pipeline, index, message):
    evil_module(folder, tmp_path)
    change_json(folder / "model_index.json", **index)
    with pytest.raises(ValueError, match=message):
        pipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_index_that_is_no_json_or_is_not_there(folder, tmp_path, capsys):
    (folder / "model_index.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="not valid JSON"):
        DDAEBMPipeline.from_pretrained(folder)
    with pytest.raises(OSError, match="holds no model_index"):
        DDAEBMPipeline.from_pretrained(tmp_path)
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(OSError, match="its training has not ended; resume it with resume=latest"):
        DDAEBMPipeline.from_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["info", "--model", str(tmp_path)])
    assert "its training has not ended" in capsys.readouterr().err


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


def test_a_config_that_claims_to_be_a_composition_hides_no_weights(folder):
    """Only a folder without any file of weights counts as a composition of other energies."""
    (folder / "energy_model" / "model.safetensors").rename(folder / "energy_model" / "pytorch_model.bin")
    config = folder / "energy_model" / "config.json"
    values = {**json.loads(config.read_text()), "model_type": "hf_ebm_composed_energy"}
    config.write_text(json.dumps(values, indent=2))
    with pytest.raises(ValueError, match="holds no safetensors of 'energy_model'"):
        DDAEBMPipeline.from_pretrained(folder)
