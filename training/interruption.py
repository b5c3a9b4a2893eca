"""A run that its user stops with Ctrl-C: it finishes its step, writes a checkpoint, and says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from hf_ebm.training.checkpoints import list_checkpoints

ONE_PRESS = 2.0  # seconds in which a second signal is the same Ctrl-C: the launcher of several processes sends its own


class Interruption:
    """Whether Ctrl-C was pressed; pressed again, it raises a `KeyboardInterrupt` at once.

    Args:
        say: Tells the user what happens.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.since: float | None = None

    @property
    def asked(self) -> bool:
        """Whether the run is to end after the step that is under way."""
        return self.since is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handler of a SIGINT."""
        if self.since is None:
            self.since = time.monotonic()
            self.say("hf-ebm: stopping after this step, with a checkpoint (Ctrl-C again: at once, without one)")
        elif time.monotonic() - self.since > ONE_PRESS:
            raise KeyboardInterrupt


@contextlib.contextmanager
def says_where_it_stopped(
    checkpoints: Path, step: Callable[[], int], say: Callable[[str], None]
) -> Iterator[Interruption]:
    """Inside, a first Ctrl-C is only noted, and a `KeyboardInterrupt` gets a message.

    Where Ctrl-C is answered by others (ignored, in a thread, a handler of the caller's), that stays so.

    Args:
        checkpoints: Folder of the run's checkpoints.
        step: Tells the number of finished steps.
        say: Tells the user something.
    """
    interruption = Interruption(say)
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, interruption.handle)
    try:
        yield interruption
    except KeyboardInterrupt as error:
        found = list_checkpoints(checkpoints)
        resume = (
            f"the last checkpoint is {found[-1]}: go on with resume=latest"
            if found
            else "there is no checkpoint yet (checkpoint_every): begin again, with overwrite_output_dir=true (make "
            "demo needs no setting)"
        )
        raise KeyboardInterrupt(f"stopped by the user at step {step()}; {resume}.") from error
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupts(worker: int) -> None:
    """For a loader's workers, which get a terminal's Ctrl-C as well and would leave the last step without its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
