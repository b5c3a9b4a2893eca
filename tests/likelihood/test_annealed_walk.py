"""The annealed walk between base and target: its weights, its steps and its schedule."""

import math

import pytest
import torch
from known_log_z import Z, lower_error, mixture, seeded, upper_error
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from hf_ebm import HMCScheduler, MALAScheduler
from hf_ebm.likelihood.ais import AnnealedWalk, estimate_log_z, path_betas
from hf_ebm.likelihood.base_distributions import GaussianBase

pytestmark = pytest.mark.usefixtures("few_resamples")


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
            assert lower_error(bracket) < 1e-5 and bracket.effective_sample_size == pytest.approx(4)


@pytest.mark.parametrize("num_temperatures", [2, 3, 5])
def test_the_weights_mean_is_z_however_short_the_schedule(num_temperatures):
    """In one dimension 30,000 chains distinguish a walk weighted at the wrong point from a correct one."""
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
    assert abs(bracket.log_z_lower - log_z) < Z * lower_error(bracket) < 0.04
    assert abs(bracket.log_z_upper - log_z) < Z * upper_error(bracket) < 0.04


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


def test_steps_follow_a_narrowing_target(monkeypatch):
    """From width 1 to 0.02: the acceptance stays at its target, and the last step fits the target's width."""
    monkeypatch.setattr("hf_ebm.likelihood.ais.TARGET_ACCEPTANCE", 0.7)
    monkeypatch.setattr("hf_ebm.likelihood.ais.ADAPTATION_ROUNDS", 3)
    base = GaussianBase.diagonal(torch.zeros(3), 1.0)
    bracket = estimate_log_z(
        lambda x: 0.5 * (x / 0.02).square().sum(dim=1),
        base,
        samples=0.02 * torch.randn(200, 3),
        num_chains=200,
        num_temperatures=120,
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
    assert abs(bracket.log_z_lower - math.log(2.0)) < Z * lower_error(bracket) < 0.1
    upper = math.log(2.0) - 2 * math.log(math.erf(1.25 / math.sqrt(2)))
    assert abs(bracket.log_z_upper - upper) < Z * upper_error(bracket) < 0.1


def test_path_betas():
    for number in (2, 3, 7, 100):
        betas = path_betas(number)
        assert betas.shape == (number,) and betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
        assert_close(betas, 1 - betas.flip(0))
    steps = path_betas(101).diff()
    assert steps[0] / steps[50] == pytest.approx(4 * 0.018, rel=0.05)
