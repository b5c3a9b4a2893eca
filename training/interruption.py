"""A run that its user stops with Ctrl-C: it says at which step, and how to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_ebm.training.checkpoints import list_checkpoints


@contextlib.contextmanager
def says_where_it_stopped(checkpoints: Path, step: Callable[[], int]) -> Iterator[None]:
    """Inside, a `KeyboardInterrupt` gets a message.

    Args:
        checkpoints: Folder of the run's checkpoints.
        step: Tells the number of finished steps.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        found = list_checkpoints(checkpoints)
        resume = (
            f"the last checkpoint is {found[-1]}: go on with resume=latest"
            if found
            else "there is no checkpoint yet (checkpoint_every): begin again, with overwrite_output_dir=true (make "
            "demo needs no setting)"
        )
        raise KeyboardInterrupt(f"stopped by the user at step {step()}; {resume}.") from error
