"""Samplers with acceptance: acceptance, leapfrog and swaps against their definitions."""

import math

import pytest
import torch
from known_moments import banana, check_mean, check_moments, quadratic, seeded
from sampler_table import SAMPLERS, each_metropolis, run
from torch.testing import assert_close

from hf_ebm import HMCScheduler, MALAScheduler, ReplicaExchangeScheduler
from hf_ebm.langevin import energy_and_grad, energy_grad
from hf_ebm.schedulers.metropolis import accept, log_uniform
from hf_ebm.schedulers.scheduling_mala import proposal_log_ratio
from hf_ebm.schedulers.scheduling_replica_exchange import swap_rows


def test_acceptance_ratio_is_that_of_the_proposal_densities():
    """MALA's ratio from q's log density as torch.distributions has it, in double precision."""
    s, n, x = 0.7, 0.3, torch.randn(6, 2, dtype=torch.float64)
    _energy, grad = energy_and_grad(banana, x)
    noise = torch.randn_like(x)
    proposed = x - s**2 / 2 * grad + n * noise
    _energy, grad_proposed = energy_and_grad(banana, proposed)

    def log_q(to, origin, grad):
        return torch.distributions.Normal(origin - s**2 / 2 * grad, n).log_prob(to).sum(dim=1)

    expected = log_q(x, proposed, grad_proposed) - log_q(proposed, x, grad)
    assert_close(proposal_log_ratio(noise, grad, grad_proposed, s, n), expected)


def test_acceptance_probability_of_one_step():
    """From one state, the share of chains that move by update 1 is the mean of min(1, ratio)."""
    s, n, count = 0.9, 0.6, 100_000
    x = torch.tensor([[1.0, -0.5]]).repeat(count, 1)
    end, outputs = run(MALAScheduler(step_size=s, noise_std=n), banana, x, 1, seeded(0))
    proposed = outputs[0].prev_sample
    (energy, grad), (energy_p, grad_p) = energy_and_grad(banana, x), energy_and_grad(banana, proposed)
    forward = ((proposed - x + s**2 / 2 * grad) ** 2).sum(1) / (2 * n**2)
    backward = ((x - proposed + s**2 / 2 * grad_p) ** 2).sum(1) / (2 * n**2)
    ratio = torch.exp((energy - energy_p) * (s / n) ** 2 + forward - backward)
    moved = (end != x).any(dim=1)
    check_mean(moved.float() - ratio.clamp(max=1), 0.0)
    assert_close(moved.float().mean(), outputs[1].acceptance_rate)
    assert 0.2 < moved.float().mean() < 0.9 and torch.equal(end[moved], proposed[moved])


def test_hmc_with_one_leapfrog_step_is_mala():
    x = torch.randn(500, 2, dtype=torch.float64)
    settings = {"step_size": 0.9, "noise_std": 0.6}
    end_mala, mala = run(MALAScheduler(**settings), banana, x, 20, seeded(0))
    end_hmc, hmc = run(HMCScheduler(num_leapfrog_steps=1, **settings), banana, x, 20, seeded(0))
    assert len(mala) == len(hmc) == 21
    for a, b in zip(mala, hmc, strict=True):
        assert_close(a.prev_sample, b.prev_sample)
        assert (a.acceptance_rate is None) == (b.acceptance_rate is None)
        if a.acceptance_rate is not None:
            assert_close(a.acceptance_rate, b.acceptance_rate)
    assert_close(end_mala, end_hmc)
    assert 0.2 < torch.stack([out.acceptance_rate for out in mala[1:]]).mean() < 0.9


def test_hmc_follows_the_leapfrog_map():
    """Three steps against the integrator written out, and its time reversal: with -p it comes back."""
    s, n, x0 = 0.3, 0.15, torch.randn(4, 2, dtype=torch.float64)
    scheduler = HMCScheduler(step_size=s, noise_std=n, num_leapfrog_steps=3)
    _end, outputs = run(scheduler, banana, x0, 1, seeded(0))
    p0 = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))

    def leapfrog(x, p):
        states = []
        for _ in range(3):
            p = p - n / (2 * scheduler.temperature) * energy_grad(banana, x)
            x = x + n * p
            p = p - n / (2 * scheduler.temperature) * energy_grad(banana, x)
            states.append(x)
        return states, p

    states, p = leapfrog(x0, p0)
    for state, out in zip(states, outputs, strict=False):
        assert_close(out.prev_sample, state)
    assert_close(scheduler.momentum, p)
    assert_close(leapfrog(states[-1], -p)[0][-1], x0)


