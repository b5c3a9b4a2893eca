"""Checkpoints that are whole or not there: written under a temporary name, then renamed; the oldest are removed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

NAME = re.compile(r"^step_(\d+)$")
STATE = "trainer_state.json"
MOST_DIFFERENT = 5  # settings of another architecture that a message names


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first; half-written ones have another name and are not seen."""
    found = [path for path in folder.glob("step_*") if NAME.match(path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


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
    """
    target, temporary = folder / f"step_{step:08d}", folder / f"tmp_step_{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=2), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        if total_limit is not None:
            for old in list_checkpoints(folder)[:-total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def find_checkpoint(resume: str, folder: Path) -> Path:
    """The checkpoint that ``resume=latest`` or ``resume=PATH`` means.

    Raises:
        ValueError: If there is none.
    """
    if resume == "latest":
        found = list_checkpoints(folder)
        if not found:
            raise ValueError(
                f"resume=latest found no checkpoint in {folder}; start afresh, without resume, and with "
                "overwrite_output_dir=true if a run was begun there."
            )
        return found[-1]
    path = Path(resume)
    if not (path / STATE).is_file():
        raise ValueError(f"resume must be 'latest' or a checkpoint folder with {STATE}, got {resume!r}.")
    return path


def is_in(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of a run's ``checkpoints``."""
    return checkpoint.resolve().parent == folder.resolve()


def later_checkpoints(checkpoint: Path) -> list[Path]:
    """Those beside a checkpoint that have more steps, oldest first."""
    return [path for path in list_checkpoints(checkpoint.parent) if path.name > checkpoint.name]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The facts saved with a checkpoint.

    Raises:
        ValueError: If they are damaged.
    """
    try:
        return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8
        raise ValueError(damaged(checkpoint, error)) from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load everything that `accelerator` knows; called by all processes.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, ValueError, RuntimeError, LookupError, EOFError, UnpicklingError, SafetensorError) as error:
        raise ValueError(damaged(checkpoint, error)) from error


def damaged(checkpoint: Path, error: Exception) -> str:
    """What is wrong with a checkpoint that cannot be loaded, and what to do."""
    older = [path for path in list_checkpoints(checkpoint.parent) if path.name < checkpoint.name]
    instead = f"go on from {older[-1]}, by resume= with overwrite_output_dir=true" if older else "begin again"
    return f"the checkpoint {checkpoint} cannot be loaded ({type(error).__name__}: {error}); {instead}."


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
