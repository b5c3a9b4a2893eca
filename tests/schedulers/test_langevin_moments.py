"""Langevin and annealed Langevin on a Gaussian: moments in closed form, after few and after many steps."""

import math

import pytest
import torch
from known_moments import banana, check_moments, quadratic, seeded
from sampler_table import run
from torch.testing import assert_close

from hf_ebm import AnnealedLangevinScheduler, LangevinScheduler
from hf_ebm.langevin import energy_grad, langevin_chain


@pytest.mark.parametrize("s, n", [(0.3, 0.3), (0.6, 0.2), (0.9, 0.9)])
def test_langevins_stationary_variance(s, n):
    """``n^2 / (1 - (1 - s^2 a / 2)^2)`` along each eigenvector of the precision, a its eigenvalue."""
    eigenvalues, angle = torch.tensor([0.8, 3.0]), 0.6
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    energy_fn = quadratic(rotation @ eigenvalues.diag() @ rotation.T)
    x, _ = run(LangevinScheduler(step_size=s, noise_std=n), energy_fn, torch.zeros(20_000, 2), 150, seeded(0))
    variance = n**2 / (1 - (1 - s**2 * eigenvalues / 2) ** 2)
    check_moments(x @ rotation, torch.zeros(2), variance.diag())


def gaussian_chain(a, start, step_sizes, noise_stds):
    """Mean and variance after the updates ``x <- r_k x + n_k noise``, ``r_k = 1 - s_k^2 a / 2``, from a fixed start."""
    mean, variance = start, 0.0
    for s, n in zip(step_sizes, noise_stds, strict=True):
        mean, variance = (1 - s**2 * a / 2) * mean, (1 - s**2 * a / 2) ** 2 * variance + n**2
    return mean, variance


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.7), (0.3, 1.0)])
def test_langevins_moments_after_a_few_steps(num_steps, decays):
    a, start, s, n = 1.7, 3.0, 0.6, 0.4
    scheduler = LangevinScheduler(step_size=s, noise_std=n, step_size_decay=decays[0], noise_decay=decays[1])
    x, _ = run(scheduler, quadratic(torch.tensor([[a]])), torch.full((50_000, 1), start), num_steps, seeded(3))
    ks = range(1, num_steps + 1)
    mean, variance = gaussian_chain(a, start, [s * k ** -decays[0] for k in ks], [n * k ** -decays[1] for k in ks])
    check_moments(x, torch.tensor([mean]), torch.tensor([[variance]]))


def test_constant_langevin_is_the_chain_of_langevin_py():
    energy_fn, start = banana, torch.randn(5, 2)
    x, _ = run(LangevinScheduler(step_size=0.3, noise_std=0.1), energy_fn, start, 9, seeded(3))
    expected = langevin_chain(start, lambda x: energy_grad(energy_fn, x), 9, 0.3, 0.1, seeded(3))
    assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_annealed_moments(num_steps):
    """The noise falls from 6 n to n by equal factors."""
    a, start, s, n = 1.7, 3.0, 0.6, 0.4
    scheduler = AnnealedLangevinScheduler(step_size=s, noise_std=n, noise_scale_start=6.0)
    x, _ = run(scheduler, quadratic(torch.tensor([[a]])), torch.full((50_000, 1), start), num_steps, seeded(3))
    noise_stds = torch.logspace(math.log10(6 * n), math.log10(n), num_steps).tolist() if num_steps > 1 else [n]
    mean, variance = gaussian_chain(a, start, [s] * num_steps, noise_stds)
    check_moments(x, torch.tensor([mean]), torch.tensor([[variance]]))
