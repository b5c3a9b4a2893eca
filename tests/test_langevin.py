"""The Langevin update against its closed form on a quadratic energy."""

import pytest
import torch
from torch.testing import assert_close

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import conditional_energy_grad, energy_grad, langevin_chain, langevin_step


def test_step_is_the_formula():
    x, grad, noise = torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 2)
    assert_close(langevin_step(x, grad, 0.5, 0.1, noise), x - 0.125 * grad + 0.1 * noise)


def test_chain_moments_on_a_quadratic_energy():
    """E = a x^2 / 2 from x = m: after k steps mean = r^k m, var = n^2 (1 - r^(2k)) / (1 - r^2), r = 1 - s^2 a / 2."""
    a, m, s, n, k, count = 2.0, 3.0, 0.6, 0.4, 7, 400_000
    start = torch.full((count, 1), m)
    generator = torch.Generator().manual_seed(0)
    end = langevin_chain(start, lambda x: a * x, k, s, n, generator).double()
    r = 1 - 0.5 * s**2 * a
    mean, var = r**k * m, n**2 * (1 - r ** (2 * k)) / (1 - r**2)
    assert abs(end.mean().item() - mean) < 4 * (var / count) ** 0.5
    assert abs(end.var().item() - var) < 4 * var * (2 / count) ** 0.5


def test_energy_grad_works_without_grad_mode_and_leaves_parameters_unchanged():
    weight = torch.ones(2, requires_grad=True)
    x = torch.randn(4, 2)
    with torch.no_grad():
        grad = energy_grad(lambda x: (weight * x**2).sum(1), x)
    assert_close(grad, 2 * x)
    assert weight.grad is None and not grad.requires_grad


def test_conditional_energy_grad_is_autograds():
    q, t = DiffusionCoefficients.vp(4), torch.tensor([0, 1, 3])
    x_t, x_next = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)

    class Output:
        def __init__(self, energy):
            self.energy = energy

    def model(x, t):
        return Output((x**4).sum(1) * (1 + t))

    (expected,) = torch.autograd.grad((model(x_t, t).energy - q.log_q_step(x_next, x_t, t)).sum(), x_t)
    assert_close(conditional_energy_grad(model, x_next, t, q)(x_t.detach()), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 0.0), "step_size must be a positive, finite number"),
        ((3, -0.5), "step_size must be a positive"),
        ((3, float("nan")), "step_size must be a positive"),
        ((3, 0.5, -0.1), "noise_std must be >= 0 and finite"),
        ((3, 0.5, float("inf")), "noise_std must be >= 0"),
        ((-2, 0.5), "num_steps must be a whole number >= 0, got -2"),
        ((1.5, 0.5), "num_steps must be a whole number"),
    ],
)
def test_numbers_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        langevin_chain(torch.ones(2, 1), lambda x: x, *arguments)
    assert torch.equal(langevin_chain(torch.ones(2, 1), lambda x: x, 0, 0.5), torch.ones(2, 1))


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x.sum(), lambda x: 1.0])
def test_an_energy_of_another_shape_is_refused_before_it_is_used(wrong):
    from types import SimpleNamespace

    from hf_ebm import LangevinScheduler
    from hf_ebm.langevin import run_chain
    from hf_ebm.scoring.statistics import energies_on_device

    class Energy(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, x, timestep):
            return SimpleNamespace(energy=wrong(x))

    x = torch.ones(3, 2)
    for call in (
        lambda: energy_grad(wrong, x),
        lambda: energies_on_device(Energy().eval(), x),
        lambda: run_chain(LangevinScheduler(3), wrong, x, 2),
        lambda: run_chain(LangevinScheduler(3), wrong, x, 0, observe=wrong),
    ):
        with pytest.raises(ValueError, match=r"one number per sample, shape \(3,\), got "):
            call()


@pytest.mark.parametrize("name", ["LangevinScheduler", "AnnealedLangevinScheduler", "PreconditionedLangevinScheduler"])
def test_a_gradient_of_another_shape_is_refused(name):
    import hf_ebm

    scheduler = getattr(hf_ebm, name)(3)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"the gradient must have the state's shape \(4, 3\), got \(4, 1\)"):
        scheduler.step(torch.ones(4, 1), 0, torch.ones(4, 3))


def test_diverging_chain_is_an_error():
    with pytest.raises(ValueError, match="diverged"):
        langevin_chain(torch.ones(1, 1), lambda x: -(x**3) * 1e6, 20, 1.0)
