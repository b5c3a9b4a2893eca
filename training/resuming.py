"""How far a run has come, and how it goes on from a checkpoint: bit for bit, unless a note says otherwise."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from hf_ebm.training.checkpoints import (
    check_same_models,
    is_in,
    load_checkpoint,
    read_state,
    set_random_states,
)
from hf_ebm.training.loop import Position, advance
from hf_ebm.training.method import Method
from hf_ebm.training.run_folder import is_finished
from hf_ebm.training.run_settings import RunSettings, changed_settings


@dataclasses.dataclass
class Course:
    """How far a run has come.

    Attributes:
        step: Number of finished iterations.
        position: Of the next batch in the data.
        earlier_seconds: What earlier starts took.
        earlier_memory: The most bytes that one of them held.
        changes: In words, the settings of earlier starts that were others.
    """

    step: int = 0
    position: Position = dataclasses.field(default_factory=Position)
    earlier_seconds: float = 0.0
    earlier_memory: int = 0
    changes: list[str] = dataclasses.field(default_factory=list)


def has_nothing_to_do(
    checkpoint: Path, method: Method, model_settings: dict[str, Any], settings: RunSettings, output_dir: Path
) -> bool:
    """Whether a checkpoint is the last of a run that is finished.

    Raises:
        ValueError: If it is of another method or of other networks, has more steps than ``max_steps``, or lacks a
            state that the settings need.
    """
    check_same_models(checkpoint, model_settings, method.name)
    check_same_states(checkpoint, settings)
    done = read_state(checkpoint)["step"]
    is_own = is_in(checkpoint, output_dir / "checkpoints")
    with_card = method.write_card is not None
    if is_own and done >= settings.max_steps and is_finished(output_dir, done, with_card):
        return True
    if done > settings.max_steps:
        raise ValueError(f"max_steps must be at least {done}, the steps of {checkpoint}, got {settings.max_steps}.")
    return False


def check_same_states(checkpoint: Path, settings: RunSettings) -> None:
    """Raise a `ValueError` if `settings` need a state that the checkpoint of a run with others does not have."""
    earlier = read_state(checkpoint).get("settings", {})
    before, now = earlier.get("ema_decay", settings.ema_decay), settings.ema_decay
    if (before is None) != (now is None):
        with_or_without = "has no averaged weights" if before is None else "has averaged weights"
        raise ValueError(
            f"ema_decay cannot be changed from {_yaml(before)} to {_yaml(now)} on resume: {checkpoint} "
            f"{with_or_without}; resume with ema_decay={_yaml(before)}, or start a new run."
        )
    precision = earlier.get("mixed_precision", settings.mixed_precision)
    if settings.mixed_precision == "fp16" != precision:
        raise ValueError(
            f"mixed_precision cannot be changed from {precision} to fp16 on resume: {checkpoint} has no state of a "
            f"gradient scaler; resume with mixed_precision={precision}, or start a new run."
        )


def _yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def go_on(
    checkpoint: Path,
    accelerator: Accelerator,
    settings: RunSettings,
    schedules: Sequence[Any],
    emas: Sequence[EMAModel],
) -> Course:
    """Load a checkpoint, print what differs from before, and return where it was; called by all processes.

    A checkpoint restores settings along with states: the hyper-parameters of the optimizers, the decay of the averages,
    the shape of the learning rates' schedules. Those of `settings` replace them.

    Args:
        checkpoint: Of this run or of another one.
        accelerator: Knows the networks, optimizers, schedules and averages that are loaded.
        settings: The present ones.
        schedules: Of the learning rates, at their beginning; each of another optimizer.
        emas: The averaged weights.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    beginnings = [copy.deepcopy(schedule.state_dict()) for schedule in schedules]
    options = [optimizer_options(schedule.optimizer) for schedule in schedules]
    state = read_state(checkpoint)
    load_checkpoint(accelerator, checkpoint)
    for schedule, groups in zip(schedules, options, strict=True):
        for group, values in zip(schedule.optimizer.param_groups, groups, strict=True):
            group.update(values)
    for ema in emas:
        ema.to(accelerator.device)  # accelerate loads what it does not know to the CPU
        ema.decay = settings.ema_decay
    step = state["step"]
    accelerator.print(f"going on from step {step} of {settings.max_steps}: {checkpoint}")
    if state["num_processes"] != accelerator.num_processes:
        accelerator.print(
            f"note: the checkpoint was made by {state['num_processes']} processes, this run has "
            f"{accelerator.num_processes}: it goes on, but not bit for bit."
        )
    position = adopt_position(state, settings, accelerator.num_processes)
    return Course(
        step=step,
        position=position,
        earlier_seconds=state.get("seconds", 0.0),
        earlier_memory=state.get("peak_memory_bytes", 0),
        changes=[
            *state.get("changes", []),
            *adopt_settings(state, accelerator, settings, schedules, beginnings, position),
        ],
    )


def restore_random_states(checkpoint: Path, accelerator: Accelerator, settings: RunSettings) -> None:
    """Set this process's random states to those of a checkpoint, unless it has none or ``seed`` was changed."""
    state = read_state(checkpoint)
    rank = accelerator.process_index
    if rank >= state["num_processes"] or state.get("settings", {}).get("seed", settings.seed) != settings.seed:
        return
    num_gpus = set_random_states(checkpoint, rank)
    if num_gpus != torch.cuda.device_count():
        accelerator.print(
            f"note: the checkpoint has the random states of {num_gpus} GPUs, and this machine has "
            f"{torch.cuda.device_count()}: it goes on, but not bit for bit."
        )


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The hyper-parameters of each parameter group but for the learning rate, which a schedule sets."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
        for group in optimizer.param_groups
    ]


