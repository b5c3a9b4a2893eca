"""The networks of DDAEBM on images: shapes, sizes, bit-exact reloading, invalid input."""

import json

import pytest
import torch
from diffusers.models.attention_processor import Attention
from reloading import reload_bit_exact
from torch.testing import assert_close
from transformers import AutoModel

from hf_ebm import PairInferenceModel, UNetEnergyConfig, UNetEnergyModel, UNetGeneratorModel
from hf_ebm.models.presets import PRESETS, build_ddaebm_models, ddaebm_model_settings

SMALL = {"base_channels": 8, "layers_per_block": 1}
SIZES = [
    {"image_size": 8, "num_channels": 1, "channel_multipliers": (1, 2), "attention_resolutions": (4,)},
    {"image_size": 20, "num_channels": 5, "channel_multipliers": (1, 2, 3), "attention_resolutions": ()},
    {"image_size": 12, "num_channels": 2, "patch_size": 3, "channel_multipliers": (1, 2), "attention_resolutions": ()},
    {"image_size": 256, "num_channels": 3, "channel_multipliers": (1, 1, 1, 1, 1, 2), "attention_resolutions": (8,)},
]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s['image_size']}x{s['num_channels']}")
def test_any_size_and_channels(size):
    shape = (2, size["num_channels"], size["image_size"], size["image_size"])
    x, t = torch.randn(shape), torch.tensor([0, 3])
    energy_model = UNetEnergyModel(UNetEnergyConfig(**SMALL, **size))
    generator_model = UNetGeneratorModel(**SMALL, **size, latent_dim=3)
    inference_model = PairInferenceModel(
        image_size=size["image_size"], num_channels=size["num_channels"], latent_dim=3, block_out_channels=(8, 8, 8)
    )
    assert energy_model(x, t).energy.shape == (2,)
    x0_pred = generator_model(x, t, torch.randn(2, 3)).sample
    assert x0_pred.shape == shape and x0_pred.abs().max() <= 1
    mean, logvar = inference_model(x, x, t, return_dict=False)
    assert mean.shape == logvar.shape == (2, 3)


def test_energy_starts_as_half_squared_norm_and_is_the_residual_afterwards(tiny_pipeline):
    config = tiny_pipeline.energy_model.config
    x = torch.randn(3, 1, 8, 8)
    fresh = UNetEnergyModel(config)
    assert_close(fresh(x, 2).energy, 0.5 * x.square().flatten(1).sum(1))
    trained = tiny_pipeline.energy_model.eval()
    predicted = trained.unet(x, torch.full((3,), 2)).sample
    assert_close(trained(x, 2).energy, 0.5 * (x - predicted).square().flatten(1).sum(1))


def test_time_and_latent_matter(tiny_pipeline):
    x, z = torch.randn(2, 1, 8, 8), torch.randn(2, 4)
    energy_model, generator_model = tiny_pipeline.energy_model.eval(), tiny_pipeline.generator_model.eval()
    inference_model = tiny_pipeline.inference_model.eval()
    assert not torch.allclose(energy_model(x, 0).energy, energy_model(x, 3).energy)
    assert_close(energy_model(x).energy, energy_model(x, 0).energy)
    assert not torch.allclose(generator_model(x, 0, z).sample, generator_model(x, 0, z + 1).sample)
    assert not torch.allclose(generator_model(x, 0, z).sample, generator_model(x, 3, z).sample)
    assert not torch.allclose(inference_model(x, x, 0).mean, inference_model(x, x, 3).mean)
    assert not torch.allclose(inference_model(x, x, 0).mean, inference_model(x, 0 * x, 0).mean)


def test_gradient_penalty_goes_through_attention_twice():
    """Fused attention kernels have no second derivative: the energy must not use them."""
    size = {"image_size": 8, "num_channels": 1, "channel_multipliers": (1,), "attention_resolutions": (8,)}
    model = UNetEnergyModel(UNetEnergyConfig(**SMALL, **size)).double()
    assert any(isinstance(module, Attention) for module in model.modules())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 1, 8, 8, dtype=torch.double, requires_grad=True)
    model.eval()

    def penalty():
        (grad,) = torch.autograd.grad(model(x, 0).energy.sum(), x, create_graph=True)
        return grad.square().sum()

    weight = next(m for m in model.modules() if isinstance(m, Attention)).to_q.weight
    (analytic,) = torch.autograd.grad(penalty(), weight)
    eps = 1e-3
    with torch.no_grad():
        weight[0, 0] += eps
    up = penalty().item()
    with torch.no_grad():
        weight[0, 0] -= 2 * eps
    down = penalty().item()
    assert_close(analytic[0, 0].item(), (up - down) / (2 * eps), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["generator_model", "energy_model", "inference_model"])
