"""A reference implementation of DDAEBM's iteration: the baseline of `train_step.py`, and an independent check.

fp32, eager, NCHW, one network call per symbol of the algorithm: ``E`` on real samples, on fakes,
and again for the gradient penalty; the generator again for its own update and for each kind of
latent; the energy not frozen in the generator's update; `torch.optim.Adam` with its defaults;
averages in a loop over parameters. The formulas are implemented independently of the package on
purpose; only the networks are the package's.

Source: Geng et al., "Improving Adversarial Energy-Based Model via Diffusion Process", ICML 2024.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.training.train_ddaebm import DDAEBMSettings


@dataclass
class Draws:
    """The random numbers of one iteration: `t` (B,), noises of the shape of x, latents' noises (B, latent_dim)."""

    t: Tensor
    noise_t: Tensor
    noise_next: Tensor
    noise_fake: Tensor
    z: Tensor
    noise_z: Tensor


def draw(x: Tensor, num_timesteps: int, latent_dim: int) -> Draws:
    """Sample the random numbers of one iteration from torch's global state, in the order of the package's train step.

    Equal to the package's where no dropout draws in between. A change of that order there has to be made here too.
    """
    t = torch.multinomial(torch.ones(num_timesteps, device=x.device), x.shape[0], replacement=True)
    noise_t, noise_next, noise_fake = (torch.randn_like(x) for _ in range(3))
    z, noise_z = (torch.randn(x.shape[0], latent_dim, device=x.device) for _ in range(2))
    return Draws(t, noise_t, noise_next, noise_fake, z, noise_z)


