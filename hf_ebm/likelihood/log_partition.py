"""Estimate log Z of a trained model's energy: the base, the start of the reverse walk, the temperature.

Both bounds are stochastic. The lower one exceeds log Z by c nats with probability at most ``exp(-c)``. The upper one
has the same guarantee only if its reverse walk starts from exact samples of the model. It starts from approximate ones
(``reverse_from``), so **it may err in either direction**. A gap below zero proves that the starts are not samples of
the model. A small positive gap does not prove that they are, in particular with ``"annealed"``, where both directions
may miss the same mode.

    annealed     ends of a separate forward walk, resampled by their weights, after a warm-up; uses no data
    generator    the pipeline's samples, after a warm-up: near the data's modes, far from spurious modes of the energy
    data         training data, dequantised, without a warm-up

The generator cannot be the base because its density has no closed form; a Gaussian fitted to its samples can.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hf_ebm.likelihood.ais import LogZBracket, estimate_log_z
from hf_ebm.likelihood.base_distributions import Box, GaussianBase
from hf_ebm.likelihood.warmup import equilibrate
from hf_ebm.schedulers.scheduling_hmc import HMCScheduler
from hf_ebm.utils.logging import ProgressBar
from hf_ebm.utils.validation import check_count, check_positive, check_seed, python_number

FITTED_BASES: dict[str, Callable[[Tensor], GaussianBase]] = {
    "diagonal": GaussianBase.fit_diagonal,
    "full": GaussianBase.fit_full,
}
BASES = ("uniform", *FITTED_BASES)
MIN_FIT_SAMPLES = 1000  # the generator's, for a fitted base; twice the dimensions where these are more
REVERSE_FROM = ("annealed", "generator", "data")


@dataclass(frozen=True)
class LikelihoodSettings:
    """How the bracket is made.

    ``base`` is ``"uniform"`` on the box, or a Gaussian (in the box's coordinates) fitted to the generator's samples:
    ``"diagonal"`` or ``"full"``. Nearer to the generator is not always nearer to the energy.
    """

    num_chains: int = 128  # walkers each way, >= 2
    num_temperatures: int = 500  # K >= 2
    num_leapfrog_steps: int = 3  # of HMC, >= 1; 1 is MALA
    base: str = "uniform"
    reverse_from: str = "annealed"  # where the reverse walk's starts come from, see the module
    equilibration_steps: int = 500  # updates of the chain on them
    temperature: float | None = None  # T; None = the model's own
    batch_size: int = 256  # walkers at a time of the annealed walks; the equilibration moves all chains at once
    seed: int = 0  # of everything random

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures"):
            check_count(name, getattr(self, name), 2)
        for name in ("num_leapfrog_steps", "batch_size"):
            check_count(name, getattr(self, name), 1)
        check_count("equilibration_steps", self.equilibration_steps, 0)
        check_seed("seed", self.seed)
        if self.base not in BASES:
            raise ValueError(f"base must be one of {BASES}, got {self.base!r}.")
        if self.reverse_from not in REVERSE_FROM:
            raise ValueError(f"reverse_from must be one of {REVERSE_FROM}, got {self.reverse_from!r}.")
        if self.temperature is not None:
            check_positive("temperature", self.temperature)
        for item in fields(self):  # numpy numbers as Python's, for the record
            object.__setattr__(self, item.name, python_number(getattr(self, item.name)))

    def walk_options(self, generator: torch.Generator, progress_bar: ProgressBar) -> dict[str, Any]:
        """The arguments of `estimate_log_z` that every walk shares."""
        return {
            "num_chains": self.num_chains,
            "num_temperatures": self.num_temperatures,
            "scheduler": HMCScheduler(num_leapfrog_steps=self.num_leapfrog_steps),
            "batch_size": self.batch_size,
            "generator": generator,
            "progress_bar": progress_bar,
        }


def bracket_on_box(
    pipeline: Any,
    energy_fn: Callable[[Tensor], Tensor],
    box: Box,
    temperature: float,
    data: Tensor,
    settings: LikelihoodSettings,
    generator: torch.Generator,
    progress_bar: ProgressBar,
) -> tuple[LogZBracket, dict[str, Any]]:
    """The bracket of log Z over the box, and mean energies ``E / T`` of the walks' ends."""
    number, energy_in_v = settings.num_chains, box.energy_in_v(energy_fn, temperature)
    options = settings.walk_options(generator, progress_bar)

    def bar(what: str) -> ProgressBar:
        return functools.partial(progress_bar, desc=what)

    def draw(count: int) -> Tensor:
        drawn = pipeline(count, generator=generator, output_type="latent").images.to(data)
        return box.from_box(drawn.clamp(box.low, box.high))

    # 1. the base; the samples of its fit are not those of the reverse walk
    if settings.base == "uniform":
        base = GaussianBase.diagonal(torch.zeros_like(data[0]), 1.0)
    else:
        base = FITTED_BASES[settings.base](draw(max(MIN_FIT_SAMPLES, 2 * data[0].numel())))
    # 2. where the reverse walk starts; walkers from copies of one end are not independent
    groups = None
    if settings.reverse_from == "annealed":
        options["progress_bar"] = bar("1 of 3, starts of the reverse walk")
        walked = estimate_log_z(energy_in_v, base, None, temperature, **options)
        chosen = torch.multinomial(walked.log_weights.softmax(dim=0), number, replacement=True, generator=generator)
        starts, groups = walked.ends[chosen.to(data.device)], chosen
    elif settings.reverse_from == "generator":
        starts = draw(number)
    else:
        order = torch.randperm(len(data), generator=generator)[:number]
        starts = box.from_box(data[order.to(data.device)])
    steps = 0 if settings.reverse_from == "data" else settings.equilibration_steps
    scheduler = HMCScheduler(step_size=0.1, num_leapfrog_steps=settings.num_leapfrog_steps)
    equilibrating = bar("2 of 3, equilibrating them")
    found = equilibrate(
        energy_in_v, base, starts, temperature, steps, scheduler, generator=generator, progress_bar=equilibrating
    )
    # 3. both walks
    options["progress_bar"] = bar("3 of 3, both walks")
    bracket = estimate_log_z(energy_in_v, base, found.samples, temperature, groups, **options)

    def mean_energy(v: Tensor) -> float:
        return (torch.cat([energy_fn(box.to_box(part)) for part in v.split(256)]) / temperature).mean().item()

    return bracket, {
        "forward_ends": mean_energy(bracket.ends),
        "reverse_starts": mean_energy(found.samples),
        "reverse_starts_in_v": list(found.mean_energies),
    }


def bracket_record(bracket: LogZBracket) -> dict[str, Any]:
    """The numbers of a bracket for JSON: bounds, gap, effective sample sizes, mean acceptance.

    An interval that is infinite, because one weight outweighs all others, is None.
    """
    record: dict[str, Any] = {
        "lower": bracket.log_z_lower,
        "lower_interval": finite_interval(bracket.log_z_lower_interval),
        "upper": bracket.log_z_upper,
        "upper_interval": finite_interval(bracket.log_z_upper_interval),
        "num_reverse_starts": bracket.num_reverse_starts,
        "gap": bracket.gap,
        "effective_sample_size": bracket.effective_sample_size,
        "effective_sample_size_reverse": bracket.effective_sample_size_reverse,
    }
    if len(bracket.acceptance_rate):
        record["mean_acceptance_rate"] = bracket.acceptance_rate.mean().item()
    return record


def finite_interval(interval: tuple[float, float] | None) -> list[float] | None:
    """An interval as a list, None if there is none or an end is infinite."""
    return list(interval) if interval is not None and all(map(math.isfinite, interval)) else None
