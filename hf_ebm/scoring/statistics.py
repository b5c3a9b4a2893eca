"""Statistics of a sample that any energy model gives, which `hf_ebm.scoring.scores` combines into OOD scores.

    energy                E(x, 0), an unnormalised negative log density, low = likely
    energies              E(x_t, t) at all noise levels, x_t noised by one fixed noise
    gradient_norm         ||grad_x E(x, 0)||
    clean_energies        E(x, t) at all noise levels, of x itself
    gradient_norms        ||grad_x E(x, t)|| at all noise levels, of x itself
    compressed_size       bits of the image as a lossless PNG
    reconstruction_error  mean squared error of the model's reconstruction

Energies are computed in eval mode, and by the same function for every pipeline's ``score``.

The pipeline of a method knows how its models reconstruct (`EBMPipeline.make_reconstruction_error`). The noise is one
tensor for all samples, given by a seed, so the statistics of a sample depend neither on the other samples of its batch
nor on its position or process.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, TypeVar

import PIL.Image
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ebm.data.pseudo_labels import assign_labels
from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import energy_and_grad, energy_grad
from hf_ebm.models.energy import EnergyModel, energy_of
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.utils.torch_utils import channels_last_on_cpu, execution_device, send
from hf_ebm.utils.validation import check_count


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
    """``E(x, timestep)``, shape (N,), float32, on the device of the model, possibly still being computed there.

    Deterministic: computed in eval mode, without changing the mode of the model.

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


B = TypeVar("B")


def statistics_of_batches(
    batches: Iterable[B], compute: Callable[[B], dict[str, Tensor]]
) -> Iterator[tuple[B, dict[str, Tensor]]]:
    """Yield each batch with its statistics, on the CPU.

    Those of a batch are read when the next batch is under way, so that a GPU computes while that is prepared.
    """
    begun: Iterable[Any] = ((batch, compute(batch)) for batch in batches)
    for (batch, statistics), _ in pairwise(chain(begun, [None])):
        yield batch, {name: values.cpu() for name, values in statistics.items()}


def make_statistics_function(
    model: EnergyModel,
    names: Collection[str],
    seed: int,
    coefficients: DiffusionCoefficients | None = None,
    reconstruction_error: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], dict[str, Tensor]]:
    """``x -> the named statistics``, each (B,) or (B, T), of samples in the model's range, shape (B, ...).

    Statistics stay on the device that computed them, and a GPU may still be computing them.

    Args:
        model: The energy.
        names: Names of the statistics.
        seed: Seed of their noise.
        coefficients: The diffusion the energy was trained on, for ``"energies"``.
        reconstruction_error: ``x -> errors``, shape (B,), for ``"reconstruction_error"``.
    """
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "energy": lambda x: energies_on_device(model, x, 0, len(x)),
        "energies": lambda x: compute_all_energies(model, x, coefficients, seed, len(x)),
        "gradient_norm": lambda x: compute_gradient_norm(model, x, len(x)),
        "compressed_size": compute_compressed_size,
    }
    if reconstruction_error is not None:
        functions["reconstruction_error"] = reconstruction_error
    chosen = {name: function for name, function in functions.items() if name in names}  # a GPU's first
    levels = {"clean_energies", "gradient_norms"} & {*names}

    def compute(x: Tensor) -> dict[str, Tensor]:
        found = {name: function(x) for name, function in chosen.items()}
        return {**found, **(compute_clean_energies(model, x, "gradient_norms" in levels, len(x)) if levels else {})}

    return compute


