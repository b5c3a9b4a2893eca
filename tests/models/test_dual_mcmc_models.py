"""The networks of Dual-MCMC Teaching: published sizes, other sizes, invalid settings and input."""

import pytest
import torch
from tiny_generator import tiny_generator

from hf_ebm import (
    ConvInferenceModel,
    MLPEnergyModel,
    MLPInferenceModel,
    MLPLatentGeneratorModel,
    ResNetEnergyConfig,
    ResNetEnergyModel,
    ResNetGeneratorModel,
)
from hf_ebm.models.dual_mcmc_presets import PRESETS, build_dual_mcmc_models, dual_mcmc_model_settings

PUBLISHED = {"cifar10": (16.0, 16.8, 15.2), "celeba64": (12.2, 19.5, 15.2)}  # generator, energy, inference, millions


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset):
    with torch.device("meta"):
        models = build_dual_mcmc_models(
            dual_mcmc_model_settings(preset, overrides={"energy": {"spectral_norm": False}})
        )
    for model, published in zip(models, PUBLISHED[preset], strict=True):
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / published - 1) < 0.01


def test_defaults_are_the_cifar10_preset_but_for_what_saved_models_lack():
    """Configs from before these options do not have them, so their defaults are the earlier networks'."""
    later = {"upsample_mode": "nearest", "conv_bias": True, "initialization": "xavier_normal"}
    settings = dual_mcmc_model_settings("cifar10")
    for part in ("generator", "energy", "inference"):
        assert settings[part].keys() & later
        settings[part] |= {name: value for name, value in later.items() if name in settings[part]}
    with torch.device("meta"):
        for model, part in ((ResNetGeneratorModel(), "generator"), (ConvInferenceModel(), "inference")):
            assert {key: model.config[key] for key in settings[part]} == settings[part]
    default = ResNetEnergyConfig().to_dict()
    assert tuple(default["block_out_channels"]) == settings["energy"].pop("block_out_channels")
    assert {key: default[key] for key in settings["energy"]} == settings["energy"]


SIZES = [
    {"image_size": 8, "num_channels": 1, "widths": (4, 8), "patch_size": 2, "num_downsamples": 1},
    {"image_size": 12, "num_channels": 5, "widths": (6, 4, 8), "patch_size": 3, "num_downsamples": 2},
    {"image_size": 64, "num_channels": 3, "widths": (4, 4, 4, 4, 4), "patch_size": 1, "num_downsamples": 5},
]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s['image_size']}x{s['num_channels']}")
def test_any_size_and_channels(size):
    data = {"image_size": size["image_size"], "num_channels": size["num_channels"]}
    widths = size["widths"]
    energy = {
        "block_out_channels": widths,
        "patch_size": size["patch_size"],
        "num_downsamples": size["num_downsamples"],
    }
    energy_model = ResNetEnergyModel(ResNetEnergyConfig(**data, **energy))
    patch_size = min(size["patch_size"], size["image_size"] // 2 ** (len(widths) - 1))
    generator_model = ResNetGeneratorModel(**data, latent_dim=3, patch_size=patch_size, block_out_channels=widths)
    inference_model = ConvInferenceModel(**data, latent_dim=3, block_out_channels=widths)
    x = generator_model(torch.randn(2, 3)).sample
    assert x.shape == (2, *energy_model.sample_shape) == (2, *generator_model.sample_shape) and x.abs().max() <= 1
    assert energy_model(x).energy.shape == (2,)
    assert torch.equal(energy_model.eval()(x, 3).energy, energy_model(x).energy)  # there are no noise levels
    mean, logvar = inference_model(x, return_dict=False)
    assert mean.shape == logvar.shape == (2, 3)


def test_networks_of_vectors():
    generator_model, energy_model, inference_model = build_dual_mcmc_models(
        dual_mcmc_model_settings("toy", latent_dim=3, overrides={"data": {"data_dim": 4}})
    )
    assert isinstance(generator_model, MLPLatentGeneratorModel) and isinstance(inference_model, MLPInferenceModel)
    assert isinstance(energy_model, MLPEnergyModel)
    x = generator_model(torch.randn(5, 3)).sample
    assert x.shape == (5, 4) and energy_model(x).energy.shape == (5,)
    assert inference_model(x).mean.shape == inference_model(x).logvar.shape == (5, 3)
    assert generator_model.for_sampling()(torch.randn(5, 3)).sample.shape == (5, 4)
    with generator_model.z_chain(), energy_model.chain():
        assert not any(p.requires_grad for p in energy_model.parameters())


def test_preset_overrides_reach_the_networks():
    settings = dual_mcmc_model_settings("digits", latent_dim=7, overrides={"energy": {"block_out_channels": (8, 8)}})
    assert settings.pop("network") == "resnet" and set(settings) == {"generator", "energy", "inference"}
    assert settings["generator"]["latent_dim"] == settings["inference"]["latent_dim"] == 7
    assert settings["energy"]["block_out_channels"] == (8, 8)
    assert all(part["image_size"] == 8 and part["num_channels"] == 1 for part in settings.values())
    assert PRESETS["digits"]["energy"]["block_out_channels"] != (8, 8)  # the preset itself is untouched


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_mcmc_model_settings("imagenet"), "preset"),
        (lambda: dual_mcmc_model_settings("digits", overrides={"encoder": {}}), "encoder"),
        (lambda: build_dual_mcmc_models(dual_mcmc_model_settings("digits", overrides={"energy": {"w": 3}})), "models"),
        (lambda: build_dual_mcmc_models(dual_mcmc_model_settings("digits", overrides={"generator": {"w": 3}})), "w"),
        (lambda: ResNetGeneratorModel(image_size=30, block_out_channels=(4, 4, 4)), "divisible by 4"),
        (lambda: ResNetGeneratorModel(image_size=8, block_out_channels=(4, 4), likelihood_std=0.0), "likelihood_std"),
        (lambda: tiny_generator(likelihood_std=float("nan")), "likelihood_std"),
        (lambda: tiny_generator(sampling_batch_norm="eval"), "sampling_batch_norm"),
        (lambda: tiny_generator(chain_running_statistics=True), "chain_running_statistics"),
        (lambda: MLPLatentGeneratorModel(likelihood_std=-1.0), "likelihood_std"),
        (lambda: ConvInferenceModel(image_size=10, block_out_channels=(4, 4, 4)), "divisible by 4"),
        (lambda: ResNetEnergyModel(ResNetEnergyConfig(image_size=30, num_downsamples=2)), "divisible by .* 4"),
        (lambda: ResNetEnergyModel(ResNetEnergyConfig(block_out_channels=(4,), num_downsamples=2)), "num_downsamples"),
        (lambda: ResNetEnergyModel(ResNetEnergyConfig(block_out_channels=())), "num_downsamples"),
        (lambda: ResNetEnergyModel(ResNetEnergyConfig(power_iteration="always")), "power_iteration"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["energy_model", "inference_model", "generator_model"])
def test_wrong_inputs(tiny_dual_mcmc_pipeline, name):
    model = getattr(tiny_dual_mcmc_pipeline, name)
    good = (1, 4) if name == "generator_model" else (1, 1, 8, 8)
    for x in (torch.zeros(*good, 1), torch.zeros(*good[:-1], 9), torch.zeros(good, dtype=torch.uint8), [[0.0]]):
        with pytest.raises(ValueError, match=r"must (have shape|be a floating)"):
            model(x)