class Chain:
    """The diffusion's coefficients with uniform times: ``beta``, ``abar`` of the T + 1 states, and the posterior."""

    def __init__(self, num_timesteps: int, beta_min: float, beta_max: float, device: torch.device) -> None:
        u = 1e-3 + (1 - 1e-3) * torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        abar = torch.exp(-0.5 * u**2 * (beta_max - beta_min) - u * beta_min)
        beta = torch.cat([1 - abar[:1], 1 - abar[1:] / abar[:-1]]).clamp(max=0.999)
        abar = torch.cumprod(1 - beta, dim=0)
        self.beta, self.abar = beta.float().to(device), abar.float().to(device)
        self.coef_x0 = (beta[1:] * abar[:-1].sqrt() / (1 - abar[1:])).float().to(device)
        self.coef_xnext = ((1 - abar[:-1]) * (1 - beta[1:]).sqrt() / (1 - abar[1:])).float().to(device)
        variance = beta[1:] * (1 - abar[:-1]) / (1 - abar[1:])
        self.posterior_std = variance.clamp(min=1e-4).sqrt().float().to(device)

    @staticmethod
    def at(values: Tensor, t: Tensor) -> Tensor:
        """``values[t]`` for images, shape (B, 1, 1, 1)."""
        return values[t].view(-1, 1, 1, 1)

    def log_transition(self, x_next: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``log q(x_next | x_t)``, shape (B,)."""
        beta = self.at(self.beta, t + 1)
        squares = (x_next - (1 - beta).sqrt() * x_t) ** 2 / beta
        return (-0.5 * (squares + beta.log() + math.log(2 * math.pi))).sum(dim=(1, 2, 3))

    def posterior_mean(self, x0: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """Mean of ``q(x_t | x_next, x0)``."""
        return self.at(self.coef_x0, t) * x0 + self.at(self.coef_xnext, t) * x_next

    def posterior_sample(self, x0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A sample of ``q(x_t | x_next, x0)``, without noise at t = 0."""
        std = self.at(self.posterior_std, t) * (t > 0).view(-1, 1, 1, 1)
        return self.posterior_mean(x0, x_next, t) + std * noise


class LiteralDDAEBM:
    """The three networks, their optimizers and averages, and `step`, one iteration.

    Args:
        models: Generator, energy and inference model, on their device; updated in place.
        settings: Numbers only: diffusion, weights, learning rates, betas, EMA decay.
    """

    def __init__(self, models: tuple[Any, Any, Any], settings: DDAEBMSettings) -> None:
        self.generator, self.energy, self.inference = models
        self.settings = settings
        for model in models:
            model.train()
        device = next(self.energy.parameters()).device
        self.chain = Chain(settings.num_timesteps, settings.beta_min, settings.beta_max, device)
        self.energy_optimizer = torch.optim.Adam(
            self.energy.parameters(), lr=settings.energy_learning_rate, betas=settings.adam_betas
        )
        self.generator_optimizer = torch.optim.Adam(
            [*self.generator.parameters(), *self.inference.parameters()],
            lr=settings.generator_learning_rate,
            betas=settings.adam_betas,
        )
        self.averages = [(model, copy.deepcopy(model)) for model in (self.generator, self.energy)]
        self.num_steps = 0

    def step(self, x: Tensor, draws: Draws) -> dict[str, Tensor]:
        """One update of the energy, then one of generator and inference model, then the averages.

        Args:
            x: Clean images in [-1, 1], shape (B, C, H, W).
            draws: The iteration's random numbers.

        Returns:
            The terms of the losses, under the names that the package's train step gives them.
        """
        chain, settings, t = self.chain, self.settings, draws.t
        abar, beta = chain.at(chain.abar, t), chain.at(chain.beta, t + 1)
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * draws.noise_t
        x_next = (1 - beta).sqrt() * x_t + beta.sqrt() * draws.noise_next

        # energy
        self.energy_optimizer.zero_grad()
        x0_pred = self.generator(x_next, t, draws.z).sample
        x_fake = chain.posterior_sample(x0_pred, x_next, t, draws.noise_fake).detach()
        energy_real = self.energy(x_t, t).energy
        energy_fake = self.energy(x_fake, t).energy
        x_real = x_t.clone().requires_grad_(True)
        log_density = -self.energy(x_real, t).energy + chain.log_transition(x_next, x_real, t)
        (score,) = torch.autograd.grad(log_density.sum(), x_real, create_graph=True)
        penalty = settings.r1_weight / 2 * score.pow(2).sum(dim=(1, 2, 3)).mean()
        (energy_real.mean() - energy_fake.mean() + penalty).backward()
        self.energy_optimizer.step()

        # generator and inference model
        self.generator_optimizer.zero_grad()
        x0_pred = self.generator(x_next, t, draws.z).sample
        x_fake = chain.posterior_sample(x0_pred, x_next, t, draws.noise_fake)
        adversarial = (self.energy(x_fake, t).energy - chain.log_transition(x_next, x_fake, t)).mean()
        q_fake = self.inference(x_fake, x_next, t)
        squares = (draws.z - q_fake.mean) ** 2 / (q_fake.logvar.exp() + 1e-6)
        latent = (0.5 * (q_fake.logvar + squares)).sum(dim=1).mean()
        q_real = self.inference(x_t, x_next, t)
        kl = 0.5 * (q_real.mean**2 + q_real.logvar.exp() - 1 - q_real.logvar).sum(dim=1).mean()
        z_psi = q_real.mean + (0.5 * q_real.logvar).exp() * draws.noise_z
        predicted = chain.posterior_mean(self.generator(x_next, t, z_psi).sample, x_next, t)
        reconstruction = (x_t - predicted).pow(2).sum(dim=(1, 2, 3)).mean()
        (adversarial + settings.latent_weight * latent + kl + reconstruction).backward()
        self.generator_optimizer.step()

        self.average()
        return {
            "energy_real": energy_real.mean(),
            "energy_fake": energy_fake.mean(),
            "gradient_penalty": penalty,
            "adversarial": adversarial,
            "latent": latent,
            "kl": kl,
            "reconstruction": reconstruction,
        }

    @torch.no_grad()
    def average(self) -> None:
        """``ema = decay ema + (1 - decay) parameter``, the decay rising as in diffusers' `EMAModel`."""
        decay = min(self.settings.ema_decay, (1 + self.num_steps) / (10 + self.num_steps)) if self.num_steps else 0.0
        for model, averaged in self.averages:
            for parameter, mean in zip(model.parameters(), averaged.parameters(), strict=True):
                mean.mul_(decay).add_(parameter, alpha=1 - decay)
        self.num_steps += 1
