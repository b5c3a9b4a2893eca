"""Langevin dynamics: the update, once, and the chain built from it.

    x <- x - s^2/2 grad E(x) + n * noise

With noise ``n = s`` the chain samples ``exp(-E)`` as ``s -> 0``; with any other `n` it samples
``exp(-E / temperature)``, ``temperature = (n/s)^2``. Source: Eq. 3 and Eq. 6, Cui & Han 2023; Welling & Teh 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients


def langevin_step(
    x: Tensor, grad: Tensor, step_size: float | Tensor, noise_std: float | Tensor, noise: Tensor
) -> Tensor:
    """One update ``x - step_size^2/2 grad + noise_std noise``, shape of `x`.

    Args:
        x: Current state, shape (B, ...).
        grad: Gradient of the energy at `x`, shape of `x`.
        step_size: s > 0, a number or broadcastable to `x`.
        noise_std: n >= 0, a number or broadcastable to `x`.
        noise: Standard normal, shape of `x`.
    """
    return x - 0.5 * step_size**2 * grad + noise_std * noise


def energy_grad(energy_fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``grad_x E(x)`` of each sample, detached, shape of `x`; works inside ``torch.no_grad()``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(energy_fn(x).sum(), x)
    return grad


def langevin_chain(
    x: Tensor,
    grad_fn: Callable[[Tensor], Tensor],
    num_steps: int,
    step_size: float | Tensor,
    noise_std: float | Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """`num_steps` Langevin updates from `x`, shape of `x`.

    Args:
        x: Start, shape (B, ...).
        grad_fn: ``x -> grad E(x)``, for example made with `energy_grad`.
        num_steps: Number of updates >= 0.
        step_size: s > 0, a number or broadcastable to `x`.
        noise_std: n >= 0; None means `step_size`, the chain of ``exp(-E)``.
        generator: Random number generator, or one per sample.

    Raises:
        ValueError: If the chain leaves the finite numbers (looked at once, after the last step).
    """
    noise_std = step_size if noise_std is None else noise_std
    for _step in range(num_steps):
        noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = langevin_step(x, grad_fn(x), step_size, noise_std, noise)
    if num_steps and not math.isfinite(x.abs().sum().item()):
        raise ValueError(
            f"The Langevin chain diverged within {num_steps} steps (non-finite state); use a smaller step size."
        )
    return x


def conditional_energy_grad(
    energy_model: Callable[..., Any], x_next: Tensor, t: Tensor, coefficients: DiffusionCoefficients
) -> Callable[[Tensor], Tensor]:
    """``x_t -> grad_{x_t} [E(x_t, t) - log q(x_next | x_t)]``, the energy of one denoising step, shape of `x_t`.

    Args:
        energy_model: ``(x_t, t) -> output.energy``.
        x_next: The noisier state the step started from, shape (B, ...).
        t: Index of the cleaner state, shape (B,).
        coefficients: The chain.
    """

    def grad(x_t: Tensor) -> Tensor:
        return energy_grad(lambda x: energy_model(x, t).energy, x_t) - coefficients.log_q_step_grad(x_next, x_t, t)

    return grad
