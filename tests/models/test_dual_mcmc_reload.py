"""Saving and loading the networks of Dual-MCMC Teaching: bit-exact, with their settings, by the Auto classes."""

import numpy as np
import pytest
import torch
from reloading import reload_bit_exact

from hf_ebm import (
    MLPEnergyConfig,
    MLPEnergyModel,
    MLPInferenceModel,
    MLPLatentGeneratorModel,
    ResNetEnergyConfig,
    ResNetEnergyModel,
    ResNetGeneratorModel,
)


@pytest.mark.parametrize("name", ["generator_model", "energy_model", "inference_model"])
@pytest.mark.parametrize("variant", [None, "other"])
def test_reload_is_bit_exact(tiny_dual_mcmc_pipeline, tmp_path, name, variant):
    """Running statistics and the singular vectors of spectral norm included; and so the outputs."""
    model = getattr(tiny_dual_mcmc_pipeline, name)
    again = reload_bit_exact(model, tmp_path, variant)
    if name != "inference_model":
        assert dict(model.named_buffers())
    assert not again.training
    x = torch.randn(3, 4) if name == "generator_model" else torch.randn(3, 1, 8, 8)
    outputs = [m.eval()(x).to_tuple() for m in (model, again)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize(
    "model", [MLPLatentGeneratorModel(3, 2, (8,), 0.2), MLPInferenceModel(3, 2, (8,))], ids=["g", "q"]
)
def test_reload_of_vector_models(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.config.get("likelihood_std") == model.config.get("likelihood_std")


def test_config_round_trip(tmp_path):
    settings = {
        "image_size": 12,
        "num_channels": 2,
        "patch_size": 3,
        "block_out_channels": [4, 6],
        "num_downsamples": 1,
        "spectral_norm": False,
        "power_iteration": "every_forward",
    }
    ResNetEnergyModel(ResNetEnergyConfig(**settings)).save_pretrained(tmp_path / "energy")
    config = ResNetEnergyConfig.from_pretrained(tmp_path / "energy").to_dict()
    assert {key: config[key] for key in settings} == settings
    settings = {
        "image_size": 8,
        "num_channels": 2,
        "latent_dim": 3,
        "patch_size": 2,
        "block_out_channels": [4, 6],
        "batch_norm": False,
        "sampling_batch_norm": "batch",
        "chain_running_statistics": "updated",
        "likelihood_std": 0.2,
    }
    ResNetGeneratorModel(**settings).save_pretrained(tmp_path / "generator")
    config = dict(ResNetGeneratorModel.from_pretrained(tmp_path / "generator").config)
    assert {key: config[key] for key in settings} == settings


def test_numpy_settings_are_pythons_in_the_config(tmp_path):
    energy = MLPEnergyModel(MLPEnergyConfig(data_dim=np.int64(2), hidden_dims=(np.int32(8), 8)))
    generator = MLPLatentGeneratorModel(data_dim=np.int64(2), latent_dim=np.int8(3))
    for name, model in (("e", energy), ("g", generator)):
        model.save_pretrained(tmp_path / name)
        again = type(model).from_pretrained(tmp_path / name)
        assert tuple(again.sample_shape) == (2,)
    assert type(energy.config.hidden_dims[0]) is int and type(generator.config.latent_dim) is int
