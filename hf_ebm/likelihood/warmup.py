"""Warm-up: run a chain that leaves an energy's density invariant, to bring approximate samples closer to it.

The reverse walk of `hf_ebm.likelihood.ais` needs samples of the model. Samples of its generator, data, or the ends
of a forward walk are not; a long chain of MALA or HMC brings them closer. Convergence cannot be verified: the energies
at the start, the middle and the end only show that a chain has *not* converged, as long as they drift.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_ebm.likelihood.ais import TARGET_ACCEPTANCE, AnnealedWalk
from hf_ebm.likelihood.base_distributions import GaussianBase
from hf_ebm.schedulers.scheduling_hmc import HMCScheduler
from hf_ebm.schedulers.scheduling_mala import MALAScheduler
from hf_ebm.utils.torch_utils import no_grad
from hf_ebm.utils.validation import check_count

ROUNDS = 50  # at most; between rounds of equally many updates the step changes, in the first half of them


@dataclass(frozen=True, eq=False)
class Equilibrated:
    """The end of a chain on ``exp(-E / T)``."""

    samples: Tensor  # shape (B, ...)
    mean_energies: tuple[float, float, float]  # of ``E / T`` at the start, in the middle, at the end; it must not drift
    acceptance_rate: float  # share of the moves taken in the second half; NaN without moves


@no_grad
def equilibrate(
    energy_fn: Callable[[Tensor], Tensor],
    base: GaussianBase,
    x: Tensor,
    temperature: float = 1.0,
    num_steps: int = 1000,
    scheduler: MALAScheduler | HMCScheduler | None = None,
    generator: torch.Generator | None = None,
    progress_bar: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Equilibrated:
    """`num_steps` updates on ``exp(-E(x) / T)`` from `x`; the step is set in the first half and kept in the second.

    The covariance of `base` scales the steps of each direction, the step of `scheduler` (None = MALA) is where its
    adaptation begins. More than `ROUNDS` updates are rounded up to a multiple of it; `progress_bar` wraps the rounds.
    """
    check_count("num_steps", num_steps, 0)
    scheduler = MALAScheduler(step_size=0.1) if scheduler is None else copy.copy(scheduler)
    rounds = min(ROUNDS, num_steps)
    walk = AnnealedWalk(energy_fn, base, temperature, scheduler, -(-num_steps // max(rounds, 1)), generator, iter)

    def mean_energy(u: Tensor) -> float:
        return (energy_fn(base.from_white(u)) / temperature).mean().item()

    u, step_size, rates = base.to_white(x), scheduler.step_size, []
    start = middle = mean_energy(u)
    for index in progress_bar(range(rounds)):
        u, _, rate = walk.move(u, 1.0, step_size)
        if index < rounds // 2:
            step_size, middle = step_size * math.exp(rate - TARGET_ACCEPTANCE), mean_energy(u)
        else:
            rates.append(rate)
    rate = sum(rates) / len(rates) if rates else math.nan
    return Equilibrated(base.from_white(u), (start, middle, mean_energy(u)), rate)
