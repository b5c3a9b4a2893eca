"""Langevin dynamics: the update, energy gradients, and chains of samplers on an energy.

    x <- x - s^2/2 grad E(x) + n * noise

With noise ``n = s`` the chain samples ``exp(-E)`` as ``s -> 0``; with any other `n` it samples
``exp(-E / temperature)``, ``temperature = (n/s)^2``. Source: Eq. 3 and Eq. 6, Cui & Han 2023; Welling & Teh 2011.

`run_chain` is the loop behind the x-chain on images and the z-chain on latents: any sampler of `hf_ebm.schedulers`
on an energy, from a given start, with one gradient per timestep. Only the numbers per sample that the caller asks for
are kept along the chain, so memory does not grow with the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.utils.torch_utils import no_grad, without_inference_tensors
from hf_ebm.utils.validation import check_count, check_not_negative, check_positive


def langevin_step(
    x: Tensor, grad: Tensor, step_size: float | Tensor, noise_std: float | Tensor, noise: Tensor
) -> Tensor:
    """One update ``x - step_size^2/2 grad + noise_std noise``, shape of `x`.

    Args:
        x: Current state, shape (B, ...).
        grad: Gradient of the energy at `x`, shape of `x`.
        step_size: s > 0, a number or broadcastable to `x`.
        noise_std: n >= 0, a number or broadcastable to `x`.
        noise: Standard normal, shape of `x`.

    Raises:
        ValueError: If the gradient has another shape than `x`, with which it would be broadcast.
    """
    if grad.shape != x.shape:
        raise ValueError(f"the gradient must have the state's shape {tuple(x.shape)}, got {tuple(grad.shape)}.")
    if isinstance(step_size, Tensor) or isinstance(noise_std, Tensor):
        return x - 0.5 * step_size**2 * grad + noise_std * noise
    return x.add(grad, alpha=-0.5 * step_size**2).add(noise, alpha=noise_std)  # two passes over memory, not four


def check_energy(energy: Any, x: Tensor) -> None:
    """Raise a `ValueError` unless `energy` has one number per sample of `x`."""
    if not isinstance(energy, Tensor) or energy.shape != x.shape[:1]:
        got = tuple(energy.shape) if isinstance(energy, Tensor) else f"a {type(energy).__name__}"
        raise ValueError(f"the energy must return one number per sample, shape ({x.shape[0]},), got {got}.")


def energy_and_grad(energy_fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``E(x)``, shape (B,), and ``grad_x E(x)`` of each sample, shape of `x`, detached.

    Works inside ``torch.no_grad()`` and ``torch.inference_mode()``; in the latter, `energy_fn` must
    not hold inference tensors.

    Raises:
        ValueError: If `energy_fn` does not return one number per sample.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = without_inference_tensors(x.detach()).requires_grad_(True)
        energy = energy_fn(x)
        check_energy(energy, x)
        (grad,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), grad


def energy_grad(energy_fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``grad_x E(x)`` of each sample, detached, shape of `x`; see `energy_and_grad`."""
    return energy_and_grad(energy_fn, x)[1]


class ChainDivergedError(ValueError):
    """A chain left the finite numbers.

    Attributes:
        step: The update, counted from 1, whose result was not finite; 0: the start was not.
        last_state: The state before it, finite, shape (B, ...); the start, if that was not.
    """

    def __init__(self, step: int, last_state: Tensor) -> None:
        weights = " (or, so early, look for weights that are not finite)" if step == 1 else ""
        super().__init__(
            f"The chain diverged at step {step} (non-finite state); use a smaller step_size{weights}. The last finite "
            "state is this error's last_state."
            if step
            else "The chain diverged at step 0: its start is not finite; look for weights of what made it that are not."
        )
        self.step = step
        self.last_state = last_state


def is_finite(x: Tensor) -> Tensor:
    """Whether all of `x` is, a boolean on its device; `torch.isfinite` takes two operations more."""
    return x.sum(dtype=torch.float32).abs() < math.inf


