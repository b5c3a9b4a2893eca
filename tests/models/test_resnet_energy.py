"""The residual energy: its blocks, spectral norm of every layer, and both along a chain."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.testing import assert_close

from hf_ebm import ResNetEnergyConfig, ResNetEnergyModel
from hf_ebm.langevin import energy_and_grad
from hf_ebm.models.resnet_energy import MIN_SIZE, EnergyBlock, convolve_and_average


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


# --- along a chain --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_one_convolution_that_averages(kernel_size):
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    direct = F.avg_pool2d(F.conv2d(x, weight, padding=kernel_size // 2), 2)
    at_once = convolve_and_average(x, weight)
    assert_close(at_once, direct)
    grad = torch.randn_like(direct)
    assert_close(torch.autograd.grad(at_once, (x, weight), grad), torch.autograd.grad(direct, (x, weight), grad))


@pytest.mark.parametrize("size", [MIN_SIZE // 2, MIN_SIZE])
def test_a_block_is_what_the_paper_writes(size):
    block, x = EnergyBlock(3, 8, first=False, downsample=True).double(), torch.randn(2, 3, size, size).double()
    written = block.conv2(F.relu(block.conv1(F.relu(x)))) + block.shortcut(x)
    assert_close(block(x), F.avg_pool2d(written, 2))
