"""A reference implementation of Dual-MCMC Teaching in fp32, eager: the baseline of `dual_mcmc_step.py`.

The published order of updates, with one network call per symbol of the algorithm. Each chain step
is a forward in training mode, in which spectral norm updates its estimate
(`power_iteration_in_chain`). No result is shared, parameters are never frozen, data and revised
samples have separate forwards, and the energy averages pixels after its convolutions. It uses no
loss and no chain of the package.
"""

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ebm.models.resnet_energy import EnergyBlock
from hf_ebm.training.train_dual_mcmc import DualMCMCSettings


def block_as_written(block: EnergyBlock, x: Tensor) -> Tensor:
    """The energy's residual block as in the paper: convolutions, then the average over 2x2 pixels."""
    hidden = block.conv2(F.relu(block.conv1(x if block.first else F.relu(x))))
    x = x if block.shortcut is None else block.shortcut(x)
    return F.avg_pool2d(hidden + x, 2) if block.downsample else hidden + x


class LiteralDualMCMC:
    """The three networks with their optimizers, and `step`.

    Args:
        models: Generator, energy and inference network, trained in place.
        settings: Chains, weights and learning rates.
        power_iteration_in_chain: Whether each chain step is a training forward, as in the published code; False runs
            the chains in eval mode, which is what the package's default computes.
    """

    def __init__(
        self, models: tuple[Any, Any, Any], settings: DualMCMCSettings, power_iteration_in_chain: bool = True
    ) -> None:
        self.models, self.settings, self.in_chain = models, settings, power_iteration_in_chain
        self.generator, self.energy, self.inference = models
        for model in models:
            model.train()
        for module in self.energy.modules():
            if isinstance(module, EnergyBlock):
                module.forward = types.MethodType(block_as_written, module)  # type: ignore[method-assign]
        rates = (
            (settings.generator_learning_rate, settings.weight_decay),
            (settings.energy_learning_rate, 0.0),
            (settings.inference_learning_rate, settings.weight_decay),
        )
        self.optimizers = [
            torch.optim.Adam(model.parameters(), rate, settings.adam_betas, weight_decay=decay, foreach=False)
            for model, (rate, decay) in zip(models, rates, strict=True)
        ]

    def x_chain(self, x: Tensor) -> Tensor:
        """Eq. 3: Langevin steps on the energy."""
        s = self.settings
        self.energy.train(self.in_chain)
        x = x.detach()
        for _ in range(s.x_num_steps):
            noise = torch.randn_like(x)
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.energy(x).energy.sum(), x)
            x = (x - 0.5 * s.x_step_size**2 * gradient + s.x_noise_std * noise).detach()
        self.energy.train()
        return x

    def z_chain(self, z: Tensor, x: Tensor) -> Tensor:
        """Eq. 6: Langevin steps on the generator's posterior; the squared error without its 1/2."""
        s = self.settings
        z = z.detach()
        for _ in range(s.z_num_steps):
            noise = torch.randn_like(z)
            z.requires_grad_(True)
            error = torch.sum((self.generator(z).sample - x) ** 2) / s.likelihood_std**2
            (gradient,) = torch.autograd.grad(error + 0.5 * torch.sum(z**2), z)
            z = (z - 0.5 * s.z_step_size**2 * gradient + s.z_noise_std * noise).detach()
        return z

    def update(self, index: int, loss: Tensor) -> None:
        """One optimizer step of the index-th network."""
        self.optimizers[index].zero_grad()
        loss.backward()
        self.optimizers[index].step()

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """One iteration on the batch `x`; the terms of the losses, named as the package does."""
        s, batch = self.settings, len(x)

        # 1. the generator
        z = torch.randn(batch, self.generator.config.latent_dim, device=x.device)
        with torch.no_grad():
            start = self.generator(z).sample
        x_revised = self.x_chain(start)
        with torch.no_grad():
            inferred = self.inference(x)
            z_inferred = inferred.mean + torch.exp(inferred.logvar / 2) * torch.randn_like(inferred.mean)
        z_revised = self.z_chain(z_inferred, x)
        reconstruction = torch.sum((self.generator(z_revised).sample - x) ** 2) / batch
        teaching = torch.sum((self.generator(z).sample - x_revised) ** 2) / batch
        self.update(0, s.recon_weight * reconstruction + s.sample_weight * teaching)

        # 2. the inference model
        nlls = []
        for images, latents in ((x, z_revised), (x_revised, z)):
            q = self.inference(images)
            nlls.append(torch.sum(q.logvar + (latents - q.mean) ** 2 / torch.exp(q.logvar)) / (2 * batch))
        inference = nlls[0] + s.latent_weight * nlls[1]
        self.update(2, inference)

        # 3. the energy, on the updated generator's samples
        with torch.no_grad():
            start = self.generator(z).sample
        x_revised = self.x_chain(start)
        energy_data = torch.mean(self.energy(x).energy)
        energy_revised = torch.mean(self.energy(x_revised).energy)
        temperature = math.pow(s.x_noise_std / s.x_step_size, 2)
        self.update(1, (energy_data - energy_revised) / temperature)
        return {
            "energy_data": energy_data,
            "energy_revised": energy_revised,
            "reconstruction": reconstruction,
            "teaching": teaching,
            "inference": inference,
        }
