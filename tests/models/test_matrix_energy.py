"""The residual energy on a few pixels as matrix products: the same energies, along chains alone."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from hf_ebm import ResNetEnergyConfig, ResNetEnergyModel
from hf_ebm.langevin import energy_and_grad
from hf_ebm.models.matrix_energy import MAX_VALUES, MatrixEnergy, convolution_matrix


def make_energy(**settings):
    torch.manual_seed(0)
    defaults = {"image_size": 8, "num_channels": 1, "patch_size": 2, "block_out_channels": (8, 12)}
    return ResNetEnergyModel(ResNetEnergyConfig(**defaults | {"num_downsamples": 1} | settings)).eval()


@pytest.fixture
def made(monkeypatch):
    """Of each `MatrixEnergy` that is made, the type of its matrices."""
    dtypes, init = [], MatrixEnergy.__init__

    def count(self, energy_model, dtype):
        dtypes.append(dtype)
        init(self, energy_model, dtype)

    monkeypatch.setattr(MatrixEnergy, "__init__", count)
    return dtypes


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_matrix_is_the_convolution(kernel_size, average):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.randn(5, 3, kernel_size, kernel_size, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=kernel_size // 2)
    expected = F.avg_pool2d(expected, 2) if average else expected
    found = x.permute(0, 2, 3, 1).flatten(1) @ convolution_matrix(weight, 4, average)
    assert_close(found, expected.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_channels": 3},
        {"patch_size": 1, "image_size": 4, "num_downsamples": 2},
        {"num_downsamples": 0},  # its second block has no 1x1 convolution
        {"block_out_channels": (8, 8), "num_downsamples": 0, "spectral_norm": False},
        {"block_out_channels": (4,), "num_channels": 1, "num_downsamples": 0},  # nor has its only one: 4 to 4 channels
    ],
)
def test_chains_have_the_energies_and_gradients_of_the_convolutions(made, settings):
    energy_model = make_energy(**settings).double()
    x = torch.randn(5, *energy_model.sample_shape, dtype=torch.float64)
    expected = energy_and_grad(lambda x: energy_model(x).energy, x)
    assert not made
    with energy_model.chain():
        for _ in range(3):
            found = energy_and_grad(lambda x: energy_model(x).energy, x)
    assert made == [torch.float64]
    assert_close(found, expected)


def test_under_autocast_the_matrices_are_of_its_type(made):
    energy_model = make_energy()
    x = torch.randn(64, *energy_model.sample_shape)
    with energy_model.chain():
        expected = energy_model(x).energy
        with torch.autocast("cpu", torch.bfloat16):
            found = [energy_model(x).energy for _ in range(2)]
    assert made == [torch.float32, torch.bfloat16]
    assert found[0].dtype == torch.float32 and torch.equal(*found)
    assert not torch.equal(found[0], expected)
    assert_close(found[0], expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_each_chain_makes_its_own(made):
    energy_model = make_energy(spectral_norm=False)
    x = torch.randn(2, *energy_model.sample_shape)
    with energy_model.chain():
        before = energy_model(x).energy
        with energy_model.chain():  # a chain within a chain
            energy_model(x)
        energy_model(x)
    with torch.no_grad():
        energy_model.head.weight.neg_()
    with energy_model.chain():
        after = energy_model(x).energy
    assert len(made) == 3
    assert_close(after, -before)


def test_wide_and_large_networks_stay_convolutions(made):
    width = 2 * int((MAX_VALUES / 4) ** 0.5)  # twice what 2x2 places averaged to one may have
    for settings in ({"block_out_channels": (width,), "image_size": 4}, {"image_size": 64, "num_channels": 3}):
        energy_model = make_energy(**settings)
        with energy_model.chain():
            energy_model(torch.randn(1, *energy_model.sample_shape))
    assert not made


def test_a_moving_spectral_norm_keeps_the_convolutions(made):
    energy_model = make_energy(power_iteration="every_forward").train()
    with energy_model.chain():
        energy_model(torch.randn(2, *energy_model.sample_shape))
    assert not made


def test_training_between_chains_reaches_every_weight(made):
    """Outside a chain the convolutions are trained as ever."""
    energy_model = make_energy().train()
    x = torch.randn(2, *energy_model.sample_shape)
    with energy_model.chain():
        energy_model(x)
    energy_model(x).energy.sum().backward()
    assert made and all(parameter.grad is not None for parameter in energy_model.parameters())
