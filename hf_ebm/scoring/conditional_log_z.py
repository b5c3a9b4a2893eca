"""``log Z(x_next, t)`` of each denoising step of a DDAEBM, bracketed.

    p(x_t | x_next) = exp(-E(x_t, t)) q(x_next | x_t) / Z(x_next, t)

    Z(x_next, t) = integral over x_t of exp(-E(x_t, t)) q(x_next | x_t)

One number for each noisier state ``x_next``. With q it is far easier than log Z of ``E(., t)`` alone: the transition
density holds ``x_t`` near ``x_next / sqrt(1 - beta_{t+1})``, all the nearer the smaller the step.

The walk's base is the Gaussian ``q(x_t | x_next)`` would be if the clean data were a Gaussian (`denoising_base`).

Source of the model: Geng et al., ICML 2024. That its log Z be bracketed is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.inference_mode import no_grad
from hf_ebm.scoring.annealing import LogZBracket, estimate_log_z
from hf_ebm.scoring.gaussian_base import GaussianBase


def conditional_energy(
    energy_fn: Callable[[Tensor], Tensor], x_next: Tensor, t: int, coefficients: DiffusionCoefficients
) -> Callable[[Tensor], Tensor]:
    """``x_t -> E(x_t, t) - log q(x_next | x_t)``, (B, ...) -> (B,), for one noisier state, shape (...)."""

    def energy(x_t: Tensor) -> Tensor:
        step = torch.full((len(x_t),), t, device=x_t.device)
        return energy_fn(x_t) - coefficients.log_q_step(x_next.expand_as(x_t), x_t, step)

    return energy


def denoising_base(clean: GaussianBase, x_next: Tensor, t: int, coefficients: DiffusionCoefficients) -> GaussianBase:
    """``q(x_t | x_next)`` for clean data ``N(m, C)``: what remains of x_t's marginal after `x_next` is seen.

        x_t ~ N(m_t, C_t),  m_t = sqrt(abar_t) m,  C_t = abar_t C + (1 - abar_t) I
        gain K = a C_t (a^2 C_t + beta I)^-1,  a = sqrt(1 - beta),  beta = beta_{t+1}
        x_t | x_next ~ N(m_t + K (x_next - a m_t), C_t - a K C_t)

    Args:
        clean: ``N(m, C)``, for example `GaussianBase.fit_full` of training data.
        x_next: One noisier state, shape of ``clean.mean``.
        t: Index of the cleaner state, 0..T-1.
        coefficients: The chain.

    Raises:
        ValueError: If `t` is out of its range or `x_next` has another shape than the data.
    """
    if not 0 <= t < coefficients.num_timesteps:
        raise ValueError(f"t must lie in 0..{coefficients.num_timesteps - 1}, got {t!r}.")
    if x_next.shape != clean.mean.shape:
        raise ValueError(f"x_next must have shape {tuple(clean.mean.shape)}, got {tuple(x_next.shape)}.")
    covariance = clean.covariance.cpu().double()  # MPS has no float64
    eye = torch.eye(len(covariance), dtype=torch.float64)
    abar, beta = coefficients.alphas_cumprod[t].item(), coefficients.betas[t + 1].item()
    a = (1.0 - beta) ** 0.5
    mean_t = abar**0.5 * clean.mean.cpu().double().flatten()
    cov_t = abar * covariance + (1.0 - abar) * eye
    gain = a * torch.linalg.solve(a**2 * cov_t + beta * eye, cov_t).T
    mean = mean_t + gain @ (x_next.cpu().double().flatten() - a * mean_t)
    remaining = cov_t - a * gain @ cov_t
    return GaussianBase.full(mean.to(clean.mean).reshape(clean.mean.shape), 0.5 * (remaining + remaining.T))


@no_grad
def estimate_conditional_log_z(
    energy_fn: Callable[[Tensor], Tensor],
    coefficients: DiffusionCoefficients,
    x_next: Tensor,
    t: int,
    clean: GaussianBase,
    samples: Sequence[Tensor] | None = None,
    **settings: Any,
) -> list[LogZBracket]:
    """A bracket of ``log Z(x_next, t)`` for each of the noisier states `x_next`.

    Args:
        energy_fn: ``x_t -> E(x_t, t)`` at this t, shape (B,).
        coefficients: The chain.
        x_next: Noisier states, shape (N, ...).
        t: Index of the cleaner state, 0..T-1.
        clean: Gaussian of the clean data, for the base.
        samples: For each noisier state, samples of the model's ``p(x_t | x_next)``, shape (M, ...), for the upper
            bound, which is strict only if they are exact; None gives no upper bounds.
        settings: Of `estimate_log_z`: ``num_chains``, ``num_temperatures``, ``scheduler``, ``generator``, ...

    Raises:
        ValueError: If an argument cannot be used.
    """
    if samples is not None and len(samples) != len(x_next):
        raise ValueError(f"samples must have one entry per noisier state, {len(x_next)}, got {len(samples)}.")
    return [
        estimate_log_z(
            conditional_energy(energy_fn, x_next[i], t, coefficients),
            denoising_base(clean, x_next[i], t, coefficients),
            None if samples is None else samples[i],
            **settings,
        )
        for i in range(len(x_next))
    ]
