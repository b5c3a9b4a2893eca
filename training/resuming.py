"""How far a run has come, and how it goes on from a checkpoint: bit for bit, unless a note says otherwise."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from hf_ebm.training.checkpoints import (
    check_same_models,
    is_in,
    later_checkpoints,
    load_checkpoint,
    read_state,
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
        ValueError: If it is of another method or of other networks, or has more steps than ``max_steps``.
    """
    check_same_models(checkpoint, model_settings, method.name)
    done = read_state(checkpoint)["step"]
    is_own = is_in(checkpoint, output_dir / "checkpoints")
    with_card = method.write_card is not None
    if is_own and done >= settings.max_steps and is_finished(output_dir, done, with_card):
        return True
    if done > settings.max_steps:
        raise ValueError(f"max_steps must be at least {done}, the steps of {checkpoint}, got {settings.max_steps}.")
    return False


def go_on(
    checkpoint: Path,
    accelerator: Accelerator,
    settings: RunSettings,
    output_dir: Path,
    schedules: Sequence[Any],
    emas: Sequence[EMAModel],
) -> Course:
    """Load a checkpoint, tell what differs from before, and return where it was; called by all processes.

    Args:
        checkpoint: Of this run or of another one.
        accelerator: Knows the networks, optimizers, schedules and averages that are loaded.
        settings: Of now; where the run's end or learning rates are others, `schedules` are set as if always so.
        output_dir: The run's folder, whose later checkpoints are removed.
        schedules: Of the learning rates, at their beginning.
        emas: The averaged weights.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    beginnings = [copy.deepcopy(schedule.state_dict()) for schedule in schedules]
    state = read_state(checkpoint)
    load_checkpoint(accelerator, checkpoint)
    if is_in(checkpoint, output_dir / "checkpoints") and accelerator.is_main_process:
        for path in later_checkpoints(checkpoint):  # of the course that is left, as `start_run` was allowed to
            shutil.rmtree(path)
    for ema in emas:  # accelerate loads what it does not know to the CPU
        ema.to(accelerator.device)
    step = state["step"]
    accelerator.print(f"going on from step {step} of {settings.max_steps}: {checkpoint}")
    if state["num_processes"] != accelerator.num_processes:
        accelerator.print(
            f"note: the checkpoint was made by {state['num_processes']} processes, this run has "
            f"{accelerator.num_processes}: it goes on, but not bit for bit."
        )
    return Course(
        step=step,
        position=Position(**state["position"]),
        earlier_seconds=state.get("seconds", 0.0),
        earlier_memory=state.get("peak_memory_bytes", 0),
        changes=[*state.get("changes", []), *adopt_settings(state, accelerator, settings, schedules, beginnings)],
    )


def adopt_settings(
    state: dict[str, Any],
    accelerator: Accelerator,
    settings: RunSettings,
    schedules: Sequence[Any],
    beginnings: Sequence[dict[str, Any]],
) -> list[str]:
    """Set the learning rates for `settings` if those of a checkpoint's `state` were others; what was, in words."""
    step, earlier = state["step"], state.get("settings", {})
    found = changed_settings(earlier, settings)
    others = [change for change in found if "learning_rate" in change.split()[0]]
    if step < earlier.get("max_steps", 0) != settings.max_steps:  # a finished run is extended, see below
        others.append(f"max_steps {earlier['max_steps']}")
        found.append(others[-1])
    if found:
        names = [change.split()[0] for change in found]
        pairs = ", ".join(f"{change}, now {getattr(settings, name)}" for change, name in zip(found, names, strict=True))
        accelerator.print(f"note: other settings than before: {pairs}.")
    if others:
        restart_schedules(schedules, beginnings, step)
    elif step >= earlier.get("max_steps", settings.max_steps):
        rate = schedules[0].get_last_lr()[0]
        accelerator.print(
            f"note: the run was finished at step {step} and is extended to max_steps {settings.max_steps}; its "
            f"learning rate goes on at {rate:g}."
        )
    return [f"up to step {step}: {', '.join(found)}"] if found else []


def restart_schedules(schedules: Sequence[Any], beginnings: Sequence[dict[str, Any]], step: int) -> None:
    """Set learning rates as if a run had had its present settings from the beginning.

    Args:
        schedules: As a checkpoint left them.
        beginnings: Their states before it was loaded.
        step: Number of steps done.
    """
    for schedule, beginning in zip(schedules, beginnings, strict=True):
        schedule.load_state_dict(beginning)
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["initial_lr"] = rate
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        with warnings.catch_warnings():  # of a schedule that goes on before its optimizer
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(step):
                advance(schedule)
