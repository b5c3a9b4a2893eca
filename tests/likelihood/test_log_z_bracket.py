"""The bracket of log Z on targets with known log Z: narrow on easy ones, valid on hard ones."""

import math

import pytest
import torch
from known_log_z import check_bracket, gaussian, lower_error, mixture, seeded, upper_error
from torch.distributions import Normal

from hf_ebm import DiffusionCoefficients, HMCScheduler, MLPEnergyConfig, MLPEnergyModel
from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import GaussianBase
from hf_ebm.likelihood.dequantization import log_z_on_grid

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.mark.parametrize(
    "target, fit, settings",
    [
        (gaussian(2, 0.6), GaussianBase.fit_diagonal, {"num_temperatures": 80}),
        (gaussian(64, 0.8, count=16_000), GaussianBase.fit_full, {"num_temperatures": 30, "num_steps": 2}),
        (mixture(8), GaussianBase.fit_full, {"num_temperatures": 40, "scheduler": HMCScheduler(num_leapfrog_steps=2)}),
        (
            mixture(16),
            GaussianBase.fit_full,
            {"num_temperatures": 40, "num_steps": 2, "scheduler": HMCScheduler(num_leapfrog_steps=3)},
        ),
        (gaussian(8, 0.3, temperature=0.04), GaussianBase.fit_diagonal, {"num_temperatures": 100}),
        (mixture(2, temperature=5.0), GaussianBase.fit_diagonal, {"num_temperatures": 60}),
    ],
    ids=[
        "gaussian-2",
        "gaussian-64",
        "mixture-8",
        "mixture-16",
        "gaussian-8-cold",
        "mixture-2-hot",
    ],
)
def test_two_decimals(target, fit, settings):
    """The standard errors are 0.002 to 0.003; the base is never the target: diagonal, of one mode, or from data."""
    num_chains = 2_500 if target.samples.shape[1] == 64 else 4_000
    bracket = estimate_log_z(
        target.energy_fn,
        fit(target.samples, 0.01),
        target.samples[-num_chains:],
        target.temperature,
        num_chains=num_chains,
        batch_size=4_000,
        generator=seeded(1),
        **settings,
    )
    assert abs(bracket.log_z_lower - target.log_z) < 0.01
    assert abs(bracket.log_z_upper - target.log_z) < 0.01
    check_bracket(bracket, target.log_z)
    assert 0.001 < lower_error(bracket) < 0.0035 and 0.001 < upper_error(bracket) < 0.0035
    assert 0.9 * num_chains < bracket.effective_sample_size < num_chains
    assert 0.9 * num_chains < bracket.effective_sample_size_reverse < num_chains
    inner = settings["num_temperatures"] - 2
    assert bracket.acceptance_rate.shape == bracket.step_size.shape == (inner,)
    assert ((bracket.acceptance_rate > 0.45) & (bracket.acceptance_rate <= 1)).all()


# --- honesty --------------------------------------------------------------------------------------------------------


def test_a_short_schedule_gives_a_wide_bracket():
    """From a base far off, a few temperatures miss by many nats on both sides, more of them close in."""
    target, gaps = gaussian(32, 0.7, count=200), []
    for num_temperatures in (2, 16, 160):
        bracket = estimate_log_z(
            target.energy_fn,
            GaussianBase.diagonal(torch.zeros(32), 1.0),
            target.samples,
            num_chains=200,
            num_temperatures=num_temperatures,
            generator=seeded(0),
        )
        check_bracket(bracket, target.log_z)
        gaps.append(bracket.gap)
        if num_temperatures == 2:
            assert bracket.log_z_lower < target.log_z - 5 and bracket.log_z_upper > target.log_z + 5
            assert bracket.effective_sample_size < 5 and bracket.acceptance_rate.shape == (0,)
    assert gaps[0] > 2 * gaps[1] > 6 * abs(gaps[2])


def test_a_mode_that_the_walk_misses_is_seen_from_above():
    """The base sits in one of two equal, distant modes: the lower bound is short of log 2, and the gap shows it."""
    std, centre = 0.3, 6.0

    def energy_fn(x):
        return -torch.logsumexp(-0.5 * ((x - torch.tensor([[-centre, centre]])) / std) ** 2, dim=1)

    log_z = math.log(2 * std) + 0.5 * math.log(2 * math.pi)
    samples = centre * torch.tensor([1.0, -1.0]).repeat(200)[:, None] + std * torch.randn(400, 1, generator=seeded())
    base = GaussianBase.diagonal(torch.tensor([-centre]), 0.5)
    bracket = estimate_log_z(
        energy_fn, base, samples, num_chains=400, num_temperatures=60, num_steps=2, generator=seeded(1)
    )
    check_bracket(bracket, log_z)
    assert bracket.log_z_lower == pytest.approx(log_z - math.log(2), abs=0.05)
    assert bracket.gap > math.log(2) - 0.05


