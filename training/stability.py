"""Warnings before a run is lost: energies that drift apart, chains that overshoot, samples that are all alike.

    energies    the gap |mean E(real) - mean E(generated)|, median of the last 5 log lines, is many times that before
    chains      the sampler's chain raises the mean energy of the generator's samples, which it should lower
    curvature   above 4 / step_size^2 a Langevin step moves away from a minimum, and the chain raises the energy
    spread      the mean distance between samples is a fraction of that between training samples

The first is checked at every log line, the others with every sample grid and every validation, on the averaged weights.
The figures are in ``metrics.jsonl`` as ``stability/...``.

On a quadratic energy of curvature a, a Langevin step of size s multiplies the distance from the minimum by
``1 - s^2 a / 2``, which exceeds 1 in size for ``a > 4 / s^2``. The curvature is found by power iteration on differences
of gradients: a network with ReLUs is piecewise linear, so that its second derivative says nothing.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_ebm.langevin import energy_grad
from hf_ebm.models.energy import energy_of
from hf_ebm.models.eval_copy import in_eval
from hf_ebm.schedulers.energy_sampler import EnergySampler

STABILITY = "stability/"
NUM_RECENT, NUM_BEFORE, MIN_BEFORE = 5, 100, 20  # log lines
GAP_FACTOR = 5.0  # on healthy runs of both methods the ratio stayed under 3
MIN_SPREAD = 0.3  # of the training samples' mean distance
NUM_SAMPLES = 64
NUM_ITERATIONS = 10  # of the power iteration
DISTANCE = 0.02  # between the gradients that are compared


class EnergyGapWatch:
    """Says when the energies of real and generated samples drift apart; again only when the gap has doubled."""

    def __init__(self) -> None:
        self.gaps: deque[float] = deque(maxlen=NUM_BEFORE + NUM_RECENT)
        self.last_warning = 0.0

    def __call__(self, real: float, generated: float) -> str | None:
        """A warning, or None, after the mean energies of one more log line."""
        self.gaps.append(abs(real - generated))
        gaps = list(self.gaps)
        recent, before = gaps[-NUM_RECENT:], gaps[:-NUM_RECENT]
        if len(before) < MIN_BEFORE:
            return None
        now, earlier = statistics.median(recent), statistics.median(before)
        if now < GAP_FACTOR * earlier or now < 2.0 * self.last_warning:
            return None
        self.last_warning = now
        return f"the energies of real and generated samples drift apart: gap {now:.3g}, before {earlier:.3g}"


def largest_curvature(
    grad_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    distance: float = DISTANCE,
    num_iterations: int = NUM_ITERATIONS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The largest absolute curvature of an energy at each sample, shape (B,).

    Args:
        grad_fn: ``x -> grad E(x)``.
        x: Where, shape (B, ...).
        distance: Between the two gradients that are compared, half of it on each side.
        num_iterations: Of the power iteration.
        generator: CPU random number generator of its start.
    """
    direction = torch.randn(x.shape, generator=generator).to(x.device)
    size = x.new_ones(len(x))
    for _ in range(num_iterations):
        direction = nn.functional.normalize(direction.flatten(1)).view_as(x) * (0.5 * distance)
        change = (grad_fn(x + direction) - grad_fn(x - direction)) / distance
        size, direction = change.flatten(1).norm(dim=1), change
    return size


def mean_distance(x: Tensor) -> float:
    """Mean Euclidean distance between two of the samples, shape (B, ...), B >= 2."""
    return torch.pdist(x.float().flatten(1)).mean().item()


def check_samples(pipeline: Any, data: Tensor, seed: int = 0) -> tuple[dict[str, float], list[str]]:
    """The figures of the averaged weights by name, and a warning for each that is out of bounds.

    Args:
        pipeline: Of the averaged weights.
        data: Training samples in the models' range, shape (B, ...), B >= 2.
        seed: Of the samples.
    """
    pipeline.set_progress_bar_config(disable=True)
    sampler = pipeline.scheduler if isinstance(pipeline.scheduler, EnergySampler) else None
    number = min(NUM_SAMPLES, len(data))
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
    if sampler is not None:
        options["output_energies"] = True
    output = pipeline(batch_size=number, **options)
    samples = output.images.float().cpu()
    found = {"spread": mean_distance(samples) / max(mean_distance(data[:number].cpu()), 1e-12)}
    warnings = []
    if found["spread"] < MIN_SPREAD:
        warnings.append(
            f"the samples are alike: their mean distance is {found['spread']:.2g} of the training samples'. The "
            "generator may be collapsing; lower generator_learning_rate, or strengthen the terms of the latent "
            "(latent_weight, recon_weight)"
        )
    if sampler is None:
        return found, warnings
    before, after = output.energies[0].mean().item(), output.energies[-1].mean().item()
    found["chain_energy_change"] = after - before
    if after > before:
        warnings.append(
            f"the sampler's chain raises the mean energy from {before:.4g} to {after:.4g}, and should lower it; use a "
            "smaller x_step_size"
        )
    energy_model = in_eval(pipeline.energy_model)
    curvature = largest_curvature(
        lambda x: energy_grad(lambda x: energy_of(energy_model, x, 0), x),
        samples[:16].to(energy_model.device),
        generator=torch.Generator().manual_seed(seed),
    )
    found["curvature"], limit = curvature.mean().item(), 4.0 / sampler.config.step_size**2
    if found["curvature"] > limit:
        warnings.append(
            f"the energy's curvature at samples, {found['curvature']:.3g}, is above 4 / x_step_size^2 = {limit:.3g}: "
            "chains overshoot. Use a smaller x_step_size, or less x_noise_std"
        )
    return found, warnings
