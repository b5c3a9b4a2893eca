"""The bracket of log Z on targets whose log Z is known, and the likelihoods made of it against discrete sums."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from hf_ebm import (
    DiffusionCoefficients,
    HMCScheduler,
    LangevinScheduler,
    MALAScheduler,
    MLPEnergyConfig,
    MLPEnergyModel,
)
from hf_ebm.scoring.annealed_walk import AnnealedWalk, path_betas
from hf_ebm.scoring.annealing import estimate_log_z, log_mean_exp, weights_effective_sample_size
from hf_ebm.scoring.box import Box
from hf_ebm.scoring.gaussian_base import GaussianBase
from hf_ebm.scoring.likelihood import (
    bits_per_dim,
    dequantise_normal,
    dequantise_uniform,
    log_likelihood,
    log_z_on_grid,
)

Z = 4.5  # standard errors a right estimate may be off: once in 150,000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- targets with known log Z ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """An unnormalised energy, log Z of ``exp(-E / temperature)``, and exact samples of that density."""

    energy_fn: object
    log_z: float
    samples: torch.Tensor
    temperature: float = 1.0


def gaussian(dims, correlation, count=4_000, temperature=1.0, seed=0):
    """``E = (x - m)^T C^-1 (x - m) / 2`` with correlation ``rho^|i - j|``: log Z of the Gaussian with T C."""
    i = torch.arange(dims)
    covariance = 0.5 * correlation ** (i[:, None] - i).abs().float()
    mean, precision = torch.linspace(-1, 1, dims), covariance.inverse()
    factor = torch.linalg.cholesky(temperature * covariance)
    return Target(
        lambda x: 0.5 * (((x - mean.to(x)) @ precision.to(x)) * (x - mean.to(x))).sum(dim=1),
        0.5 * dims * math.log(2 * math.pi) + factor.diagonal().double().log().sum().item(),
        mean + torch.randn(count, dims, generator=seeded(seed)) @ factor.T,
        temperature,
    )


def mixture(dims, count=4_000, temperature=1.0, seed=0):
    """Three modes of weights .5 .3 .2, as ``E = -T log sum_i w_i exp(-||x - m_i||^2 / (2 std^2))``."""
    means, weights, std = torch.zeros(3, dims), torch.tensor([0.5, 0.3, 0.2]), 0.6
    means[:, :2] = torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 1.0]])
    modes = torch.multinomial(weights, count, replacement=True, generator=seeded(seed))

    def energy_fn(x):
        distance = ((x[:, None] - means) ** 2).sum(dim=2)
        return -temperature * torch.logsumexp(weights.log() - 0.5 * distance / std**2, dim=1)

    samples = means[modes] + std * torch.randn(count, dims, generator=seeded(seed + 1))
    return Target(energy_fn, 0.5 * dims * math.log(2 * math.pi * std**2), samples, temperature)


def check_bracket(bracket, log_z):
    """The bounds are on their sides of log Z, up to sampling error."""
    assert bracket.log_z_lower <= log_z + Z * bracket.log_z_lower_error
    assert bracket.log_z_upper >= log_z - Z * bracket.log_z_upper_error
    assert bracket.gap == bracket.log_z_upper - bracket.log_z_lower


@pytest.mark.parametrize(
    "target, fit, settings",
    [
        (gaussian(2, 0.6), GaussianBase.fit_diagonal, {"num_temperatures": 80}),
        (gaussian(8, 0.3), GaussianBase.fit_diagonal, {"num_temperatures": 100}),
        (gaussian(64, 0.8, count=16_000), GaussianBase.fit_full, {"num_temperatures": 50, "num_steps": 2}),
        (mixture(2), GaussianBase.fit_diagonal, {"num_temperatures": 60, "schedule": "linear"}),
        (mixture(8), GaussianBase.fit_full, {"num_temperatures": 40, "scheduler": HMCScheduler(num_leapfrog_steps=2)}),
        (gaussian(8, 0.3, temperature=0.04), GaussianBase.fit_diagonal, {"num_temperatures": 100}),
        (mixture(2, temperature=5.0), GaussianBase.fit_diagonal, {"num_temperatures": 60}),
    ],
    ids=["gaussian-2", "gaussian-8", "gaussian-64", "mixture-2", "mixture-8", "gaussian-8-cold", "mixture-2-hot"],
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
    assert 0.001 < bracket.log_z_lower_error < 0.0035 and 0.001 < bracket.log_z_upper_error < 0.0035
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
    """The base sits in one of two equal, distant modes: the lower bound is short of log 2, and the gap tells."""
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


# --- the walk -------------------------------------------------------------------------------------------------------


def test_a_base_that_is_the_target_is_exact_at_once():
    """Every weight is Z itself: the Jacobian, the base's constant and the temperature, to rounding."""
    factor = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.3, 2.0, 0.0, 0.0], [0.1, -0.4, 0.7, 0.0], [0.0, 0.2, 0.5, 1.1]])
    covariance, mean, temperature = (factor @ factor.T).double(), torch.arange(4.0).double().reshape(1, 2, 2), 0.3
    density = MultivariateNormal(mean.flatten(), covariance)
    for base, energy_fn in (
        (GaussianBase.full(mean, covariance), lambda x: -density.log_prob(x.flatten(1))),
        (
            GaussianBase.diagonal(mean, torch.tensor([[[0.5, 2.0], [0.7, 1.1]]])),
            lambda x: -Normal(mean, torch.tensor([[[0.5, 2.0], [0.7, 1.1]]])).log_prob(x).sum(dim=(1, 2, 3)),
        ),
    ):
        samples = base.from_white(torch.randn(5, 1, 2, 2, dtype=torch.float64))
        for num_temperatures in (2, 5):
            bracket = estimate_log_z(
                lambda x, energy_fn=energy_fn: temperature * (energy_fn(x) - 7.0),
                base,
                samples,
                temperature,
                num_chains=4,
                num_temperatures=num_temperatures,
            )
            assert bracket.log_z_lower == pytest.approx(7.0, abs=1e-5)
            assert bracket.log_z_upper == pytest.approx(7.0, abs=1e-5)
            assert bracket.log_z_lower_error < 1e-5 and bracket.effective_sample_size == pytest.approx(4)


