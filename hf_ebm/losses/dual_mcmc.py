"""The objectives of Dual-MCMC Teaching: three models, each learning from what the two Langevin chains revised.

With ``x_gen = g(z)``, ``x_revised`` its end of the x-chain on the energy, ``z_inferred ~ q(z | x)`` and ``z_revised``
its end of the z-chain on `posterior_energy`, one iteration minimises

    generator:  recon_weight mean ||g(z_revised) - x||^2 + sample_weight mean ||g(z) - x_revised||^2          Eq. 10
    inference:  NLL(z_revised; q(. | x)) + latent_weight NLL(z; q(. | x_revised))                             Eq. 15
    energy:     (mean E(x) - mean E(x_revised)) / temperature                                                 Eq. 7

All sums run over pixels (or latent dimensions), all means over the batch; energies are low = likely (the paper's
``f = -E``). Revised samples are constants: no gradient flows through a chain.

Source: Cui & Han, "Learning Energy-based Model via Dual-MCMC Teaching", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """``||x - target||^2`` of each sample, summed over pixels, shape (B, ...) -> (B,), in float32."""
    return (x.float() - target.float()).square().flatten(1).sum(dim=1)


def posterior_energy(generator_fn: Callable[[Tensor], Tensor], z: Tensor, x: Tensor, likelihood_std: float) -> Tensor:
    """``||g(z) - x||^2 / likelihood_std^2 + ||z||^2 / 2``, shape (B,): its gradient drives the z-chain (Eq. 6).

    The squared error carries no 1/2, as in the published code: ``likelihood_std`` = 0.3 is an effective 0.212.

    Args:
        generator_fn: ``z -> g(z)``, the mean of ``p(x | z)``.
        z: Latents, shape (B, Z).
        x: Images the latents shall explain, shape (B, ...).
        likelihood_std: Standard deviation of ``p(x | z)``, > 0.
    """
    return squared_error(generator_fn(z), x) / likelihood_std**2 + 0.5 * z.float().square().sum(dim=1)


def energy_loss(energy_data: Tensor, energy_revised: Tensor, temperature: float) -> Tensor:
    """``(mean E(x) - mean E(x_revised)) / temperature``, a scalar (Eq. 7). Both energies have shape (B,).

    `temperature` is ``(noise_std / step_size)^2`` of the x-chain, whose target is ``exp(-E / temperature)``.
    """
    return (energy_data.mean() - energy_revised.mean()) / temperature


def generator_loss(
    recon: Tensor, x: Tensor, x_gen: Tensor, x_revised: Tensor, recon_weight: float, sample_weight: float
) -> Tensor:
    """``recon_weight mean ||g(z_revised) - x||^2 + sample_weight mean ||g(z) - x_revised||^2``, a scalar (Eq. 10).

    Args:
        recon: ``g(z_revised)``, shape (B, ...).
        x: Data, shape (B, ...).
        x_gen: ``g(z)``, shape (B, ...).
        x_revised: The end of the x-chain started at ``x_gen``, a constant, shape (B, ...).
        recon_weight: Weight of the data's part; the paper has 1.
        sample_weight: Weight of the energy's part; the published code has 50 (CelebA 70).
    """
    return recon_weight * squared_error(recon, x).mean() + sample_weight * squared_error(x_gen, x_revised).mean()


def latent_nll(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """``mean_b sum_i [logvar + (z - mean)^2 / exp(logvar)] / 2``, a scalar: without its constant ``Z/2 log(2 pi)``."""
    return 0.5 * (logvar + (z - mean).square() * (-logvar).exp()).sum(dim=1).mean()


def inference_loss(
    z_revised: Tensor,
    mean: Tensor,
    logvar: Tensor,
    z: Tensor,
    mean_gen: Tensor,
    logvar_gen: Tensor,
    latent_weight: float,
) -> Tensor:
    """``NLL(z_revised; q(. | x)) + latent_weight NLL(z; q(. | x_revised))``, a scalar (Eq. 15), without constants.

    Args:
        z_revised: The end of the z-chain started at a sample of ``q(z | x)``, a constant, shape (B, Z).
        mean, logvar: ``q(z | x)``, each (B, Z).
        z: The latents that `x_revised` was generated from, shape (B, Z).
        mean_gen, logvar_gen: ``q(z | x_revised)``, each (B, Z).
        latent_weight: Weight of the second part; the published code has 0.1.
    """
    return latent_nll(z_revised, mean, logvar) + latent_weight * latent_nll(z, mean_gen, logvar_gen)


def noised_samples(x: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """``x + std noise``, images clamped to [-1, 1], shape of `x`: starts of chains far from the data.

    A generator that samples well gives the energy no negatives far from the data, where it then learns nothing.

    Args:
        x: Training samples, shape (B, ...).
        std: Standard deviation of each one's noise, shape (B,).
        noise: Standard normal, shape of `x`.
    """
    noised = x + std.reshape(-1, *[1] * (x.ndim - 1)) * noise
    return noised.clamp(-1.0, 1.0) if x.ndim == 4 else noised