def compute_all_energies(
    energy_model: Any, x: Tensor, coefficients: DiffusionCoefficients | None, seed: int = 0, batch_size: int = 256
) -> Tensor:
    """``E(x_t, t)`` of every noise level, shape (N, T), where the model is, with one noise tensor for all samples.

    Args:
        energy_model: An energy with noise levels; one without gives T = 1 and ``E(x)``.
        x: Clean samples, shape (N, ...).
        coefficients: The chain the energy was trained on; None only for an energy without noise levels.
        seed: Of the noise.
        batch_size: Samples per forward pass.
    """
    if coefficients is None:
        return energies_on_device(energy_model, x, 0, batch_size)[:, None]
    q = coefficients.to("cpu")
    noise = torch.randn(q.num_timesteps, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    columns = []
    for t in range(q.num_timesteps):
        times = torch.full((x.shape[0],), t)
        x_t = q.q_sample(x.cpu(), times, noise[t].expand(x.shape))
        columns.append(energies_on_device(energy_model, x_t, t, batch_size))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def most_likely_labels(energy_model: Any, x: Tensor, num_classes: int, batch_size: int = 256) -> Tensor | None:
    """The most likely label of each sample by p(y | x), shape (N,), int64, on the device of `x`.

    Where an energy without class scores was trained on clusters, it is the number of the nearest centre.

    Args:
        energy_model: The energy, or None.
        x: Samples in the model's own range, shape (N, ...), on any device.
        num_classes: Number of labels of the model that is to be given them.
        batch_size: Samples per forward pass.

    Returns:
        None if the energy has no such labels.
    """
    config: Any = getattr(energy_model, "config", None)
    if not num_classes or getattr(config, "num_classes", 0) != num_classes:
        return None
    if not config.class_scores:
        return None if config.pseudo_label_centres is None else assign_labels(x, config.pseudo_label_centres)
    energy_model, device, parts = in_eval(energy_model), execution_device(energy_model), []
    for part in x.split(batch_size):
        logits = energy_model(channels_last_on_cpu(send(part, device, energy_model.dtype))).logits
        parts.append(logits.argmax(dim=1))
    return torch.cat(parts).to(x.device)


def compute_clean_energies(
    energy_model: Any, x: Tensor, with_gradient_norms: bool = False, batch_size: int = 256
) -> dict[str, Tensor]:
    """``E(x, t)`` of every noise level at the same x, and the norms of their gradients, from one pass for both.

    Args:
        energy_model: An energy; one without noise levels gives T = 1.
        x: Samples in the model's range, shape (N, ...).
        with_gradient_norms: Whether to compute the norms.
        batch_size: Samples per forward pass.

    Returns:
        ``clean_energies`` and, if asked for, ``gradient_norms``, each of shape (N, T), float32, where the model is.
    """
    levels = range(getattr(energy_model.config, "num_timesteps", 1))
    if not with_gradient_norms:
        columns = [energies_on_device(energy_model, x, t, batch_size) for t in levels]
        return {"clean_energies": torch.stack(columns, dim=1)}
    frozen, device = eval_copy(energy_model), execution_device(energy_model)
    energies, norms = [], []
    for part in x.split(batch_size):
        part = channels_last_on_cpu(send(part, device, energy_model.dtype))
        pairs = [energy_and_grad(functools.partial(energy_of, frozen, timestep=t), part) for t in levels]
        energies.append(torch.stack([energy.float() for energy, _ in pairs], dim=1))
        norms.append(torch.stack([grad.float().flatten(1).norm(dim=1) for _, grad in pairs], dim=1))
    return {"clean_energies": torch.cat(energies), "gradient_norms": torch.cat(norms)}


def compute_gradient_norm(energy_model: Any, x: Tensor, batch_size: int = 256) -> Tensor:
    """``||grad_x E(x, 0)||``, shape (N,), float32, where the model computes."""
    frozen, device, parts = eval_copy(energy_model), execution_device(energy_model), []
    for part in x.split(batch_size):
        part = channels_last_on_cpu(send(part, device, energy_model.dtype))
        grad = energy_grad(lambda x: energy_of(frozen, x, 0), part)
        parts.append(grad.float().flatten(1).norm(dim=1))
    return torch.cat(parts)


def compute_compressed_size(x: Tensor) -> Tensor:
    """Bits of each image as a lossless PNG of 8 bits per value, without the fixed part of the file, shape (N,).

    Args:
        x: Images in [-1, 1], shape (N, C, H, W); channels beyond gray and RGB are compressed one by one.
    """
    if x.ndim != 4:
        raise ValueError(f"the compressed size is one of images (N, C, H, W), got shape {tuple(x.shape)}.")
    pixels = ((x.cpu().float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    sizes = []
    for image in pixels:
        layers = [image] if image.shape[-1] == 3 else [image[..., channel] for channel in range(image.shape[-1])]
        sizes.append(8.0 * sum(_png_bytes(layer) - _png_bytes(layer[:1, :1] * 0) for layer in layers))
    return torch.tensor(sizes)


def _png_bytes(pixels: Any) -> int:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.tell()
