"""The objectives of DDAEBM: one conditional energy per denoising step, against a generator and an inference model.

The conditional model of a step is ``p(x_t | x_next) ~ exp(-E(x_t, t)) q(x_next | x_t)``. With ``x_fake`` a posterior
sample from the generator's prediction, one iteration minimises, energy first,

    energy:     mean E(x_t, t) - mean E(x_fake, t) + r1/2 mean ||grad_{x_t} [-E(x_t, t) + log q(x_next | x_t)]||^2
    generator:  mean [E(x_fake, t) - log q(x_next | x_fake)]                    reverse KL
    + inference  + latent_weight mean -log q_psi(z | x_fake, x_next)            entropy of the generator, bounded
                + KL(q_psi(z | x_t, x_next) || N(0, I)) - log p(x_t | x_next, z_psi)         forward KL, an ELBO

All sums run over pixels (or latent dimensions), all means over the batch; energies are in nats, low = likely.

Source: Geng et al., "Improving Adversarial Energy-Based Model via Diffusion Process", ICML 2024, the section that
derives the objective from the symmetric Jeffrey divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients

VARIANCE_EPS = 1e-6  # keeps the latent likelihood finite when the inference model grows certain


def energy_loss(energy_real: Tensor, energy_fake: Tensor) -> Tensor:
    """``mean E(x_t, t) - mean E(x_fake, t)``, a scalar. Both arguments are energies of shape (B,)."""
    return energy_real.mean() - energy_fake.mean()


def energy_magnitude_term(energy_real: Tensor, energy_fake: Tensor) -> Tensor:
    """``mean E(x_t, t)^2 + mean E(x_fake, t)^2``, a scalar; not in the paper (Du & Mordatch 2019 use it).

    With a weight w it holds E under ``1 / (2 w)`` where there are fakes only. The gradient penalty need not keep the
    energy from running away then, and can be as small as narrow modes need.
    """
    return energy_real.square().mean() + energy_fake.square().mean()


def energy_gradient(energy: Tensor, x_t: Tensor) -> Tensor:
    """``grad_{x_t} E`` of each sample with its graph kept, shape of `x_t`; `energy` (B,) was computed from `x_t`."""
    (grad,) = torch.autograd.grad(energy.sum(), x_t, create_graph=True)
    return grad


def gradient_penalty_from_gradient(
    grad_energy: Tensor, weight: float | Tensor, grad_log_transition: Tensor | None = None
) -> Tensor:
    """``mean_b weight/2 ||-grad E + grad log q(x_next | x_t)||^2``, a scalar: R1 on the conditional model's score.

    Args:
        grad_energy: ``grad_{x_t} E(x_t, t)`` at real samples, shape (B, ...), with its graph.
        weight: r1 weight >= 0, one number or one per sample, shape (B,).
        grad_log_transition: ``grad_{x_t} log q(x_next | x_t)``, shape (B, ...); None gives plain R1.
    """
    score = -grad_energy if grad_log_transition is None else grad_log_transition - grad_energy
    return (0.5 * weight * score.float().square().flatten(1).sum(dim=1)).mean()


def gradient_penalty(
    energy_fn: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    x_next: Tensor,
    t: Tensor,
    coefficients: DiffusionCoefficients,
    weight: float | Tensor,
    include_transition: bool = True,
) -> Tensor:
    """``weight/2 mean_b ||grad_{x_t} [-E(x_t, t) + log q(x_next | x_t)]||^2``, a scalar with a graph to the energy.

    A train step that has ``E(x_t, t)`` already saves a forward pass with `energy_gradient` and
    `gradient_penalty_from_gradient`, of which this function is made.

    Args:
        energy_fn: ``(x_t, t) -> E``, shape (B,), differentiable twice.
        x_t: Real samples at step t, shape (B, ...).
        x_next: Their noisier successors, shape (B, ...).
        t: Step index, 0..T-1, shape (B,).
        coefficients: The chain.
        weight: r1 weight >= 0, one number or one per sample, shape (B,).
        include_transition: Whether the transition density is part of the penalised score; False is plain R1.
    """
    x_t = x_t.detach().requires_grad_(True)
    with torch.enable_grad():
        grad_energy = energy_gradient(energy_fn(x_t, t), x_t)
        grad_log_q = coefficients.log_q_step_grad(x_next, x_t.detach(), t) if include_transition else None
        return gradient_penalty_from_gradient(grad_energy, weight, grad_log_q)


def adversarial_term(energy_fake: Tensor, log_q: Tensor) -> Tensor:
    """``mean [E(x_fake, t) - log q(x_next | x_fake)]``, a scalar; both arguments have shape (B,)."""
    return (energy_fake - log_q).mean()


def latent_term(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """``mean_b sum_i [logvar/2 + (z - mean)^2 / (2 (exp(logvar) + 1e-6))]``, a scalar.

    The negative log-likelihood of the latents ``z`` (B, Z) that made a sample, under the inference model's
    ``N(mean, exp(logvar))``, without its constant ``Z/2 log(2 pi)``.
    """
    nll = 0.5 * logvar + 0.5 * (z - mean) ** 2 / (logvar.exp() + VARIANCE_EPS)
    return nll.flatten(1).sum(dim=1).mean()


def kl_term(mean: Tensor, logvar: Tensor) -> Tensor:
    """``KL(N(mean, exp(logvar)) || N(0, I))``, summed over latent dimensions, mean over the batch, a scalar."""
    return 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).flatten(1).sum(dim=1).mean()


def reconstruction_term(x_t: Tensor, predicted: Tensor) -> Tensor:
    """``mean_b ||x_t - predicted||^2``, summed over pixels, a scalar (the image settings).

    `predicted` is the posterior mean computed from the generator's ``x0_pred``, shape (B, ...).
    """
    return (x_t - predicted).square().flatten(1).sum(dim=1).mean()


def reconstruction_nll_term(
    x_t: Tensor, predicted: Tensor, log_variance: Tensor, weight: float | Tensor = 1.0
) -> Tensor:
    """``mean_b weight sum [(x_t - predicted)^2 / variance + log(2 pi variance)] / 2``, a scalar (2-D, LSUN settings).

    Args:
        x_t: Real samples, shape (B, ...).
        predicted: The posterior mean from the generator's prediction, shape (B, ...).
        log_variance: Log of the posterior variance (clamped below) of each sample, broadcastable to `x_t`.
        weight: One number, or one per sample, shape (B,): the LSUN setting uses `lsun_step_weight`.
    """
    nll = 0.5 * ((x_t - predicted) ** 2 * (-log_variance).exp() + log_variance + math.log(2.0 * math.pi))
    return (weight * nll.flatten(1).sum(dim=1)).mean()


def lsun_step_weight(t: Tensor, times: Tensor) -> Tensor:
    """``0.6 u_{t+1}^1.585``, shape (B,): the published LSUN setting's weight per step; `times` are ``u_0..u_T``."""
    return 0.6 * times.float().to(t.device)[t + 1] ** 1.585
