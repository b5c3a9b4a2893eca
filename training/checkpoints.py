"""Checkpoints that are whole or not there: written under a temporary name, then renamed; the oldest are removed."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError

NAME = re.compile(r"^step_(\d+)$")
TEMPORARY = re.compile(r"^tmp_step_\d+(_old)?$")  # being written or removed; left behind only by a run that was killed
STATE = "trainer_state.json"
STATE_KEYS = ("step", "position", "num_processes")
MOST_DIFFERENT = 5  # settings of another architecture that a message names
DAMAGE = (  # raised when the files of a checkpoint are read; unpickling damaged bytes may raise almost anything
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    UnpicklingError,
    SafetensorError,
)


class WriteError(RuntimeError):
    """The run folder cannot be written, e.g. because the disk is full; its earlier checkpoints are untouched."""


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder, ``step_<step>``."""
    return int(checkpoint.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first; half-written ones have another name and are not seen."""
    found = [path for path in folder.glob("step_*") if NAME.match(path.name) and (path / STATE).is_file()]
    return sorted(found, key=step_of)


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, state: dict[str, Any], total_limit: int | None
) -> Path:
    """Save everything that `accelerator` knows, and `state`, as ``folder/step_<step>``; called by all processes.

    Args:
        accelerator: Holds the prepared and registered objects and the random states of each process.
        folder: The run's ``checkpoints``.
        step: Number of finished iterations.
        state: Small facts about the run that resuming checks, JSON.
        total_limit: How many checkpoints to keep, the newest first; None = all.

    Raises:
        WriteError: If it cannot be written; what was written of it is removed.
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
        raise WriteError(f"the checkpoint {target} cannot be written ({first_line(error)}; {free})") from error
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
    """The checkpoint that ``resume=latest`` or ``resume=PATH`` means.

    Raises:
        ValueError: If there is none.
    """
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
    """The facts saved with a checkpoint.

    Raises:
        ValueError: If they are damaged.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if missing := [key for key in STATE_KEYS if key not in state]:
            raise ValueError(f"{STATE} lacks {', '.join(missing)}")
    except DAMAGE as error:
        raise ValueError(damaged(checkpoint, error)) from error
    return state


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load everything that `accelerator` knows; called by all processes.

    The random states of all processes are read, so that each process detects the damage of any of them.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    num_processes = read_state(checkpoint)["num_processes"]
    try:
        for rank in reversed(range(num_processes)):
            set_random_states(checkpoint, rank)
        accelerator.load_state(str(checkpoint))
    except DAMAGE as error:
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
        f"go on from {checkpoint.with_name(older[-1].name)}, by resume= with overwrite_output_dir=true"
        if older
        else "begin again"
    )
    return f"the checkpoint {checkpoint} cannot be loaded ({first_line(error)}); {instead}."


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in settings by the names of both: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat(value) if isinstance(value, dict) else {}
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
    there, here = flat(saved), flat(now)
    different = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
    if different:
        shown = [f"{key}: {there.get(key)} there, {here.get(key)} now" for key in different[:MOST_DIFFERENT]]
        more = len(different) - len(shown)
        pairs = ", ".join([*shown, f"and {more} more"] if more else shown)
        raise ValueError(
            f"{checkpoint} is a checkpoint of another architecture ({pairs}); resume with its settings, or choose "
            "another output_dir."
        )
