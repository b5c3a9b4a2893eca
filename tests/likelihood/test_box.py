"""The box's coordinates: the substitution preserves every integral, and points stay inside."""

import math

import pytest
import torch
from known_log_z import lower_error, upper_error
from torch.testing import assert_close

from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import Box, GaussianBase

pytestmark = pytest.mark.usefixtures("few_resamples")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_there_and_back():
    box, x = Box(-2.0, 1.0), torch.linspace(-1.999, 0.999, 50, dtype=torch.float64)[:, None]
    assert_close(box.to_box(box.from_box(x)), x)
    v = torch.randn(2_000, 3, generator=seeded()) * 4
    assert ((box.to_box(v) >= -2) & (box.to_box(v) <= 1)).all()
    assert torch.isfinite(box.from_box(torch.tensor([[-2.0, 1.0]]))).all()


def test_the_volume_change_is_the_jacobians():
    box, v = Box(-1.0625, 1.0625), torch.randn(4, 2, 3, dtype=torch.float64, generator=seeded())
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda u: box.to_box(u).flatten(), v[i]).reshape(6, 6)
        assert box.log_volume_change(v)[i].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item())


def test_the_bins_of_the_levels():
    assert Box.of_levels(2) == Box(-2.0, 2.0)
    assert Box.of_levels(17).high == 1 + 1 / 16


def test_a_constant_energy_has_the_boxs_volume_at_once():
    """From the standard normal, which is the box's uniform density in v, every weight is Z."""
    box = Box(-1.0, 3.0)
    base = GaussianBase.diagonal(torch.zeros(5), 1.0)
    bracket = estimate_log_z(
        box.energy_in_v(lambda x: 0 * x.sum(dim=1) + 0.6, 0.2),
        base,
        torch.randn(10, 5, generator=seeded()),
        0.2,
        num_chains=10,
        num_temperatures=3,
    )
    expected = 5 * math.log(4) - 3.0
    assert bracket.log_z_lower == pytest.approx(expected, abs=1e-4)
    assert bracket.log_z_upper == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dims", [2, 4])
def test_an_energy_without_integral_over_space_has_one_over_the_box(dims):
    """``E = x``: exp(-E) grows without end; over the box Z is ``(T (e^(1/T) - e^(-1/T)))^D``, and samples are exact."""
    temperature, number = 0.3, 2_000
    log_z = dims * math.log(temperature * (math.exp(1 / temperature) - math.exp(-1 / temperature)))
    u = torch.rand(number, dims, dtype=torch.float64, generator=seeded())
    low, high = math.exp(1 / temperature), math.exp(-1 / temperature)
    samples = -temperature * (low + u * (high - low)).log()  # inverse of the distribution function
    box = Box(-1.0, 1.0)
    bracket = estimate_log_z(
        box.energy_in_v(lambda x: x.sum(dim=1), temperature),
        GaussianBase.diagonal(torch.zeros(dims), 1.0),
        box.from_box(samples).float(),
        temperature,
        num_chains=number,
        num_temperatures=100,
        batch_size=number,
        generator=seeded(1),
    )
    assert abs(bracket.log_z_lower - log_z) < 4.5 * lower_error(bracket) < 0.1
    assert abs(bracket.log_z_upper - log_z) < 4.5 * upper_error(bracket) < 0.1


def test_bad_boxes():
    for low, high in ((1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="low and high"):
            Box(low, high)
    with pytest.raises(ValueError, match="num_levels"):
        Box.of_levels(1)
    for value in (1.1, -1.1, math.nan):
        with pytest.raises(ValueError, match="must lie in"):
            Box(-1.0, 1.0).from_box(torch.tensor([[0.0, value]]))