def adopt_position(state: dict[str, Any], settings: RunSettings, num_processes: int) -> Position:
    """Where in the data a checkpoint's `state` stands, in batches of the present size."""
    position = Position(**state["position"])
    batch_size = state.get("settings", {}).get("batch_size", settings.batch_size)
    position.batch = position.batch * batch_size * state["num_processes"] // (settings.batch_size * num_processes)
    return position


def adopt_settings(
    state: dict[str, Any],
    accelerator: Accelerator,
    settings: RunSettings,
    schedules: Sequence[Any],
    beginnings: Sequence[dict[str, Any]],
    position: Position,
) -> list[str]:
    """Set the learning rates for `settings` if those of a checkpoint's `state` were others; what was, in words."""
    step, earlier = state["step"], state.get("settings", {})
    found = changed_settings(earlier, settings)
    max_steps = earlier.get("max_steps", settings.max_steps)
    if step < max_steps != settings.max_steps:
        found.append(f"max_steps {max_steps}")
    if found:
        names = [change.split()[0] for change in found]
        pairs = ", ".join(f"{change}, now {getattr(settings, name)}" for change, name in zip(found, names, strict=True))
        accelerator.print(f"note: other settings than before: {pairs}.")
    if step >= max_steps != settings.max_steps:
        accelerator.print(
            f"note: the run was finished at step {step} and is extended to max_steps {settings.max_steps}."
        )
    new_end = "final_learning_rate" in {change.split()[0] for change in found}
    adopted = [
        adopt_rate(schedule, beginning, step, settings.max_steps - step, position.batch, new_end)
        for schedule, beginning in zip(schedules, beginnings, strict=True)
    ]
    if any(adopted) or max_steps != settings.max_steps:
        rates = [
            f"from {rate(schedule):g} to {rate_after(schedule, settings.max_steps - step):g}" for schedule in schedules
        ]
        accelerator.print(
            f"note: the learning rate goes {' and '.join(dict.fromkeys(rates))} between steps {step} and "
            f"{settings.max_steps}."
        )
    return [f"up to step {step}: {', '.join(found)}"] if found else []


def adopt_rate(schedule: Any, beginning: dict[str, Any], step: int, left: int, batch: int, new_end: bool) -> bool:
    """Make a schedule that a checkpoint has restored the one of the present settings; whether it was another.

    Where the initial learning rate was changed, the schedule becomes what it were if the run had always had its present
    settings. After any other change the rate continues from its last value: a cosine anneals from there to its end.

    Args:
        schedule: A cosine, or a decay per epoch; it sets the rate of its optimizer.
        beginning: The state of the schedule of the present settings, before a step.
        step: Number of steps done.
        left: Number of steps to do.
        batch: Number of batches done in the present epoch, which the decay per epoch counts.
        new_end: Whether ``final_learning_rate`` was changed: a cosine may rise to it then.
    """
    now = schedule.state_dict()
    if [float(value) for value in now["base_lrs"]] != [float(value) for value in beginning["base_lrs"]]:
        restart_schedule(schedule, beginning, step)
        return True
    is_cosine = "T_max" in beginning
    if not now.keys() - beginning.keys():  # of the same kind
        if is_cosine and now["T_max"] - now["last_epoch"] == left and not new_end:
            return False
        if not is_cosine and all(now[name] == beginning[name] for name in ("step_size", "gamma")):
            return False
    rates = [group["lr"] for group in schedule.optimizer.param_groups]
    reset_schedule(schedule, beginning)
    if is_cosine:
        schedule.T_max = left
        if not new_end:
            schedule.eta_min = min(schedule.eta_min, *map(float, rates))
    else:
        schedule.last_epoch = batch
    schedule._last_lr = rates
    return True


def reset_schedule(schedule: Any, beginning: dict[str, Any]) -> None:
    """Set a schedule to its `beginning`, without what it has loaded of one of another kind."""
    for name in schedule.state_dict().keys() - beginning.keys():
        delattr(schedule, name)
    schedule.load_state_dict(copy.deepcopy(beginning))


def restart_schedule(schedule: Any, beginning: dict[str, Any], step: int) -> None:
    """Set a schedule, and its optimizer's rate, as if a run had had its present settings for all its `step` steps."""
    reset_schedule(schedule, beginning)
    for group, initial in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
        group["initial_lr"] = initial
        group["lr"] = group["lr"].fill_(initial) if isinstance(group["lr"], Tensor) else initial
    with warnings.catch_warnings():  # of a schedule that steps before its optimizer
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(step):
            advance(schedule)


def rate(schedule: Any) -> float:
    """The learning rate of a schedule's optimizer."""
    return float(schedule.optimizer.param_groups[0]["lr"])


def rate_after(schedule: Any, left: int) -> float:
    """The learning rate in `left` steps, the last ones of the run."""
    if hasattr(schedule, "T_max"):
        return schedule.eta_min if left else rate(schedule)
    decays = (schedule.last_epoch + left) // schedule.step_size - schedule.last_epoch // schedule.step_size
    return rate(schedule) * schedule.gamma**decays
