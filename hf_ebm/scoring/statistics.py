"""Statistics of a sample that any energy model gives, which `hf_ebm.scoring.scores` combines into OOD scores.

Cost in passes of the energy (F = forward, B = backward, T = noise levels) unless another network is named:

    energy                 E(x, 0), an unnormalised negative log density, low = likely           1 F
    energies               E(x_t, t) at all noise levels, x_t noised by one fixed noise          T F
    gradient_norm          ||grad_x E(x, 0)||                                                    1 F + 1 B
    clean_energies         E(x, t) at all noise levels, of x itself                              T F
    gradient_norms         ||grad_x E(x, t)|| at all noise levels, of x itself                   T F + T B
    class_log_odds         log p(y | x) / (1 - p(y | x)) of the most likely class y, t = 0       1 F
    class_log_entropy      log of the entropy of p(y | x), t = 0                                 1 F
    compressed_size        bits of the image as a lossless PNG                                   none
    reconstruction_error   mean squared error of the model's reconstruction                      see below
    reconstruction_errors  the same from each noise level                                        see below
    encoder_features       features of an image encoder, of length one                           1 F of the encoder

Those of x itself share passes: all of them together cost T F + T B (`compute_pass_statistics`). A DDAEBM's
reconstruction error costs 8 forward passes of the generator, those of all levels 8 T, of which the first level's is the
single one. Dual-MCMC Teaching has one error, of its z-chain: a forward pass of the inference model, and of the
generator one F + B per step and a last F. With classes their most likely label costs one more F.

The largest p(y | x) is near 1 for most samples. Its log odds and the logarithm of the entropy are computed from the
logits without rounding 1 - p, so that they tell confident samples apart and are finite; see `class_statistics`.

Energies are computed in eval mode, and by the same function for every pipeline's ``score``.

The pipeline of a method knows how its models reconstruct (`EBMPipeline.make_reconstruction_error`). The noise is one
tensor for all samples, given by a seed, so the statistics of a sample depend neither on the other samples of its batch
nor on its position or process.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar

import PIL.Image
import torch
from diffusers.utils import BaseOutput
from torch import Tensor
from torch.nn import functional as F

from hf_ebm.data.pseudo_labels import assign_labels
from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import energy_and_grad
from hf_ebm.models.energy import EnergyModel, energy_in, energy_of
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


CLASS_STATISTICS = ("class_log_odds", "class_log_entropy")
PASS_STATISTICS = ("energy", "gradient_norm", "clean_energies", "gradient_norms", *CLASS_STATISTICS)  # of x itself
RECONSTRUCTIONS = ("reconstruction_error", "reconstruction_errors")


class ReconstructionError(Protocol):
    """How a method's models reconstruct samples, as a number."""

    def __call__(self, x: Tensor, all_levels: bool = False) -> Tensor:
        """Mean squared error per value of the reconstruction of `x`, shape (B,).

        With `all_levels` those from every noise level, shape (B, T), whose first column is the error without. A method
        without levels has T = 1.
        """
        ...


def make_statistics_function(
    model: EnergyModel,
    names: Collection[str],
    seed: int,
    coefficients: DiffusionCoefficients | None = None,
    reconstruction_error: ReconstructionError | None = None,
    encoder: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], dict[str, Tensor]]:
    """``x -> the named statistics``, each (B,), (B, T) or (B, D), of samples in the model's range, shape (B, ...).

    Statistics stay on the device that computed them, and a GPU may still be computing them.

    Args:
        model: The energy.
        names: Names of the statistics.
        seed: Seed of their noise.
        coefficients: The diffusion the energy was trained on, for ``"energies"``.
        reconstruction_error: For `RECONSTRUCTIONS`.
        encoder: ``x -> features``, shape (B, D), for ``"encoder_features"``.
    """
    of_passes = [name for name in PASS_STATISTICS if name in names]
    of_reconstruction = [name for name in RECONSTRUCTIONS if name in names]

    def compute(x: Tensor) -> dict[str, Tensor]:
        found = compute_pass_statistics(model, x, of_passes, len(x)) if of_passes else {}  # a GPU's first
        if encoder is not None and "encoder_features" in names:
            found["encoder_features"] = encoder(x)
        if "energies" in names:
            found["energies"] = compute_all_energies(model, x, coefficients, seed, len(x))
        if reconstruction_error is not None and "reconstruction_errors" in names:
            errors = reconstruction_error(x, all_levels=True)
            of_all = {"reconstruction_error": errors[:, 0], "reconstruction_errors": errors}
            found |= {name: of_all[name] for name in of_reconstruction}
        elif reconstruction_error is not None and of_reconstruction:
            found["reconstruction_error"] = reconstruction_error(x)
        if "compressed_size" in names:
            found["compressed_size"] = compute_compressed_size(x)
        return found

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


