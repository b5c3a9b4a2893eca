"""``E(x, t)`` of a set of samples: the one function behind every pipeline's ``score``.

The energy is an unnormalised negative log density, low = likely: a large value says "unlike the training data". It is
computed in eval mode, so that dropout never touches a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ebm.counting import check_count
from hf_ebm.devices import execution_device, send
from hf_ebm.memory_format import channels_last_on_cpu
from hf_ebm.models.energy import EnergyModel, energy_of
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
    """``E(x, timestep)``, shape (N,), float32, on the CPU; otherwise as `energies_on_device`.

    Raises:
        ValueError: If an energy is NaN.
    """
    energies = energies_on_device(energy_model, x, timestep, batch_size).cpu()
    check_not_nan("energy", energies)
    return energies


def check_not_nan(name: str, values: Tensor, ids: Sequence[Any] | None = None) -> None:
    """Raise a `ValueError` if a value of an image is NaN.

    Args:
        name: What the values are, such as "energy".
        values: Shape (N,) or (N, T), on the CPU.
        ids: Names of the images; None = their numbers, counted from 0.
    """
    bad = values.isnan().reshape(len(values), -1).any(dim=1)
    if number := int(bad.sum()):
        index = int(bad.nonzero()[0])
        first = f"number {index}, counted from 0" if ids is None else repr(ids[index])
        raise ValueError(
            f"{name} is NaN for {number} of {len(values)} images (the first: {first}); check "
            "these images for NaN values, the model's weights for values that are not finite, and its dtype: float16 "
            "overflows where float32 and bfloat16 do not."
        )


@torch.no_grad()
def energies_on_device(energy_model: EnergyModel, x: Tensor, timestep: int = 0, batch_size: int = 256) -> Tensor:
    """``E(x, timestep)``, shape (N,), float32, where the model computes; a GPU may still be at work.

    Deterministic (eval mode), whatever mode the model is in, which stays as it is.

    Args:
        energy_model: Any model of the energy contract.
        x: Samples in the model's own range, shape (N, ...), on any device.
        timestep: Noise level 0..T-1; methods without time ignore it.
        batch_size: Samples per forward pass, >= 1; it changes memory, not values.
    """
    batch_size = check_count("batch_size", batch_size, 1)
    energy_model, device, parts = in_eval(energy_model), execution_device(energy_model), []
    for part in x.split(batch_size):
        part = channels_last_on_cpu(send(part, device, energy_model.dtype))
        parts.append(energy_of(energy_model, part, timestep).float())
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
