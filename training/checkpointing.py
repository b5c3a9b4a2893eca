"""Checkpoints: atomic saving, finding, and resuming bit for bit.

A checkpoint is written under a temporary name and renamed, so that it is complete or absent; the oldest ones are then
removed. A resumed run equals one that was never stopped, to the last bit. Where it cannot, because the number of
processes or a setting was changed, a message is printed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_ebm.training.config import RunSettings, changed_settings
from hf_ebm.utils.files import WriteError

NAME = re.compile(r"^step_(\d+)$")
TEMPORARY = re.compile(r"^tmp_step_\d+(_old)?$")  # being written or removed; left behind only by a run that was killed
STATE = "trainer_state.json"
BEST = "best.safetensors"  # the best weights so far, of a run with ``save_best_by``
STATE_KEYS = ("step", "position", "num_processes")
MOST_DIFFERENT = 5  # settings of another architecture that a message names


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder, ``step_<step>``."""
    return int(checkpoint.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first; half-written ones have another name and are not seen."""
    found = [path for path in folder.glob("step_*") if NAME.match(path.name) and (path / STATE).is_file()]
    return sorted(found, key=step_of)


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    state: dict[str, Any],
    total_limit: int | None,
    best: dict[str, Tensor] | None = None,
) -> Path:
    """Save everything that `accelerator` knows, and the facts `state`, as ``folder/step_<step>``; by all processes.

    Only the newest `total_limit` checkpoints are kept; None = all. `best` are the best weights so far, of the main
    process.
    """
    target, temporary = folder / f"step_{step:08d}", folder / f"tmp_step_{step:08d}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if best:
                save_file(best, temporary / BEST)
            (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=2), encoding="utf-8")
            if target.exists():
                remove_checkpoint(target)
            temporary.rename(target)
            if total_limit is not None:
                for old in list_checkpoints(folder)[:-total_limit]:
                    remove_checkpoint(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises a RuntimeError on a full disk
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free" if folder.is_dir() else "no such folder"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(f"the checkpoint {target}", OSError(f"{first_line(error)}; {free}")) from error
    accelerator.wait_for_everyone()
    return target


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; if this is interrupted, what is left has a temporary name."""
    old = checkpoint.with_name(f"tmp_{checkpoint.name}_old")
    if old.exists():
        shutil.rmtree(old)
    checkpoint.rename(old)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)


