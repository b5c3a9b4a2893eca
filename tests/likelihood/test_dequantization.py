"""Likelihoods from log Z: the integral on a grid, bits per dimension against discrete sums, dequantisation."""

import math

import numpy as np
import pytest
import torch
from known_log_z import Z, gaussian, seeded
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from hf_ebm.likelihood.base_distributions import Box
from hf_ebm.likelihood.dequantization import (
    bits_per_dim,
    dequantise_normal,
    dequantise_uniform,
    log_likelihood,
    log_z_on_grid,
)


def test_log_z_on_grid():
    target = gaussian(2, 0.6, temperature=0.3)
    assert log_z_on_grid(target.energy_fn, 6.0, 200, 0.3, batch_size=999) == pytest.approx(target.log_z, abs=1e-5)
    assert log_z_on_grid(lambda x: torch.full((len(x),), 2.0), 3.0, 5, 0.5) == pytest.approx(math.log(36.0) - 4.0)
    slope = log_z_on_grid(lambda x: 2 * x[:, 0], 1.0, 100)
    assert slope == pytest.approx(math.log(2 * math.sinh(2.0)), abs=1e-3)
    wide = log_z_on_grid(lambda x: 0.5 * x.square().sum(dim=1), 1.0, 200)  # counts what lies in the square only
    assert wide == pytest.approx(2 * math.log(math.sqrt(2 * math.pi) * math.erf(1 / math.sqrt(2))), abs=1e-4)


def test_log_likelihood_is_the_normalised_density():
    target = gaussian(2, 0.6, temperature=0.2)
    i = torch.arange(2)
    covariance = 0.2 * 0.5 * 0.6 ** (i[:, None] - i).abs().float()
    x = target.samples[:20]
    expected = MultivariateNormal(torch.tensor([-1.0, 1.0]), covariance).log_prob(x)
    assert_close(log_likelihood(target.energy_fn(x), target.log_z, 0.2), expected, atol=1e-4, rtol=1e-4)


# --- bits per dimension ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels", [17, 64, 256])
def test_bits_per_dim_against_the_discrete_sum(num_levels):
    """Three independent Gaussians: bits of the discretised data by the cumulative distribution.

    With uniform noise the bound is loose by half the variance of log p over a bin, ``width^2 / (24 std^2)`` nats for
    narrow bins, ``width = 2 / (L - 1)``.
    """
    std, width = 0.12, 2 / (num_levels - 1)
    density = Normal(torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64), std)
    levels = torch.linspace(-1, 1, num_levels, dtype=torch.float64)[:, None]
    probability = density.cdf(levels + width / 2) - density.cdf(levels - width / 2)
    exact = (
        -torch.special.xlogy(probability, probability).div(math.log(2)).sum(dim=0).mean().item()
    )  # bits per dimension of data from the model

    y = torch.multinomial(probability.T, 100_000, replacement=True, generator=seeded()).T
    data, bits = levels[:, 0][y], {}
    for name, (x, log_q) in {
        "uniform": dequantise_uniform(data, num_levels, seeded()),
        "normal": dequantise_normal(data, 0.4 * width, num_levels, seeded()),
    }.items():
        bits[name] = bits_per_dim(density.log_prob(x).sum(dim=1), log_q, 3)
    slack = width**2 / (24 * std**2) / math.log(2)
    of_data = -probability.log2().gather(0, y).mean().item()  # the same data: their chance cancels
    assert exact == pytest.approx(of_data, abs=0.02)
    assert bits["uniform"].mean().item() - of_data == pytest.approx(slack, abs=0.1 * slack + 0.001)
    assert bits["normal"].mean().item() > of_data + slack