@pytest.mark.parametrize("variant", [None, "other"])
def test_reload_is_bit_exact(tiny_pipeline, tmp_path, name, variant):
    model = getattr(tiny_pipeline, name)
    again = reload_bit_exact(model, tmp_path, variant)
    assert not again.training


def test_checkpoint_of_another_architecture(tiny_pipeline, tmp_path):
    """A changed config.json is detected from the weights, instead of leaving tensors random."""
    tiny_pipeline.energy_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["layers_per_block"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another architecture"):
        UNetEnergyModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another architecture"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"layers_per_block": 2}, {"base_channels": 16}])
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}])
def test_generator_checkpoint_of_another_architecture(tmp_path, caplog, change, options):
    model = build_ddaebm_models(ddaebm_model_settings("digits"))[0]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=r"another architecture .* 1?\d\d? m(issing|ismatched) \(first: "):
        type(model).from_pretrained(tmp_path, **options)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert info["missing_keys"] == [] and sum(p.numel() for p in again.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


PUBLISHED = {"cifar10": (48.4, 40.3, 4.8), "celeba64": (25.7, 19.7, 15.1), "lsun128": (37.9, 30.3, 27.8)}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_about_the_published_sizes(preset):
    with torch.device("meta"):
        models = build_ddaebm_models(ddaebm_model_settings(preset))
    for model, published in zip(models, PUBLISHED[preset], strict=True):
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / published - 1) < 0.06


def test_preset_overrides_reach_the_networks():
    settings = ddaebm_model_settings("digits", num_timesteps=2, latent_dim=7, overrides={"unet": {"base_channels": 8}})
    assert settings.pop("network") == "unet" and set(settings) == {"generator", "energy", "inference"}
    assert settings["generator"]["latent_dim"] == settings["inference"]["latent_dim"] == 7
    assert settings["energy"]["base_channels"] == settings["generator"]["base_channels"] == 8
    assert all(part["num_timesteps"] == 2 for part in settings.values())
    assert PRESETS["digits"]["unet"]["base_channels"] != 8  # the preset itself is untouched


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddaebm_model_settings("imagenet"), "preset"),
        (lambda: ddaebm_model_settings("digits", overrides={"encoder": {}}), "encoder"),
        (lambda: build_ddaebm_models(ddaebm_model_settings("digits", overrides={"unet": {"widht": 3}})), "models"),
        (lambda: UNetGeneratorModel(image_size=30, channel_multipliers=(1, 2, 2)), "divisible by 4"),
        (lambda: UNetGeneratorModel(image_size=8, base_channels=6, channel_multipliers=(1, 2)), "base_channels"),
        (lambda: PairInferenceModel(image_size=10, block_out_channels=(8, 8, 8)), "divisible by 4"),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"shape \(B, 1, 8, 8\)"),
        (torch.zeros(1, 1, 16, 16), r"shape \(B, 1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "floating-point"),
        ([[0.0]], "floating-point"),
    ],
)
def test_energy_refuses_wrong_inputs(tiny_pipeline, x, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.energy_model(x, 0)


def test_generator_refuses_latents_of_another_width(tiny_pipeline):
    width = tiny_pipeline.generator_model.config.latent_dim
    with pytest.raises(ValueError, match=rf"z must have shape \(B, {width}\) for this model, got \(2, {width + 1}\)"):
        tiny_pipeline.generator_model(torch.zeros(2, 1, 8, 8), 0, torch.zeros(2, width + 1))


@pytest.mark.parametrize("t", [-1, 4, torch.tensor([0, 4]), torch.tensor(-1)])
def test_noise_levels_that_a_model_does_not_have_are_refused(tiny_pipeline, t):
    x, z = torch.zeros(2, 1, 8, 8), torch.zeros(2, tiny_pipeline.generator_model.config.latent_dim)
    for call in (
        lambda: tiny_pipeline.energy_model(x, t),
        lambda: tiny_pipeline.generator_model(x, t, z),
        lambda: tiny_pipeline.inference_model(x, x, t),
    ):
        with pytest.raises(ValueError, match=r"timestep must be in 0\.\.3, the noise levels of this model, got"):
            call()
