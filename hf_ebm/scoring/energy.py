"""``E(x, t)`` of a set of samples: the one function behind every pipeline's ``score``.

The energy is an unnormalised negative log density, low = likely: a large value says "unlike the training data". It is
computed in eval mode, so that dropout never touches a score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ebm.devices import send
from hf_ebm.langevin import check_energy
from hf_ebm.memory_format import channels_last_on_cpu
from hf_ebm.models.energy import EnergyModel
from hf_ebm.models.eval_copy import in_eval


@dataclass
class ScoreOutput(BaseOutput):
    """Energies of a set of samples.

    Attributes:
        energies: ``E(x, 0)`` in nats, low = likely, shape (B,), float32, on the CPU.
        energies_all_timesteps: ``E(x, t)`` for t = 0..T-1, shape (B, T), on request.
    """

    energies: Tensor
    energies_all_timesteps: Tensor | None = None


def compute_energies(energy_model: EnergyModel, x: Tensor, timestep: int = 0, batch_size: int = 256) -> Tensor:
    """``E(x, timestep)``, shape (N,), float32, on the CPU; otherwise as `energies_on_device`."""
    return energies_on_device(energy_model, x, timestep, batch_size).cpu()


@torch.no_grad()
def energies_on_device(energy_model: EnergyModel, x: Tensor, timestep: int = 0, batch_size: int = 256) -> Tensor:
    """``E(x, timestep)``, shape (N,), float32, where the model is; a GPU may still be computing it.

    Deterministic (eval mode), whatever mode the model is in, which stays as it is.

    Args:
        energy_model: Any model of the energy contract.
        x: Samples in the model's own range, shape (N, ...), on any device.
        timestep: Noise level 0..T-1; methods without time ignore it.
        batch_size: Samples per forward pass, >= 1; it changes memory, not values.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}.")
    energy_model, parts = in_eval(energy_model), []
    for part in x.split(batch_size):
        part = channels_last_on_cpu(send(part, energy_model.device, energy_model.dtype))
        energy = energy_model(part, timestep).energy
        check_energy(energy, part)
        parts.append(energy.float())
    return torch.cat(parts)


def score_samples(
    energy_model: EnergyModel, x: Tensor, all_timesteps: bool = False, batch_size: int = 256
) -> ScoreOutput:
    """``E(x, 0)`` of each sample, and with `all_timesteps` the energies of every noise level at the same x."""
    if not all_timesteps:
        return ScoreOutput(energies=compute_energies(energy_model, x, 0, batch_size))
    num_timesteps = getattr(energy_model.config, "num_timesteps", 1)
    columns = [compute_energies(energy_model, x, t, batch_size) for t in range(num_timesteps)]
    return ScoreOutput(energies=columns[0], energies_all_timesteps=torch.stack(columns, dim=1))