@pytest.mark.parametrize("num_temperatures", [2, 3, 5])
def test_the_weights_mean_is_z_however_short_the_schedule(num_temperatures):
    """In one dimension 30,000 chains tell a walk that is weighed at the wrong point from a right one."""
    scale, shift, count = 0.8, 0.4, 30_000

    def energy_fn(x):
        return (0.5 * ((x - shift) / scale) ** 2)[:, 0]

    log_z = math.log(scale) + 0.5 * math.log(2 * math.pi)
    samples = shift + scale * torch.randn(count, 1, generator=seeded(3))
    bracket = estimate_log_z(
        energy_fn,
        GaussianBase.diagonal(torch.zeros(1), 1.0),
        samples,
        num_chains=count,
        num_temperatures=num_temperatures,
        batch_size=count,
        generator=seeded(1),
    )
    assert abs(bracket.log_z_lower - log_z) < Z * bracket.log_z_lower_error < 0.04
    assert abs(bracket.log_z_upper - log_z) < Z * bracket.log_z_upper_error < 0.04


def test_the_log_weight_is_the_sum_over_the_visited_points():
    """A walk of four temperatures by hand, from the points a recording sampler gives."""
    base = GaussianBase.diagonal(torch.tensor([0.5, -0.5]), torch.tensor([0.7, 1.3]))
    target = mixture(2, count=2, temperature=2.0)
    betas, visited = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64), []

    def energy_fn(x):
        return target.energy_fn(x)

    class Recorded(MALAScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            visited.append(None)

        def step(self, *args, **kwargs):
            output = super().step(*args, **kwargs)
            visited[-1] = output.current_sample
            return output

    walk = AnnealedWalk(energy_fn, base, target.temperature, Recorded(), 2, seeded(0), iter)
    start = torch.randn(6, 2, generator=seeded(5))
    for order in (betas, betas.flip(0)):
        visited.clear()
        log_weights, acceptance, end = walk.weigh(start, order, torch.tensor([0.6, 0.5], dtype=torch.float64))
        assert acceptance.shape == (2,) and torch.equal(end, visited[-1])
        expected = torch.zeros(6)
        points = [start, *[point for point in visited if point is not None]]
        for k, u in enumerate(points):
            x = base.mean + base.scale * u
            base_energy = -Normal(base.mean, base.scale).log_prob(x).sum(dim=1)
            expected += (order[k + 1] - order[k]).float() * (base_energy - target.energy_fn(x) / target.temperature)
        assert len(points) == 3 and not torch.equal(points[0], points[2])
        assert_close(log_weights.float(), expected)


def test_steps_follow_a_narrowing_target():
    """From width 1 to 0.02: the acceptance stays at its target, and the last step fits the target's width."""
    base = GaussianBase.diagonal(torch.zeros(3), 1.0)
    bracket = estimate_log_z(
        lambda x: 0.5 * (x / 0.02).square().sum(dim=1),
        base,
        samples=0.02 * torch.randn(200, 3),
        num_chains=200,
        num_temperatures=120,
        target_acceptance=0.7,
        num_adaptation_rounds=3,
        generator=seeded(),
    )
    late = slice(20, None)
    assert_close(bracket.acceptance_rate_reverse[late], bracket.acceptance_rate[late], atol=0.2, rtol=0)
    assert bracket.acceptance_rate[late].mean() == pytest.approx(0.7, abs=0.03)
    assert ((bracket.acceptance_rate[late] - 0.7).abs() < 0.25).all()
    assert bracket.step_size[0] > 0.6 and 0.01 < bracket.step_size[-1] < 0.05


def test_hmc_never_turns_further_than_a_quarter_of_the_base():
    bracket = estimate_log_z(
        lambda x: 0.5 * x.square().sum(dim=1) / 1.2,
        GaussianBase.diagonal(torch.zeros(1), 1.0),
        num_chains=50,
        num_temperatures=20,
        scheduler=HMCScheduler(step_size=2.0, num_leapfrog_steps=4),
    )
    assert (bracket.step_size <= math.pi / 8 + 1e-9).all()


def test_no_samples_no_upper_bound():
    target = gaussian(2, 0.5, count=2)
    bracket = estimate_log_z(target.energy_fn, GaussianBase.diagonal(torch.zeros(2), 1.0), num_temperatures=5)
    missing = {name for name, value in vars(bracket).items() if value is None}
    assert missing == {
        "log_z_upper",
        "log_z_upper_error",
        "effective_sample_size_reverse",
        "acceptance_rate_reverse",
    }
    assert bracket.gap is None and bracket.num_chains == 512


def test_walls():
    """An infinite energy outside a box is a density of zero there: log Z is the box's log volume.

    Walkers from the box never see the base outside it, whose mass the upper bound keeps on top.
    """

    def energy_fn(x):
        inside = (x.abs() < torch.tensor([1.0, 0.5])).all(dim=1)
        return torch.where(inside, 0.0 * x.sum(dim=1), math.inf)

    base = GaussianBase.diagonal(torch.zeros(2), torch.tensor([0.8, 0.4]))
    samples = (2 * torch.rand(2_000, 2, generator=seeded()) - 1) * torch.tensor([1.0, 0.5])
    bracket = estimate_log_z(
        energy_fn, base, samples, num_chains=4_000, num_temperatures=20, batch_size=4_000, generator=seeded(1)
    )
    assert abs(bracket.log_z_lower - math.log(2.0)) < Z * bracket.log_z_lower_error < 0.1
    upper = math.log(2.0) - 2 * math.log(math.erf(1.25 / math.sqrt(2)))
    assert abs(bracket.log_z_upper - upper) < Z * bracket.log_z_upper_error < 0.1


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_path_betas(schedule):
    for number in (2, 3, 7, 100):
        betas = path_betas(number, schedule)
        assert betas.shape == (number,) and betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
        assert_close(betas, 1 - betas.flip(0))
    steps = path_betas(101, schedule).diff()
    assert steps[0] / steps[50] == pytest.approx({"linear": 1.0, "sigmoid": 4 * 0.018}[schedule], rel=0.05)


# --- base and weights -----------------------------------------------------------------------------------------------


def test_gaussian_base():
    data = gaussian(4, 0.7, count=20_000).samples.reshape(-1, 2, 2)
    for base in (GaussianBase.fit_full(data, 0.1), GaussianBase.fit_diagonal(data, 0.1)):
        x = data[:7]
        u = base.to_white(x)
        assert u.shape == x.shape
        assert_close(base.from_white(u), x, atol=1e-5, rtol=0)
        covariance = torch.cov(base.from_white(torch.randn(50_000, 2, 2, generator=seeded())).flatten(1).T)
        factor = base.scale if base.scale.dim() == 2 else base.scale.diag()
        assert_close(covariance, factor @ factor.T, atol=0.02, rtol=0)
        density = MultivariateNormal(base.mean.flatten(), scale_tril=factor)
        log_prob = -0.5 * (u**2).sum(dim=(1, 2)) - 2 * math.log(2 * math.pi) - base.log_det
        assert_close(log_prob, density.log_prob(x.flatten(1)), atol=1e-4, rtol=0)
        assert_close(base.log_prob(x), log_prob)
        assert_close(base.covariance, factor @ factor.T)
    full = GaussianBase.fit_full(data, 0.1)
    assert_close(full.scale @ full.scale.T, torch.cov(data.flatten(1).T) + 0.01 * torch.eye(4), atol=1e-4, rtol=0)


def test_a_low_rank_fit_finds_the_factors():
    """Two factors in ten dimensions with unequal noise: found from 300 samples; from 30, better than the full fit."""
    loadings = torch.randn(10, 2, generator=seeded())
    noise = torch.linspace(0.1, 0.5, 10)
    data = torch.randn(300, 2, generator=seeded(1)) @ loadings.T + noise * torch.randn(300, 10, generator=seeded(2))
    truth = loadings @ loadings.T + noise.square().diag()
    assert_close(GaussianBase.fit_low_rank(data, 2, 0.01).covariance, truth, atol=0.35, rtol=0)
    held_out = torch.randn(500, 2, generator=seeded(3)) @ loadings.T + noise * torch.randn(500, 10, generator=seeded(4))
    low_rank, full = GaussianBase.fit_low_rank(data[:30], 2, 0.01), GaussianBase.fit_full(data[:30], 0.01)
    assert low_rank.log_prob(held_out).mean() > full.log_prob(held_out).mean()
    for rank in (0, 11):
        with pytest.raises(ValueError, match="rank"):
            GaussianBase.fit_low_rank(data, rank)


def test_a_constant_pixel_gets_the_least_std():
    data = torch.randn(50, 3)
    data[:, 1] = -1.0
    assert GaussianBase.fit_diagonal(data, 0.2).scale[1] == pytest.approx(0.2)
    assert GaussianBase.fit_full(data, 0.2).scale[1, 1] == pytest.approx(0.2)
    assert_close(GaussianBase.fit_diagonal(data, 0.2).scale[0], data[:, 0].std())


def test_log_mean_exp_and_its_error():
    """Log-normal weights: ``log E w = s^2 / 2``, and the error is that of the delta method, large or small weights."""
    s, count = 0.5, 50_000
    log_weights = s * torch.randn(count, dtype=torch.float64, generator=seeded()) - 1_000
    value, error = log_mean_exp(log_weights)
    assert error == pytest.approx(math.sqrt(math.expm1(s**2) / count), rel=0.05)
    assert abs(value + 1_000 - s**2 / 2) < Z * error
    size = weights_effective_sample_size(log_weights)
    assert size == pytest.approx(count * math.exp(-(s**2)), rel=0.03)


def test_the_jackknife_by_hand():
    log_weights = torch.tensor([0.1, -2.0, 1.3, -math.inf], dtype=torch.float64)
    value, error = log_mean_exp(log_weights)
    assert value == pytest.approx(log_weights.exp().mean().log().item())
    left = torch.stack([log_weights[torch.arange(4) != i].exp().mean().log() for i in range(4)])
    assert error == pytest.approx((0.75 * ((left - left.mean()) ** 2).sum()).sqrt().item())
    assert log_mean_exp(torch.tensor([0.0, -800.0], dtype=torch.float64))[1] == math.inf
    assert weights_effective_sample_size(torch.tensor([0.0, -800.0])) == pytest.approx(1)
    assert weights_effective_sample_size(torch.full((6,), -5.0)) == pytest.approx(6)


def test_the_generator_alone_decides():
    target, results = gaussian(2, 0.5, count=6), []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        state = torch.random.get_rng_state()
        scheduler = MALAScheduler(step_size=0.4)
        bracket = estimate_log_z(
            target.energy_fn,
            GaussianBase.diagonal(torch.zeros(2), 1.0),
            target.samples,
            num_chains=5,
            num_temperatures=6,
            scheduler=scheduler,
            generator=seeded(seed),
        )
        assert torch.equal(state, torch.random.get_rng_state()) and scheduler.step_size == 0.4
        results.append((bracket.log_z_lower, bracket.log_z_upper, bracket.acceptance_rate.tolist()))
    assert results[0] == results[1] and results[0][:2] != results[2][:2]


def test_batches_and_progress():
    target, sizes, bars = gaussian(2, 0.5, count=7), [], []

    def energy_fn(x):
        sizes.append(len(x))
        return target.energy_fn(x)

    def progress_bar(items):
        bars.append(len(items))
        return iter(items)

    bracket = estimate_log_z(
        energy_fn,
        GaussianBase.diagonal(torch.zeros(2), 1.0),
        target.samples,
        num_chains=10,
        num_temperatures=5,
        batch_size=4,
        progress_bar=progress_bar,
    )
    assert set(sizes) == {4, 3, 2} and bars == [3] * 6  # steps; 4 + 4 + 2 forward; 4 + 3 back
    assert (bracket.num_chains, bracket.num_temperatures) == (10, 5)
    assert_close((10 * bracket.acceptance_rate).round(), 10 * bracket.acceptance_rate, atol=1e-5, rtol=0)


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


def test_log_z_on_grid():
    target = gaussian(2, 0.6, temperature=0.3)
    assert log_z_on_grid(target.energy_fn, 6.0, 200, 0.3, batch_size=999) == pytest.approx(target.log_z, abs=1e-5)
    assert log_z_on_grid(lambda x: torch.full((len(x),), 2.0), 3.0, 5, 0.5) == pytest.approx(math.log(36.0) - 4.0)
    slope = log_z_on_grid(lambda x: 2 * x[:, 0], 1.0, 100)
    assert slope == pytest.approx(math.log(2 * math.sinh(2.0)), abs=1e-3)
    wide = log_z_on_grid(lambda x: 0.5 * x.square().sum(dim=1), 1.0, 200)  # counts what lies in the square only
    assert wide == pytest.approx(2 * math.log(math.sqrt(2 * math.pi) * math.erf(1 / math.sqrt(2))), abs=1e-4)


# --- likelihood -----------------------------------------------------------------------------------------------------


def test_log_likelihood_is_the_normalised_density():
    target = gaussian(2, 0.6, temperature=0.2)
    i = torch.arange(2)
    covariance = 0.2 * 0.5 * 0.6 ** (i[:, None] - i).abs().float()
    x = target.samples[:20]
    expected = MultivariateNormal(torch.tensor([-1.0, 1.0]), covariance).log_prob(x)
    assert_close(log_likelihood(target.energy_fn(x), target.log_z, 0.2), expected, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"num_chains": 1},
        {"num_chains": 2.0},
        {"num_temperatures": 1},
        {"num_temperatures": True},
        {"num_steps": 0},
        {"num_adaptation_rounds": 0},
        {"batch_size": 0},
        {"target_acceptance": 1.0},
        {"schedule": "cosine"},
        {"scheduler": LangevinScheduler()},
        {"samples": torch.randn(4, 3)},
        {"samples": torch.randn(1, 2)},
        {"samples": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])},
        {"samples": torch.zeros(4, 2, dtype=torch.long)},
    ],
)
def test_bad_settings(settings):
    (key,) = settings
    base = GaussianBase.diagonal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=key):
        estimate_log_z(lambda x: x.square().sum(dim=1), base, **{"num_chains": 4, "num_temperatures": 3, **settings})