def has_class_scores(energy_model: Any) -> bool:
    """Whether the energy gives p(y | x) of several classes."""
    config: Any = getattr(energy_model, "config", None)
    return getattr(config, "num_classes", 0) > 1 and config.class_scores


def compute_pass_statistics(
    energy_model: Any, x: Tensor, names: Collection[str], batch_size: int = 256
) -> dict[str, Tensor]:
    """The statistics of x itself, among `PASS_STATISTICS`, with one pass per noise level for all of them.

    Args:
        energy_model: An energy; one without noise levels gives T = 1.
        x: Samples in the model's range, shape (N, ...).
        names: Which; `CLASS_STATISTICS` of an energy with class scores only.
        batch_size: Samples per forward pass.

    Returns:
        By name, each of shape (N,) or (N, T), where the model is.
    """
    all_levels = not {"clean_energies", "gradient_norms"}.isdisjoint(names)
    levels = range(getattr(energy_model.config, "num_timesteps", 1) if all_levels else 1)
    if {*names} <= {"energy", "clean_energies"}:
        columns = [energies_on_device(energy_model, x, t, batch_size) for t in levels]
        found = {"energy": columns[0], "clean_energies": torch.stack(columns, dim=1)}
        return {name: found[name] for name in names}
    frozen, device = eval_copy(energy_model), execution_device(energy_model)
    with_norms = ["gradient_norms" in names or (t == 0 and "gradient_norm" in names) for t in levels]
    parts = []
    for part in x.split(batch_size):
        part = channels_last_on_cpu(send(part, device, energy_model.dtype))
        passes = [one_pass(frozen, part, t, norm) for t, norm in zip(levels, with_norms, strict=True)]
        energies, norms, logits = zip(*passes, strict=True)
        found = {"energy": energies[0], "clean_energies": torch.stack(energies, dim=1)}
        if with_norms[0]:
            found["gradient_norm"] = norms[0]
        if all(with_norms):
            found["gradient_norms"] = torch.stack(norms, dim=1)
        if logits[0] is not None:
            found |= class_statistics(logits[0])
        parts.append(found)
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def one_pass(
    energy_model: Any, x: Tensor, timestep: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``E(x, t)`` and, if asked for, the norm of its gradient, each (N,), float32; the logits where there are some."""
    logits: Tensor | None = None

    def energy_fn(x: Tensor) -> Tensor:
        nonlocal logits
        output = energy_model(x, timestep)
        logits = getattr(output, "logits", None)
        return energy_in(output, x, energy_model)

    if not with_gradient:
        with torch.no_grad():
            return energy_fn(x).float(), None, logits
    energy, grad = energy_and_grad(energy_fn, x)
    norm = grad.float().flatten(1).norm(dim=1)
    return energy.float(), norm, None if logits is None else logits.detach()


def class_statistics(logits: Tensor) -> dict[str, Tensor]:
    """`CLASS_STATISTICS` of class scores (N, K), each (N,), float32.

    With m = l_1 - log sum_(j > 1) exp(l_j), l sorted in descending order, the log odds are m, and

        log p_1 = -log(1 + exp(-m)),        log p_j = l_j - l_1 + log p_1,        H = -sum_j p_j log p_j.

    The log odds lie above -log(K - 1), log H below log log K. Neither is bounded on the confident side.
    """
    ordered = logits.float().sort(dim=1, descending=True).values
    log_odds = ordered[:, 0] - ordered[:, 1:].logsumexp(dim=1)
    log_p = ordered - ordered[:, :1] + F.logsigmoid(log_odds)[:, None]
    # log(-log p_1) ~ -m where exp(-m) is too small for a float
    log_information = torch.cat([(-F.logsigmoid(log_odds)).log()[:, None], (-log_p[:, 1:]).log()], dim=1)
    log_information[:, 0] = torch.where(log_odds > 30.0, -log_odds, log_information[:, 0])
    return {"class_log_odds": log_odds, "class_log_entropy": (log_p + log_information).logsumexp(dim=1)}


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
