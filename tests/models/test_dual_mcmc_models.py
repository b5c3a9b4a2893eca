"""The networks of Dual-MCMC Teaching: sizes, reloading bit for bit, spectral norm, and their ways in chains."""

import pytest
import torch
from torch.nn.utils import parametrize
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from hf_ebm import (
    ConvInferenceModel,
    MLPEnergyModel,
    MLPInferenceModel,
    MLPLatentGeneratorModel,
    ResNetEnergyConfig,
    ResNetEnergyModel,
    ResNetGeneratorModel,
)
from hf_ebm.langevin import energy_and_grad
from hf_ebm.models.dual_mcmc_presets import PRESETS, build_dual_mcmc_models, dual_mcmc_model_settings

# --- sizes and settings ---------------------------------------------------------------------------------------------

PUBLISHED = {"cifar10": (16.0, 16.8, 15.2), "celeba64": (12.2, 19.5, None)}  # generator, energy, inference, millions


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_sizes(preset):
    with torch.device("meta"):
        models = build_dual_mcmc_models(
            dual_mcmc_model_settings(preset, overrides={"energy": {"spectral_norm": False}})
        )
    for model, published in zip(models, PUBLISHED[preset], strict=True):
        if published is not None:
            assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / published - 1) < 0.01


def test_defaults_are_the_cifar10_preset():
    settings = dual_mcmc_model_settings("cifar10")
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
    with generator_model.sampling(), generator_model.z_chain(), energy_model.chain():
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


# --- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generator_model", "energy_model", "inference_model"])
@pytest.mark.parametrize("variant", [None, "other"])
def test_reload_is_bit_exact(tiny_dual_mcmc_pipeline, tmp_path, name, variant):
    """Running statistics and the singular vectors of spectral norm included; and so the outputs."""
    model = getattr(tiny_dual_mcmc_pipeline, name)
    model.save_pretrained(tmp_path, variant=variant)
    assert not list(tmp_path.glob("*.bin"))
    again = type(model).from_pretrained(tmp_path, variant=variant)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
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


def test_energy_through_auto_classes(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.energy_model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ResNetEnergyConfig)
    model, x = AutoModel.from_pretrained(tmp_path), torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x).energy, tiny_dual_mcmc_pipeline.energy_model(x).energy)


# --- the energy along a chain ---------------------------------------------------------------------------------------


def normed_layers(energy_model):
    return [module for module in energy_model.modules() if parametrize.is_parametrized(module)]


def singular_vectors(energy_model):
    return [value.clone() for value in energy_model.buffers()]


def moved(energy_model, before):
    return [not torch.equal(a, b) for a, b in zip(energy_model.buffers(), before, strict=True)]


@pytest.fixture
def energy_model():
    """Not scaled alike in all layers, and its singular vectors not yet found."""
    model = ResNetEnergyModel(
        ResNetEnergyConfig(image_size=8, num_channels=1, block_out_channels=(8, 12), num_downsamples=1)
    )
    for module in normed_layers(model):
        module.parametrizations.weight.original.data *= 3.0
        torch.nn.init.normal_(module.parametrizations.weight[0]._u)
        torch.nn.functional.normalize(
            module.parametrizations.weight[0]._u, dim=0, out=module.parametrizations.weight[0]._u
        )
    return model


