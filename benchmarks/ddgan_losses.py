"""The objective of denoising diffusion GANs: one conditional discriminator per denoising step, against a generator.

The discriminator's logit ``D(x_t, x_next, t)`` separates real pairs of the diffusion from pairs
whose ``x_t`` is a posterior sample ``x_fake`` from the generator's prediction. One iteration
minimises, discriminator first,

    discriminator:  mean softplus(-D(x_t, x_next, t)) + mean softplus(D(x_fake, x_next, t))
                    + r1/2 mean ||grad_{x_t} D(x_t, x_next, t)||^2
    generator:      mean softplus(-D(x_fake, x_next, t))                                     the non-saturating loss

The optimal discriminator is ``log q(x_t | x_next) - log p(x_t | x_next)``, the difference of the
two log densities. All sums run over pixels, all means over the batch; logits are high = real, the
opposite of an energy.

Source: Xiao, Kreis & Vahdat, "Tackling the generative learning trilemma with denoising diffusion GANs", ICLR 2022,
the section on the training objective; R1 of Mescheder et al. 2018. DDAEBM uses the same diffusion and generator.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hf_ebm.losses.ddaebm import energy_gradient, gradient_penalty_from_gradient


def discriminator_loss(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """``mean softplus(-D_real) + mean softplus(D_fake)``, a scalar: the two cross entropies.

    Args:
        logit_real: ``D(x_t, x_next, t)`` of real pairs, shape (B,).
        logit_fake: ``D(x_fake, x_next, t)``, shape (B,), with `x_fake` a constant.
    """
    return F.softplus(-logit_real).mean() + F.softplus(logit_fake).mean()


def generator_loss(logit_fake: Tensor) -> Tensor:
    """``mean softplus(-D_fake)``, a scalar; `logit_fake` (B,) carries the graph to the generator.

    It is non-saturating: where the discriminator is sure of a fake its slope is -1, not 0.
    """
    return F.softplus(-logit_fake).mean()


def r1_penalty(logit_real: Tensor, x_t: Tensor, weight: float | Tensor) -> Tensor:
    """``mean_b weight/2 ||grad_{x_t} D(x_t, x_next, t)||^2``, a scalar with a graph to the discriminator.

    A lazy penalty, taken at every k-th step only, has k times the weight.

    Args:
        logit_real: ``D(x_t, x_next, t)``, shape (B,), computed from `x_t`, differentiable twice.
        x_t: Real samples at step t that require a gradient, shape (B, ...).
        weight: r1 weight >= 0, one number or one per sample, shape (B,).
    """
    return gradient_penalty_from_gradient(energy_gradient(logit_real, x_t), weight)