class ChainGuard:
    """Remembers a chain's last finite state: on a CPU it checks each, on other devices once, at the end.

    Raises:
        ChainDivergedError: If a state was not finite; on a CPU at once, elsewhere in `check`.
    """

    def __init__(self, x: Tensor) -> None:
        self.last_state = x
        self.num_updates = 0
        self.asks_at_once = x.device.type == "cpu"
        if self.asks_at_once:
            self.look_at(x)
        else:
            self.finite = is_finite(x)
            self.num_finite = self.finite.long()

    def update(self, x: Tensor) -> None:
        """Check the state after the next step."""
        if self.asks_at_once:
            self.num_updates += 1
            self.look_at(x)
            self.last_state = x
            return
        self.finite = self.finite & is_finite(x)
        self.last_state = torch.where(self.finite, x, self.last_state)
        self.num_finite = self.num_finite + self.finite

    def look_at(self, x: Tensor) -> None:
        """Wait for the device, and raise if the state is not finite."""
        if not math.isfinite(x.sum(dtype=torch.float32).item()):
            raise ChainDivergedError(self.num_updates, self.last_state)

    def check(self) -> None:
        """Raise a `ChainDivergedError` if a state was not finite.

        A CUDA graph that is being recorded cannot be asked: what a diverged chain gives is not finite there.
        """
        if self.asks_at_once or (self.finite.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        if not self.finite.item():
            raise ChainDivergedError(int(self.num_finite.item()), self.last_state)


def langevin_chain(
    x: Tensor,
    grad_fn: Callable[[Tensor], Tensor],
    num_steps: int,
    step_size: float | Tensor,
    noise_std: float | Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """`num_steps` Langevin updates from `x`, shape of `x`.

    Args:
        x: Start, shape (B, ...).
        grad_fn: ``x -> grad E(x)``, for example made with `energy_grad`.
        num_steps: Number of updates >= 0.
        step_size: s > 0, a number or broadcastable to `x`.
        noise_std: n >= 0; None means `step_size`, the chain of ``exp(-E)``.
        generator: Random number generator, or one per sample.

    Raises:
        ChainDivergedError: If the chain leaves the finite numbers (checked once, after the last step); a
            `ValueError` that names the step and keeps the last finite state.
        ValueError: If a number is not in its range.
    """
    noise_std = step_size if noise_std is None else noise_std
    check_count("num_steps", num_steps, 0)
    if not isinstance(step_size, Tensor):  # what a tensor holds would have to be waited for on a GPU
        check_positive("step_size", step_size)
    if not isinstance(noise_std, Tensor):
        check_not_negative("noise_std", noise_std)
    guard = ChainGuard(x)
    for _step in range(num_steps):
        noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = langevin_step(x, grad_fn(x), step_size, noise_std, noise)
        guard.update(x)
    guard.check()
    return x


def conditional_energy_grad(
    energy_model: Callable[..., Any], x_next: Tensor, t: Tensor, coefficients: DiffusionCoefficients
) -> Callable[[Tensor], Tensor]:
    """``x_t -> grad_{x_t} [E(x_t, t) - log q(x_next | x_t)]``, the energy of one denoising step, shape of `x_t`.

    Args:
        energy_model: ``(x_t, t) -> output.energy``.
        x_next: The noisier state the step started from, shape (B, ...).
        t: Index of the cleaner state, shape (B,).
        coefficients: The chain.
    """

    def grad(x_t: Tensor) -> Tensor:
        return energy_grad(lambda x: energy_model(x, t).energy, x_t) - coefficients.log_q_step_grad(x_next, x_t, t)

    return grad


@dataclass
class ChainResult:
    """Where a chain ended, and what was asked for along it.

    Attributes:
        profile: What ``observe`` said of the start and of the state after each update, shape (num_steps + 1, B).
        diagnostics: ``energy`` and ``grad_norm`` at each point where a gradient was taken (with MALA and HMC these are
            proposals), shape (num_evaluations, B); ``acceptance_rate`` of each proposal and ``swap_rate`` of each
            update, shape (num_steps,), where the sampler has them. No updates, no entries.
    """

    sample: Tensor  # the end, shape (B, ...)
    profile: Tensor | None = None
    diagnostics: dict[str, Tensor] | None = None


def check_known(unknown: Tensor, at_once: bool) -> None:
    """Raise a `ValueError` if the start's energies are `unknown`, a boolean that is only checked `at_once`."""
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
        progress_bar: Wraps the timesteps; the chain ends early where it does, and a waiting proposal is dropped.

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
    state = x
    for step, t in enumerate(progress_bar(scheduler.timesteps) if num_steps else ()):
        # 1. the energy's gradient, 2. the sampler's move
        energy, grad = energy_and_grad(energy_fn, x)
        if step == 0:
            unknown = energy.isnan().any()
            check_known(unknown, at_once=x.device.type == "cpu")
        output = scheduler.step(grad, t, x, energy=energy, generator=generator, return_dict=with_diagnostics)
        x, current = (output.prev_sample, output.current_sample) if with_diagnostics else output
        is_state = x is current or step + 1 == len(scheduler.timesteps)  # and not a waiting proposal
        if after_step is not None:
            x = after_step(step, t, x)
        state = x if is_state else current

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
        sample=state,
        profile=torch.stack(profile) if profile else None,
        diagnostics={n: torch.stack(values) for n, values in reports.items() if values} if with_diagnostics else None,
    )