def test_spectral_norm_on_every_layer(energy_model):
    """Training forwards find the largest singular value of each: it becomes 1."""
    x = torch.randn(2, 1, 8, 8)
    layers = [m for m in energy_model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == len(normed_layers(energy_model)) == 2 * 3 + 1
    for _ in range(300):
        energy_model.train()(x)
    energy_model.eval()
    for layer in layers:
        values = torch.linalg.svdvals(layer.weight.flatten(1))
        assert_close(values[0].item(), 1.0, rtol=0, atol=1e-3)


def test_without_spectral_norm_there_is_none():
    model = ResNetEnergyModel(
        ResNetEnergyConfig(image_size=8, block_out_channels=(8,), num_downsamples=1, spectral_norm=False)
    )
    assert not normed_layers(model) and not list(model.buffers())


def test_block_is_the_usual_residual_block():
    """Averaging before the 1x1 convolution, or after it, is the same."""
    from torch.nn import functional as F

    from hf_ebm.models.resnet_energy import EnergyBlock

    block, x = EnergyBlock(3, 5, first=False, downsample=True), torch.randn(2, 3, 8, 8)
    expected = block.conv2(F.relu(block.conv1(F.relu(x)))) + block.shortcut(x)
    assert_close(block(x), F.avg_pool2d(expected, 2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("power_iteration", ["energy_update", "every_forward"])
def test_power_iteration_along_a_chain(energy_model, training, power_iteration):
    energy_model.config.power_iteration = power_iteration
    energy_model.train(training)
    before, x = singular_vectors(energy_model), torch.randn(2, 1, 8, 8)
    with energy_model.chain():
        for _ in range(2):
            energy_and_grad(lambda x: energy_model(x).energy, x)
        expected = training and power_iteration == "every_forward"
        assert energy_model.training == expected
    assert any(moved(energy_model, before)) == expected
    energy_model.train()(x)  # the energy's own update
    assert any(moved(energy_model, before))


def test_chain_freezes_and_restores(energy_model):
    frozen_before = next(energy_model.parameters()).requires_grad_(False)
    state = {key: value.clone() for key, value in energy_model.state_dict().items()}
    energy_model.train()
    with pytest.raises(RuntimeError, match="in the chain"), energy_model.chain():
        assert not any(p.requires_grad for p in energy_model.parameters()) and not energy_model.training
        raise RuntimeError("in the chain")
    assert energy_model.training and not frozen_before.requires_grad
    assert all(p.requires_grad for p in energy_model.parameters() if p is not frozen_before)
    assert all(torch.equal(value, state[key]) for key, value in energy_model.state_dict().items())


@pytest.mark.parametrize(("power_iteration", "times"), [("energy_update", 1), ("every_forward", 5)])
def test_spectral_norm_weights_are_made_once_per_chain(energy_model, power_iteration, times):
    energy_model.config.power_iteration = power_iteration
    energy_model.train()
    calls = []
    for module in normed_layers(energy_model):
        module.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    with energy_model.chain():
        for _ in range(5):
            energy_and_grad(lambda x: energy_model(x).energy, torch.randn(2, 1, 8, 8))
    assert len(calls) == times * len(normed_layers(energy_model))


def test_chain_changes_no_value(energy_model):
    energy_model.eval()
    x = torch.randn(3, 1, 8, 8)

    def energy_fn(x):
        return energy_model(x).energy

    outside = energy_and_grad(energy_fn, x)
    with energy_model.chain():
        inside = [energy_and_grad(energy_fn, x) for _ in range(2)]
    for energy, grad in inside:
        assert_close(energy, outside[0])
        assert_close(grad, outside[1])
    with torch.no_grad():  # and the weights of this chain are not kept for the next
        for parameter in energy_model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    with energy_model.chain():
        assert not torch.allclose(energy_and_grad(energy_fn, x)[1], outside[1])


# --- the generator's batch norm -------------------------------------------------------------------------------------


def tiny_generator(**settings):
    model = ResNetGeneratorModel(8, 1, 4, block_out_channels=(8, 8), **settings)
    for _ in range(3):
        model.train()(torch.randn(16, 4))
    return model


def statistics(model):
    return {key: value.clone() for key, value in model.named_buffers()}


def unchanged(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_sampling_uses_the_statistics_of_the_setting_and_moves_none(batch_norm, training):
    model, z = tiny_generator(sampling_batch_norm=batch_norm).train(training), torch.randn(6, 4)
    before = statistics(model)
    with pytest.raises(RuntimeError, match="inside"), model.sampling():
        together, alone = model(z).sample, model(z[:3]).sample
        raise RuntimeError("inside")
    independent = torch.allclose(together[:3], alone, atol=1e-5)
    assert independent == (batch_norm == "running")
    assert model.training == training and unchanged(model, before)
    model.train()(z)
    assert not unchanged(model, before)  # tracked again afterwards


@pytest.mark.parametrize("setting", ["frozen", "updated"])
def test_z_chain_of_training(setting):
    model, z = tiny_generator(chain_running_statistics=setting).train(), torch.randn(6, 4)
    before = statistics(model)
    with model.z_chain():
        in_chain = model(z).sample
    assert unchanged(model, before) == (setting == "frozen")
    assert model.training
    assert_close(model(z).sample, in_chain)  # both by the batch's statistics
    assert not unchanged(model, before)


def test_without_batch_norm_samples_are_independent():
    model, z = ResNetGeneratorModel(8, 1, 4, block_out_channels=(8, 8), batch_norm=False).train(), torch.randn(6, 4)
    assert not list(model.buffers())
    assert_close(model(z).sample[:3], model(z[:3]).sample)
    with model.sampling(), model.z_chain():
        assert model(z).sample.shape == (6, 1, 8, 8)