def remove_temporary(folder: Path) -> None:
    """Remove what interrupted saves have left in a run's ``checkpoints``."""
    for path in folder.glob("tmp_step_*"):
        if TEMPORARY.match(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def find_checkpoint(resume: str, folder: Path) -> Path:
    """The checkpoint that ``resume=latest`` or ``resume=PATH`` means; a `ValueError` if there is none."""
    if resume == "latest":
        found = list_checkpoints(folder)
        if not found:
            raise ValueError(f"resume=latest found no checkpoint in {folder}; start the run without resume.")
        return found[-1]
    path = Path(resume)
    if not (path / STATE).is_file():
        raise ValueError(f"resume must be 'latest' or a checkpoint folder with {STATE}, got {resume!r}.")
    return path


def is_in(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of a run's ``checkpoints``, which may be links to other places."""
    return checkpoint.absolute().parent.resolve() == folder.resolve()


def later_checkpoints(checkpoint: Path) -> list[Path]:
    """Those beside a checkpoint that have more steps, oldest first."""
    step = read_state(checkpoint)["step"]
    return [path for path in list_checkpoints(checkpoint.absolute().parent) if step_of(path) > step]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The facts saved with a checkpoint; a `ValueError` if they are damaged."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if missing := [key for key in STATE_KEYS if key not in state]:
            raise ValueError(f"{STATE} lacks {', '.join(missing)}")
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise ValueError(damaged(checkpoint, error)) from error
    return state


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load everything that `accelerator` knows; called by all processes.

    The random states of all processes are read, so that each process detects the damage of any of them.
    """
    num_processes = read_state(checkpoint)["num_processes"]
    try:
        for rank in reversed(range(num_processes)):
            set_random_states(checkpoint, rank)
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise ValueError(damaged(checkpoint, error)) from error


def load_best(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says of the best weights so far, and these; empty where it has none."""
    facts = read_state(checkpoint).get("best", {})
    if not facts:
        return {}, {}
    try:
        return facts, load_file(checkpoint / BEST)
    except (OSError, SafetensorError) as error:
        raise ValueError(damaged(checkpoint, error)) from error


def set_random_states(checkpoint: Path, rank: int) -> int:
    """Set the random states to those saved by the process `rank`; return of how many GPUs it has states.

    accelerate ignores whatever goes wrong here. The GPUs' states are set if there are as many GPUs as then.
    """
    states = load(checkpoint / f"random_states_{rank}.pkl", map_location="cpu")
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    of_gpus = states.get("torch_cuda_manual_seed", ())
    if of_gpus and len(of_gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(of_gpus)
    return len(of_gpus)


def damaged(checkpoint: Path, error: Exception) -> str:
    """What is wrong with a checkpoint that cannot be loaded, and what to do."""
    others = list_checkpoints(checkpoint.absolute().parent) if NAME.match(checkpoint.name) else []
    older = [path for path in others if step_of(path) < step_of(checkpoint)]
    instead = (
        f"resume from {checkpoint.with_name(older[-1].name)}, by resume= with overwrite_output_dir=true"
        if older
        else "restart"
    )
    return f"the checkpoint {checkpoint} cannot be loaded ({first_line(error)}); {instead}."


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flatten(value) if isinstance(value, dict) else {}
        found |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return found


def check_same_models(checkpoint: Path, models: dict[str, Any], method: str) -> None:
    """Raise a `ValueError` if the checkpoint is of another method, or of other networks than `models` describe."""
    state = read_state(checkpoint)
    if state.get("method", method) != method:
        raise ValueError(
            f"{checkpoint} is a checkpoint of method {state['method']}, and this trains {method}; resume it with its "
            "own script, or choose another output_dir."
        )
    saved = state.get("models", {})
    now = json.loads(json.dumps(models))
    there, here = flatten(saved), flatten(now)
    different = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
    if different:
        shown = [f"{key}: {there.get(key)} there, {here.get(key)} now" for key in different[:MOST_DIFFERENT]]
        more = len(different) - len(shown)
        pairs = ", ".join([*shown, f"and {more} more"] if more else shown)
        raise ValueError(
            f"{checkpoint} is a checkpoint of another architecture ({pairs}); resume with its settings, or choose "
            "another output_dir."
        )


@dataclass
class Position:
    """Where in the data the run stands: `batch` batches of `epoch` are done."""

    epoch: int = 0
    batch: int = 0


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # finished iterations
    position: Position = dataclasses.field(default_factory=Position)  # of the next batch
    earlier_seconds: float = 0.0  # before the run was resumed, as the next
    earlier_memory: int = 0  # peak, in bytes
    changes: list[str] = dataclasses.field(default_factory=list)  # settings that were changed on resume


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
    for name in ("validation_split", "num_validation_images") if earlier.get("validate_every") else ():
        if settings.validate_every and earlier[name] != (value := getattr(settings, name)):
            raise ValueError(
                f"{name} cannot be changed from {earlier[name]} to {value} on resume: other samples would be held out, "
                "some of which the run has learned from; keep it, or start a new run."
            )
    holds_out = settings.validate_every and settings.validation_split is None
    if bool(earlier.get("validate_every")) != bool(settings.validate_every) and (
        holds_out or (earlier.get("validate_every") and earlier.get("validation_split") is None)
    ):
        raise ValueError(
            f"validate_every cannot be changed from {earlier.get('validate_every', 0)} to {settings.validate_every} on "
            "resume: the held-out samples are part of the training split. Keep it, name another split with "
            "validation_split, or start a new run."
        )
    warmups = earlier.get("lr_warmup_steps", 0), settings.lr_warmup_steps
    if warmups[0] != warmups[1] and read_state(checkpoint)["step"] < max(warmups):
        raise ValueError(
            f"lr_warmup_steps cannot be changed from {warmups[0]} to {warmups[1]} on resume before both are over: "
            f"resume with lr_warmup_steps={warmups[0]}, or start a new run."
        )
    precision = earlier.get("mixed_precision", settings.mixed_precision)
    if settings.mixed_precision == "fp16" != precision:
        raise ValueError(
            f"mixed_precision cannot be changed from {precision} to fp16 on resume: {checkpoint} has no state of a "
            f"gradient scaler; resume with mixed_precision={precision}, or start a new run."
        )


def _yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def resume_run(
    checkpoint: Path,
    accelerator: Accelerator,
    settings: RunSettings,
    schedules: Sequence[Any],
    emas: Sequence[EMAModel],
) -> Progress:
    """Load a checkpoint, print what differs from before, and return where it was; called by all processes.

    A checkpoint restores settings along with states: the hyper-parameters of the optimizers, the decay of the averages,
    the shape of the learning rates' schedules. Those of `settings` replace them. `schedules` are at their beginning.
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
    if step < settings.lr_warmup_steps:  # what is adopted is the schedule after it
        for schedule in schedules:
            warm_up(schedule, settings.lr_warmup_steps, settings.lr_warmup_steps)
    accelerator.print(f"resuming from step {step} of {settings.max_steps}: {checkpoint}")
    if state["num_processes"] != accelerator.num_processes:
        accelerator.print(
            f"note: the checkpoint was made by {state['num_processes']} processes, this run has "
            f"{accelerator.num_processes}: it resumes, but not bit for bit."
        )
    position = adopt_position(state, settings, accelerator.num_processes)
    return Progress(
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
            f"{torch.cuda.device_count()}: it resumes, but not bit for bit."
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
    """Set the learning rates for `settings` if those of a checkpoint's `state` differ; returns a description."""
    step, earlier = state["step"], state.get("settings", {})
    found = changed_settings(earlier, settings)
    max_steps = earlier.get("max_steps", settings.max_steps)
    if step < max_steps != settings.max_steps:
        found["max_steps"] = max_steps
    if found:
        pairs = ", ".join(f"{name} {before}, now {getattr(settings, name)}" for name, before in found.items())
        accelerator.print(f"note: other settings than before: {pairs}.")
    if step >= max_steps != settings.max_steps:
        accelerator.print(
            f"note: the run was finished at step {step} and is extended to max_steps {settings.max_steps}."
        )
    new_end = "final_learning_rate" in found
    left, batch = settings.max_steps - step, position.batch
    if step < settings.lr_warmup_steps:
        left, batch = settings.max_steps - settings.lr_warmup_steps, 0
    adopted = [
        adopt_rate(schedule, beginning, left, batch, new_end)
        for schedule, beginning in zip(schedules, beginnings, strict=True)
    ]
    if any(adopted) or max_steps != settings.max_steps:
        rates = [f"from {rate(schedule):g} to {rate_after(schedule, left):g}" for schedule in schedules]
        accelerator.print(
            f"note: the learning rate goes {' and '.join(dict.fromkeys(rates))} between steps "
            f"{settings.max_steps - left} and {settings.max_steps}."
        )
    changes = ", ".join(f"{name} {before}" for name, before in found.items())
    return [f"up to step {step}: {changes}"] if found else []


def adopt_rate(schedule: Any, beginning: dict[str, Any], left: int, batch: int, new_end: bool) -> bool:
    """Make a schedule that a checkpoint has restored the one of the present settings; whether it was another.

    After a change the rate continues from its last value, or from the initial rate of the settings where that is new:
    a cosine anneals from there to its end.
    """
    now, is_cosine, groups = schedule.state_dict(), "T_max" in beginning, schedule.optimizer.param_groups
    new_start = [*map(float, now["base_lrs"])] != [*map(float, beginning["base_lrs"])]
    if now.keys() == beginning.keys() and not new_start:
        if is_cosine and now["T_max"] - now["last_epoch"] == left and not new_end:
            return False
        if not is_cosine and all(now[name] == beginning[name] for name in ("step_size", "gamma")):
            return False
    for name in now.keys() - beginning.keys():  # of a schedule of another kind
        delattr(schedule, name)
    schedule.load_state_dict(copy.deepcopy(beginning))
    if new_start:
        for group, initial in zip(groups, schedule.base_lrs, strict=True):
            group["initial_lr"] = initial
            group["lr"] = group["lr"].fill_(initial) if isinstance(group["lr"], Tensor) else initial
    schedule._last_lr = rates = [group["lr"] for group in groups]
    if is_cosine:
        schedule.T_max = left
        if not new_end:
            schedule.eta_min = min(schedule.eta_min, *map(float, rates))
    else:
        schedule.last_epoch = batch
    return True


def rate(schedule: Any) -> float:
    """The learning rate of a schedule's optimizer."""
    return float(schedule.optimizer.param_groups[0]["lr"])


def rate_after(schedule: Any, left: int) -> float:
    """The learning rate in `left` steps, the last ones of the run."""
    if hasattr(schedule, "T_max"):
        return schedule.eta_min if left else rate(schedule)
    decays = (schedule.last_epoch + left) // schedule.step_size - schedule.last_epoch // schedule.step_size
    return rate(schedule) * schedule.gamma**decays


def warm_up(schedule: Any, step: int, warmup_steps: int) -> None:
    """Set the learning rate after `step` of `warmup_steps` steps: from 0 in a line to the initial rate."""
    groups = schedule.optimizer.param_groups
    for group, initial in zip(groups, schedule.base_lrs, strict=True):
        value = float(initial) * min(1.0, step / warmup_steps)
        group["lr"] = group["lr"].fill_(value) if isinstance(group["lr"], Tensor) else value
    schedule._last_lr = [group["lr"] for group in groups]


def advance(schedule: torch.optim.lr_scheduler.LRScheduler, step: int = 0, warmup_steps: int = 0) -> None:
    """One step of a learning-rate schedule; a cosine stays where it ended, while torch's own would rise again.

    Args:
        schedule: It begins after the warm-up.
        step: Finished iterations, this one included.
        warmup_steps: Those of the warm-up.
    """
    if 0 < step <= warmup_steps:
        warm_up(schedule, step, warmup_steps)
    elif schedule.last_epoch < getattr(schedule, "T_max", math.inf):
        schedule.step()