def test_samples_that_are_not_the_models_err_to_either_side():
    target = gaussian(2, 0.0)
    base = GaussianBase.diagonal(torch.tensor([-1.0, 1.0]), 1.5)
    centred = target.samples - torch.tensor([-1.0, 1.0])
    error = {}
    for stretch in (0.1, 2.0):
        samples = torch.tensor([-1.0, 1.0]) + stretch * centred
        bracket = estimate_log_z(target.energy_fn, base, samples, num_temperatures=10, generator=seeded(0))
        error[stretch] = bracket.log_z_upper - target.log_z
    assert error[0.1] > 0.1 and error[2.0] < -0.1


# --- models of the package ------------------------------------------------------------------------------------------


def test_an_energy_model_against_the_grid():
    """Random weights plus a quadratic, which makes the density integrable; E has kinks and several basins."""
    config = MLPEnergyConfig(
        data_dim=2, num_timesteps=1, hidden_dims=(32,), num_frequencies=8, frequency_scales=(1.0, 2.0)
    )
    model = MLPEnergyModel(config).eval()
    torch.nn.init.normal_(model.mlp.out.weight, std=0.6)

    def energy_fn(x):
        return model(x, 0).energy + x.square().sum(dim=1)

    temperature, line = 0.5, torch.linspace(-4, 4, 321)
    log_z = log_z_on_grid(energy_fn, 4.0, 200, temperature)
    assert log_z == pytest.approx(log_z_on_grid(energy_fn, 5.0, 321, temperature), abs=1e-4)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        density = torch.softmax(-energy_fn(grid).double() / temperature, dim=0)
    cells = torch.multinomial(density, 2_000, replacement=True, generator=seeded())
    samples = grid[cells] + 0.025 * (torch.rand(2_000, 2, generator=seeded(1)) - 0.5)
    bracket = estimate_log_z(
        energy_fn,
        GaussianBase.fit_diagonal(samples),
        samples,
        temperature,
        num_chains=2_000,
        num_temperatures=80,
        batch_size=2_000,
        generator=seeded(2),
    )
    check_bracket(bracket, log_z)
    assert abs(bracket.log_z_lower - log_z) < 0.02 and abs(bracket.log_z_upper - log_z) < 0.02
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_log_z_of_one_denoising_step():
    """``E(x_t, t) - log q(x_next | x_t)`` of DDAEBM, with ``E = ||x||^2 / (2 v)``: x_next is Gaussian."""
    coefficients, variance = DiffusionCoefficients.vp(num_timesteps=4), 0.7
    t, x_next = torch.tensor([1]), torch.tensor([[0.8, -1.5]])
    beta = coefficients.betas[2].item()
    marginal = Normal(0.0, math.sqrt((1 - beta) * variance + beta))
    log_z = marginal.log_prob(x_next).sum().item() + math.log(2 * math.pi * variance)

    def energy_fn(x):
        return 0.5 * x.square().sum(dim=1) / variance - coefficients.log_q_step(x_next, x, t)

    base = GaussianBase.diagonal(torch.zeros(2), math.sqrt(variance))
    bracket = estimate_log_z(
        energy_fn, base, num_chains=3_000, num_temperatures=60, batch_size=3_000, generator=seeded()
    )
    assert abs(bracket.log_z_lower - log_z) < 0.01


def test_walkers_from_copies_of_a_sample_count_as_one():
    """Four copies of each of 50 samples: the bound is theirs, its interval and effective samples those of 50."""
    target = gaussian(2, 0.6)
    base = GaussianBase.fit_diagonal(target.samples, 0.01)
    options = {"num_chains": 20, "num_temperatures": 3, "generator": seeded(1)}
    copies = target.samples[:50].repeat_interleave(4, dim=0)
    bracket = estimate_log_z(target.energy_fn, base, copies, target.temperature, **options)
    assert bracket.num_reverse_starts == 50 and 1 <= bracket.effective_sample_size_reverse <= 50
    assert bracket.log_z_upper_interval[0] <= bracket.log_z_upper <= bracket.log_z_upper_interval[1]
    moved = copies + 1e-4 * torch.randn(copies.shape, generator=seeded(2))  # as by a chain: no longer identical
    groups = torch.arange(50).repeat_interleave(4)
    for given, number in ((groups, 50), (None, 200), (torch.zeros(200), 1)):
        options["generator"] = seeded(1)
        bracket = estimate_log_z(target.energy_fn, base, moved, target.temperature, given, **options)
        assert bracket.num_reverse_starts == number and (bracket.log_z_upper_interval is None) == (number == 1)
    with pytest.raises(ValueError, match=r"sample_groups must have one number per sample, shape \(200,\), got \(50,\)"):
        estimate_log_z(target.energy_fn, base, moved, target.temperature, groups[:50], **options)