def test_swaps_are_metropolis_on_the_product_of_the_chains():
    """Each pair in turn swaps with probability min(1, p(swapped) / p(as it is)), the others never."""
    temperatures, count = torch.tensor([0.5, 1.0, 2.0, 4.0]), 100_000
    energy = torch.tensor([0.3, 0.1, 2.0, 1.0])
    for first, pairs in ((0, [(0, 1), (2, 3)]), (1, [(1, 2)])):
        log_u = log_uniform((count, 3), torch.device("cpu"), seeded(first))
        rows, swapped = swap_rows(energy.repeat(count, 1), temperatures, first, log_u)
        rows = rows.reshape(count, 4)
        partners = rows - 4 * torch.arange(count)[:, None]
        assert torch.equal(partners.sort(dim=1).values, torch.arange(4).expand(count, 4))
        for i, j in ((0, 1), (1, 2), (2, 3)):
            before = energy[i] / temperatures[i] + energy[j] / temperatures[j]
            after = energy[j] / temperatures[i] + energy[i] / temperatures[j]
            probability = min(1.0, math.exp(before - after)) if (i, j) in pairs else 0.0
            check_mean((partners[:, i] == j).float(), probability)
            assert torch.equal(swapped[:, i], (partners[:, i] == j).long())


def test_each_replica_has_its_temperature():
    """Hot chains too: on ``x^2 / 2`` chain r has the variance T_r."""
    scheduler, start = ReplicaExchangeScheduler(step_size=0.8, num_replicas=3), torch.randn(20_000, 1)
    end, outputs = run(scheduler, quadratic(torch.eye(1)), start, 60, seeded(0))
    assert end.shape == (20_000, 1) and outputs[0].prev_sample.shape == (60_000, 1)
    for chain in range(3):  # the first proposal is N((1 - s^2/2) x, n_r^2), n_r = n 2^(r/2)
        proposed = outputs[0].prev_sample[chain::3] - (1 - 0.8**2 / 2) * start
        check_moments(proposed, torch.zeros(1), torch.tensor([[0.8**2 * 2.0**chain]]))
        check_moments(scheduler.state.sample[chain::3], torch.zeros(1), torch.tensor([[2.0**chain]]))


def test_the_rate_of_swaps():
    """Chains at the same place always swap: of those whose turn it is. Two chains have a turn every other time."""
    for num_replicas, rates in ((4, [None, 1.0, 1.0, 1.0]), (2, [None, 1.0, None, 1.0])):
        scheduler = ReplicaExchangeScheduler(step_size=1e-6, num_replicas=num_replicas, temperature_ratio=1.01)
        _, outputs = run(scheduler, lambda x: torch.zeros(len(x)) + 0.0 * x.sum(), torch.zeros(5, 1), 3, seeded(0))
        assert [None if out.swap_rate is None else out.swap_rate.item() for out in outputs] == rates
    # in equilibrium, on |x|^2 / 2 in 8 dimensions: E = T chi^2 / 2, independent between chains
    scheduler, start = ReplicaExchangeScheduler(step_size=0.6, num_replicas=2), torch.randn(20_000, 8)
    _, outputs = run(scheduler, quadratic(torch.eye(8)), start, 41, seeded(0))
    cold, hot = torch.randn(2, 400_000, 8).square().sum(dim=2) / 2.0 * torch.tensor([[1.0], [2.0]])
    expected = (0.5 * (cold - hot)).exp().clamp(max=1.0).mean().item()
    assert outputs[-1].swap_rate.item() == pytest.approx(expected, abs=0.02)


def test_log_uniform():
    log_u = log_uniform((200_000,), torch.device("cpu"), seeded(0))
    check_mean(log_u, -1.0)  # -log u is exponential
    check_mean((log_u < math.log(0.3)).float(), 0.3)


def test_what_is_never_accepted():
    inf, nan = math.inf, math.nan
    log_ratio = torch.tensor([inf, inf, nan, -inf, inf])
    energy = torch.tensor([-inf, nan, 0.0, 0.0, 0.0])
    assert accept(log_ratio, energy, torch.full((5,), -50.0)).tolist() == [False, False, False, False, True]


@each_metropolis
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_wall_of_non_finite_energy_is_not_passed(name, bad):
    """The half-plane x_1 > 0.5 has no finite energy: the chain samples the Gaussian cut off there."""

    def energy_fn(x):
        return torch.where(x[:, 0] > 0.5, x.new_tensor(bad), 0.5 * (x**2).sum(dim=1))

    start = -torch.rand(4_000, 2)
    scheduler = SAMPLERS[name].scheduler(**{**SAMPLERS[name].settings, "step_size": 0.6})
    x, _ = run(scheduler, energy_fn, start, 60, seeded(0))
    assert x[:, 0].max() <= 0.5 and torch.isfinite(x).all()
    normal = torch.distributions.Normal(0.0, 1.0)
    cut = torch.tensor(0.5)
    check_mean(x[:, 0], (-normal.log_prob(cut).exp() / normal.cdf(cut)).item())
