"""Every sampler on targets with known moments, and comparisons between samplers."""

import math

import pytest
import torch
from known_moments import BEND, WIDTH, banana, check_mean, check_moments, quadratic, seeded
from sampler_table import SAMPLERS, each_metropolis, run

from hf_ebm import AnnealedLangevinScheduler, LangevinScheduler, ReplicaExchangeScheduler

MEAN_3D = torch.tensor([0.5, -1.0, 0.0])
COVARIANCE_3D = torch.tensor([[1.0, 0.5, -0.2], [0.5, 0.8, 0.1], [-0.2, 0.1, 0.6]])
MODES, WEIGHTS, MODE_STD = torch.tensor([[1.2, 0.6], [-1.2, -0.6]]), torch.tensor([0.7, 0.3]), 0.8


def two_modes(x):
    """``-log sum_i w_i N(x; m_i, std^2)`` up to a constant."""
    distance = ((x[:, None] - MODES.to(x)) ** 2).sum(dim=2)
    return -torch.logsumexp(WEIGHTS.to(x).log() - 0.5 * distance / MODE_STD**2, dim=1)


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
class TestMoments:
    """Each sampler on each target. The energy is the target's times the temperature, whose chain samples the target."""

    count = 8_000

    def sample(self, row, energy_fn, start, temperature):
        s = row.settings["step_size"] / temperature**0.5  # the same proposal at every temperature
        scheduler = row.scheduler(**{**row.settings, "step_size": s, "noise_std": s * temperature**0.5})
        assert math.isclose(scheduler.temperature, temperature)
        return run(scheduler, lambda x: temperature * energy_fn(x), start, row.num_steps, seeded(1))[0]

    @pytest.mark.parametrize("temperature", [1.0, 0.25])
    def test_correlated_gaussian(self, row, temperature):
        energy_fn = quadratic(COVARIANCE_3D.inverse(), MEAN_3D)
        x = self.sample(row, energy_fn, torch.randn(self.count, 3) * 2, temperature)
        check_moments(x, MEAN_3D, COVARIANCE_3D, row.bias)

    def test_banana(self, row):
        x = self.sample(row, banana, torch.randn(self.count, 2), temperature=0.5)
        covariance = torch.tensor([1.0, 2 * BEND**2 + WIDTH**2]).diag()
        check_moments(x, torch.zeros(2), covariance, row.bias)
        # the bend itself, E x_1^2 x_2 = 2 b; two is about the standard deviation of x_1^2 x_2
        check_mean(x[:, 0] ** 2 * x[:, 1], 2 * BEND, 2 * row.bias)

    def test_two_modes(self, row):
        x = self.sample(row, two_modes, torch.randn(self.count, 2), temperature=2.0)
        mean = WEIGHTS @ MODES
        covariance = MODE_STD**2 * torch.eye(2) + (MODES.T * WEIGHTS) @ MODES - torch.outer(mean, mean)
        check_moments(x, mean, covariance, row.bias)


@each_metropolis
def test_no_bias_at_a_coarse_step(name):
    """At the step where Langevin's variance is nearly three times too large, those that accept or reject are right."""
    a, s, count = 4.0, 0.8, 15_000
    target, energy_fn = torch.tensor([[1 / a]]), quadratic(torch.tensor([[a]]))
    start = torch.randn(count, 1)
    biased, _ = run(LangevinScheduler(step_size=s), energy_fn, start, 40, seeded(0))
    assert biased.var().item() > 2.7 / a
    scheduler = SAMPLERS[name].scheduler(**{**SAMPLERS[name].settings, "step_size": s})
    exact, outputs = run(scheduler, energy_fn, start, 40, seeded(0))
    check_moments(exact, torch.zeros(1), target)
    rates = [out.acceptance_rate.item() for out in outputs if out.acceptance_rate is not None]
    assert len(rates) == 40 and all(0.1 < rate < 0.95 for rate in rates[5:])


def test_annealing_and_replicas_cross_where_langevin_stays():
    """All chains begin in the lesser of two narrow modes; at a fifth of the temperature Langevin does not leave it."""

    def energy_fn(x):
        left, right = -0.5 * ((x + 1) / 0.3) ** 2 + math.log(0.2), -0.5 * ((x - 1) / 0.3) ** 2 + math.log(0.8)
        return -torch.logaddexp(left, right)[:, 0]

    share = {}
    for cls in (LangevinScheduler, AnnealedLangevinScheduler, ReplicaExchangeScheduler):
        scheduler = cls(step_size=0.25, noise_std=0.25 * 0.2**0.5)
        x, _ = run(scheduler, energy_fn, torch.full((1000, 1), -1.0), 200, seeded(0))
        share[cls] = (x > 0).float().mean().item()
    assert share[LangevinScheduler] < 0.02
    assert share[AnnealedLangevinScheduler] > 0.5
    assert share[ReplicaExchangeScheduler] > 0.25
