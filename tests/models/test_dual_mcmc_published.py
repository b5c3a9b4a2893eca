"""The published networks of Dual-MCMC Teaching: the authors' outputs, initial weights, and models saved before them."""

import json

import pytest
import torch
from reference_networks import reference_checkpoint, reference_tensors
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from hf_ebm import ConvInferenceModel, ResNetEnergyConfig, ResNetEnergyModel, ResNetGeneratorModel
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.upsampling import double_size
from hf_ebm.pipelines.convert_dual_mcmc import convert_dual_mcmc

DATA = ("cifar10", "celeba64")
SMALL = {
    "generator": {"block_out_channels": (8, 8, 8, 8)},
    "energy": {"block_out_channels": (8, 8, 8, 8)},
    "inference": {"block_out_channels": (4, 8, 16, 32)},
}


@pytest.mark.parametrize("data", DATA)
def test_the_authors_outputs(data):
    """In eval mode, and the generator also with the statistics of its batch."""
    pipe = convert_dual_mcmc(reference_checkpoint(data), data)
    generator, energy, inference = (
        reference_tensors(f"{data}_{name}") for name in ("generator", "energy", "inference")
    )
    found = {
        "output_eval": pipe.generator_model(generator["input"]).sample,
        "output_batch_statistics": pipe.generator_model.train()(generator["input"]).sample,
    }
    for name, images in found.items():
        assert_close(images[: len(generator[name])], generator[name], rtol=1e-5, atol=1e-5)
    assert_close(pipe.energy_model(energy["input"]).energy, energy["output_eval"][:, 0], rtol=1e-5, atol=1e-7)
    mean, logvar = pipe.inference_model(inference["input"], return_dict=False)
    assert_close(mean, inference["mean"], rtol=1e-5, atol=1e-5)
    assert_close(logvar, inference["logvar"], rtol=1e-5, atol=1e-5)


def test_initial_weights_are_the_published_ones():
    """Xavier-normal convolutions, batch-norm weights from N(0, 1), PyTorch's other ones."""
    generator, energy, inference = build_dual_mcmc_models(
        dual_mcmc_model_settings("cifar10", latent_dim=48, overrides={**SMALL, "inference": {}})
    )
    norms = torch.cat([m.weight for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]).detach()
    assert norms.abs().max() > 1.2 and abs(norms.mean()) < 0.5  # ones would have a mean of 1
    assert generator.linear_in.weight.abs().max() <= 48**-0.5  # uniform, as PyTorch's linear layers
    assert generator.blocks[0].conv1.bias.any() and generator.linear_in.bias.any()
    assert energy.head.parametrizations.weight.original.abs().max() <= 8**-0.5
    convs = {
        inference.convs[1].weight: 2.0 / ((256 + 512) * 16),
        inference.head.weight: 2.0 / ((1024 + 48) * 16),  # two 4x4 convolutions
        energy.blocks[1].conv1.parametrizations.weight.original: 2.0 / (16 * 9),
        generator.blocks[0].conv1.weight: 2.0 / (16 * 9),
    }
    for weight, variance in convs.items():
        assert weight.var().item() == pytest.approx(variance, rel=8.0 / weight.numel() ** 0.5)
    assert inference.conv_in.bias is None and all(conv.bias is None for conv in inference.convs)
    assert inference.head.bias.abs().max() <= (1024 * 16) ** -0.5 and inference.head.bias.any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 5, 3), (1, 1, 1, 2)])
def test_bilinear_doubling_keeps_the_corners_eager_and_compiled(monkeypatch, shape):
    x = torch.randn(shape, requires_grad=True)
    eager = double_size(x, "bilinear")
    assert_close(eager, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert_close(eager[..., row, column], x[..., row, column])
    weights = torch.randn_like(eager)
    (gradient,) = torch.autograd.grad((eager * weights).sum(), x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = double_size(x, "bilinear")
    assert_close(compiled, eager)
    assert_close(torch.autograd.grad((compiled * weights).sum(), x)[0], gradient)


def test_bilinear_doubling_keeps_the_type_under_autocast():
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert double_size(x, "bilinear").dtype == torch.bfloat16


def test_models_saved_before_these_options_load_with_the_same_numbers(tmp_path):
    """Their configs do not have them: nearest upsampling, biases, a first convolution of stride 1."""
    torch.manual_seed(3)
    generator = ResNetGeneratorModel(8, 1, 4, block_out_channels=(4, 4)).eval()
    inference = ConvInferenceModel(8, 1, 4, block_out_channels=(4, 8))
    energy = ResNetEnergyModel(ResNetEnergyConfig(image_size=8, num_channels=1, block_out_channels=(4, 4))).eval()
    z = torch.linspace(-1.0, 1.0, 8).reshape(2, 4)
    x = torch.linspace(-1.0, 1.0, 128).reshape(2, 1, 8, 8)
    with torch.no_grad():  # of the weights that this seed gave before the options
        numbers = [generator(z).sample.sum(), energy(x).energy.sum(), inference(x).mean.sum()]
    assert_close(torch.stack(numbers), torch.tensor([-9.2612524, -0.3297302, 0.2806177]), rtol=1e-4, atol=1e-5)
    options = {"upsample_mode", "initialization", "strided_conv_in", "conv_bias"}
    for name, model in (("g", generator), ("q", inference), ("e", energy)):
        model.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in options}))
        again = type(model).from_pretrained(tmp_path / name)
        given = z if name == "g" else x
        assert all(torch.equal(a, b) for a, b in zip(model(given).to_tuple(), again(given).to_tuple(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetGeneratorModel(8, 1, 4, block_out_channels=(4, 4), upsample_mode="cubic"), "upsample_mode"),
        (lambda: ResNetGeneratorModel(8, 1, 4, block_out_channels=(4, 4), initialization="zeros"), "initialization"),
        (lambda: ConvInferenceModel(8, 1, 4, block_out_channels=(4, 4), initialization="zeros"), "initialization"),
        (lambda: ConvInferenceModel(10, 1, 4, block_out_channels=(4, 4), strided_conv_in=True), "divisible by 4"),
        (lambda: ResNetEnergyModel(ResNetEnergyConfig(initialization="zeros")), "initialization"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