def test_bits_are_exact_where_the_noise_is_the_models():
    """Noise that is proportional to the density in the bin makes the bound tight, whatever the draw."""
    x = torch.tensor([[0.0, 0.25], [-1.0, 1.0]], dtype=torch.float64)  # levels of 17, spaced by 0.125
    std, half = 0.03, 1 / 16
    noisy, log_q = dequantise_normal(x, std, 17, seeded())
    log_p = Normal(x, std).log_prob(noisy).sum(dim=1) - 2 * math.log(4)  # a quarter of the mass at each of four levels
    inside = math.log(math.erf(half / std / math.sqrt(2)))
    assert_close(bits_per_dim(log_p, log_q, 2), torch.full((2,), 2.0 - inside / math.log(2), dtype=torch.float64))
    assert ((noisy - x).abs() < half).all()


def test_the_uniform_density_costs_all_bits():
    for num_levels, x in ((17, torch.full((3, 2), 0.5)), (256, torch.tensor([[-1.0], [1.0]]))):
        noisy, log_q = dequantise_uniform(x, num_levels, seeded())
        box = Box.of_levels(num_levels)
        log_p = torch.full((len(x),), -x.shape[1] * math.log(box.high - box.low))
        assert_close(bits_per_dim(log_p, log_q, x.shape[1]), torch.full((len(x),), math.log2(num_levels)))
        assert ((noisy > box.low) & (noisy < box.high)).all()


@pytest.mark.parametrize("num_levels", [17, 256])
def test_dequantise_fills_the_bins(num_levels):
    levels = torch.arange(num_levels).repeat(400)[:, None]
    x, half = levels / ((num_levels - 1) / 2) - 1.0, 1 / (num_levels - 1)
    noisy, log_q = dequantise_uniform(x, num_levels, seeded())
    share = (noisy - x) / (2 * half) + 0.5
    assert share.min() > -1e-3 and share.max() < 1 + 1e-3
    assert share.mean() == pytest.approx(0.5, abs=Z * math.sqrt(1 / 12 / len(x)))
    assert share.var() == pytest.approx(1 / 12, rel=0.1)
    assert log_q.exp() * 2 * half == pytest.approx(1)
    assert torch.equal(noisy, dequantise_uniform(x, num_levels, seeded())[0])
    for std in (0.1 * half, half, 20 * half):  # cut off: nothing leaves the bin, and the density integrates to one
        noisy, log_q = dequantise_normal(x.double(), std, num_levels, seeded())
        noise = noisy - x
        assert noise.abs().max() < half * (1 + 1e-6)
        grid = torch.linspace(-half, half, 20_001, dtype=torch.float64)
        cut = Normal(0.0, std).log_prob(grid).exp()
        cut = cut / torch.trapezoid(cut, grid)
        order = noise[:, 0].argsort()
        expected = torch.from_numpy(np.interp(noise[order, 0], grid, cut))
        assert_close(log_q[order].exp(), expected, rtol=2e-3, atol=0)
        assert noise.var() == pytest.approx(torch.trapezoid(cut * grid**2, grid).item(), rel=0.1)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_likelihood_arguments():
    with pytest.raises(ValueError, match="temperature"):
        log_likelihood(torch.zeros(2), 0.0, 0.0)
    with pytest.raises(ValueError, match="num_dims"):
        bits_per_dim(torch.zeros(1), torch.zeros(1), 0)
    with pytest.raises(ValueError, match="num_levels"):
        dequantise_uniform(torch.zeros(1, 1), 1)
    with pytest.raises(ValueError, match="noise_std"):
        dequantise_normal(torch.zeros(1, 1), 0.0)
    for x in (torch.tensor([[0.3]]), torch.tensor([[1.125]]), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match="num_levels=17"):
            dequantise_uniform(x, 17)
    for settings in ({"limit": 0.0}, {"resolution": 0}, {"temperature": -1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            log_z_on_grid(lambda x: x[:, 0], **{"limit": 1.0, **settings})
    with pytest.raises(ValueError, match="not a number"):
        log_z_on_grid(lambda x: x[:, 0] * math.nan, 1.0, 4)
