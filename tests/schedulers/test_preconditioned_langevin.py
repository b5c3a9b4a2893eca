"""Preconditioned Langevin: the paper's recursion, its preconditioner, and its advantage."""

import math

import torch
from known_moments import banana, quadratic, seeded
from sampler_table import run
from torch.testing import assert_close

from hf_ebm import LangevinScheduler, PreconditionedLangevinScheduler
from hf_ebm.langevin import energy_grad
from hf_ebm.schedulers.scheduling_preconditioned_langevin import preconditioner


def test_preconditioned_path_is_the_papers_recursion():
    """Against the recursion in double precision, written out; it ends far from the plain chain."""
    s, n, alpha, eps = 0.3, 0.1, 0.8, 0.2
    scheduler = PreconditionedLangevinScheduler(step_size=s, noise_std=n, alpha=alpha, eps=eps)
    start = torch.randn(4, 2, dtype=torch.float64)
    end, outputs = run(scheduler, banana, start, 6, seeded(0))
    x, generator, grads = start, seeded(0), []
    for k in range(6):
        grads.append(energy_grad(banana, x))
        weights = torch.tensor([alpha ** (k - i) for i in range(k + 1)], dtype=torch.float64)
        v = torch.einsum("k,kbd->bd", weights / weights.sum(), torch.stack(grads) ** 2)
        g = 1 / (eps * v.mean(dim=1, keepdim=True) ** 0.5 + v**0.5)
        g = g / g.mean(dim=1, keepdim=True)
        x = x - s**2 / 2 * g * grads[-1] + n * g**0.5 * torch.randn(4, 2, dtype=torch.float64, generator=generator)
        assert_close(outputs[k].prev_sample, x)
    plain, _ = run(LangevinScheduler(step_size=s, noise_std=n), banana, start, 6, seeded(0))
    assert (end - plain).abs().max() > 0.05


def test_preconditioner_bounds_scale_and_flat_energy():
    v = torch.rand(5, 3, 4) ** 4
    g = preconditioner(v, 0.1)
    assert_close(g.mean(dim=(1, 2)), torch.ones(5))
    assert (g.amax(dim=(1, 2)) / g.amin(dim=(1, 2))).max() <= 1 + math.sqrt(12) / 0.1
    assert_close(preconditioner(1e6 * v, 0.1), g)
    assert_close(preconditioner(torch.zeros(2, 3), 0.1), torch.ones(2, 3))


def test_preconditioned_on_one_coordinate_is_langevin():
    energy_fn, start = quadratic(torch.tensor([[2.0]])), torch.randn(6, 1)
    a, _ = run(PreconditionedLangevinScheduler(), energy_fn, start, 5, seeded(0))
    b, _ = run(LangevinScheduler(), energy_fn, start, 5, seeded(0))
    assert_close(a, b)


def test_preconditioning_mixes_an_elongated_gaussian_faster():
    """Widths 1 and 0.05: at a step the narrow one allows, the plain chain hardly moves along the wide one."""
    energy_fn = quadratic(torch.tensor([1.0, 400.0]).diag())
    start = torch.tensor([[3.0, 0.0]]).repeat(1000, 1) + 0.05 * torch.randn(1000, 2)
    distance = {}
    for cls in (LangevinScheduler, PreconditionedLangevinScheduler):
        x, _ = run(cls(step_size=0.05), energy_fn, start, 400, seeded(0))
        distance[cls] = abs(x[:, 0].mean().item())
    assert distance[LangevinScheduler] > 1.5
    assert distance[PreconditionedLangevinScheduler] < 0.8 * distance[LangevinScheduler]


def test_coordinates_without_a_gradient_count_in_no_mean():
    """An image's known pixels change nothing for the unknown ones: G depends only on the unknown ones."""
    v = torch.rand(3, 5) + 0.1
    wide = torch.cat([v, torch.zeros(3, 40)], dim=1)
    assert_close(preconditioner(wide, 0.1)[:, :5], preconditioner(v, 0.1))
    mixed = torch.stack([wide[0], torch.zeros(45)])  # samples are independent
    assert_close(preconditioner(mixed, 0.1)[0, :5], preconditioner(v[:1], 0.1)[0])
    assert_close(preconditioner(mixed, 0.1)[1], torch.ones(45))
