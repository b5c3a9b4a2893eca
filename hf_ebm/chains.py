"""A chain: a sampler of `hf_ebm.schedulers` on an energy, from a given start, one gradient per timestep.

The one loop behind the x-chain on images and the z-chain on latents. It knows samplers and energies by their contracts
alone, asks the device for no number before the end, and keeps nothing of the states it passed: memory does not grow
with the steps, but for the numbers per sample that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.inference_mode import no_grad
from hf_ebm.langevin import ChainGuard, check_energy, energy_and_grad


@dataclass
class ChainResult:
    """Where a chain ended, and what was asked for along it.

    Attributes:
        sample: The end, shape (B, ...).
        profile: What ``observe`` said of the start and of the state after each update, shape (num_steps + 1, B).
        diagnostics: ``energy`` and ``grad_norm`` at each point where a gradient was taken (with MALA and HMC these are
            proposals), shape (num_evaluations, B); ``acceptance_rate`` of each proposal and ``swap_rate`` of each
            update, shape (num_steps,), where the sampler has them. No updates, no entries.
    """

    sample: Tensor
    profile: Tensor | None = None
    diagnostics: dict[str, Tensor] | None = None


def check_known(unknown: Tensor, at_once: bool) -> None:
    """Raise a `ValueError` if the start's energies are `unknown`, a boolean that is only looked at `at_once`."""
    if at_once and unknown.item():
        raise ValueError("the energy of the chain's start is NaN; look for weights of the energy that are not finite.")


@no_grad
def run_chain(
    scheduler: Any,
    energy_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    num_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    observe: Callable[[Tensor], Tensor] | None = None,
    with_diagnostics: bool = False,
    after_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    progress_bar: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> ChainResult:
    """`num_steps` updates of `scheduler` on `energy_fn`, from `x`.

    Args:
        scheduler: An `EnergySampler`. The chain keeps its state in it, so threads need a copy each.
            Not used if `num_steps` is 0.
        energy_fn: ``x -> E(x)``, shape (B,).
        x: Start, shape (B, ...).
        num_steps: Updates of the chain >= 0.
        generator: Random number generator, or one per sample.
        observe: ``x -> a number per sample``, shape (B,), of the start and of the chain's state after each update: not
            of a waiting proposal. Costs one evaluation each.
        with_diagnostics: Whether to keep what the sampler reports at each evaluation.
        after_step: ``(step, timestep, x) -> x``, after each evaluation, of the point where the next one is due.
        progress_bar: Wraps the timesteps.

    Raises:
        ChainDivergedError: If the state left the finite numbers; it names the step and keeps the last finite state.
        ValueError: If `energy_fn` does not return one number per sample, or the start has an energy that is none (NaN),
            from which MALA and HMC would never move.
    """
    guard = ChainGuard(x)
    profile = []
    if observe is not None:
        profile.append(observe(x))
        check_energy(profile[0], x)
    reports: dict[str, list[Tensor]] = {"energy": [], "grad_norm": [], "acceptance_rate": [], "swap_rate": []}
    if num_steps:
        scheduler.set_timesteps(num_steps, device=x.device)
    for step, t in enumerate(progress_bar(scheduler.timesteps) if num_steps else ()):
        # 1. the energy's gradient, 2. the sampler's move
        energy, grad = energy_and_grad(energy_fn, x)
        if step == 0:
            unknown = energy.isnan().any()
            check_known(unknown, at_once=x.device.type == "cpu")
        output = scheduler.step(grad, t, x, energy=energy, generator=generator, return_dict=with_diagnostics)
        x, current = (output.prev_sample, output.current_sample) if with_diagnostics else output
        if after_step is not None:
            x = after_step(step, t, x)

        guard.update(current)
        # an update is over when its share of the evaluations is: each for Langevin, each L-th after the first for HMC
        if observe is not None and (step + 1) * num_steps // len(scheduler.timesteps) == len(profile):
            profile.append(observe(current))
        if with_diagnostics:
            for name, values in reports.items():
                if getattr(output, name) is not None:
                    values.append(getattr(output, name))
    guard.check()
    if num_steps:
        check_known(unknown, at_once=True)
    return ChainResult(
        sample=x,
        profile=torch.stack(profile) if profile else None,
        diagnostics={n: torch.stack(values) for n, values in reports.items() if values} if with_diagnostics else None,
    )