def test_bad_energies():
    base = GaussianBase.diagonal(torch.zeros(2), 1.0)
    few = {"num_chains": 4, "num_temperatures": 3}
    for num_temperatures in (2, 3):
        with pytest.raises(ValueError, match=r"one number per sample, shape \(4,\)"):
            estimate_log_z(lambda x: x.sum(), base, num_chains=4, num_temperatures=num_temperatures, batch_size=4)
    with pytest.raises(ValueError, match="4 of 4 forward weights"):
        estimate_log_z(lambda x: x.sum(dim=1) * math.nan, base, **few)
    with pytest.raises(ValueError, match="4 of 4 forward weights"):
        estimate_log_z(lambda x: 0 * x.sum(dim=1) - math.inf, base, **few)
    with pytest.raises(ValueError, match="all forward weights"):
        estimate_log_z(lambda x: 0 * x.sum(dim=1) + math.inf, base, **few)
    with pytest.raises(ValueError, match="1 of 3 reverse weights"):  # a sample where the density is zero
        samples = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.5, 0.5]])
        estimate_log_z(
            lambda x: torch.where(x[:, 0] < 8, x.square().sum(dim=1), math.inf), base, samples, num_temperatures=2
        )


def test_bad_base():
    for mean, scale in (
        (torch.zeros(2), torch.ones(3)),
        (torch.zeros(2), torch.tensor([1.0, 0.0])),
        (torch.zeros(2), torch.tensor([1.0, math.nan])),
        (torch.tensor(0.0), torch.ones(1)),
        (torch.zeros(2, dtype=torch.long), torch.ones(2)),
    ):
        with pytest.raises(ValueError, match="mean"):
            GaussianBase(mean, scale)
    with pytest.raises(ValueError, match="positive definite"):
        GaussianBase.full(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    for data in (torch.randn(1, 2), torch.randn(5), torch.full((3, 2), math.inf)):
        with pytest.raises(ValueError, match="data"):
            GaussianBase.fit_diagonal(data)
        with pytest.raises(ValueError, match="data"):
            GaussianBase.fit_full(data)


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
