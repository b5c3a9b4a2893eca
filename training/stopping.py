"""How a run stops before its end: by Ctrl-C or a SIGTERM, with a checkpoint of its step, or a loss that diverges."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from hf_ebm.training.checkpoints import WriteError, list_checkpoints

ONE_PRESS = 2.0  # seconds in which a second signal is the same Ctrl-C: the launcher of several processes sends its own
GRACE = 10  # seconds that a loader's worker has after a SIGTERM
STEPPING = "stopping after this step, with a checkpoint (again: at once, without one)"
FINISHING = "no more steps: the run is being written, and ends then (again: at once)"
DIVERGED = "training diverged at step"  # how the message of a run that diverged begins
DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class TrainingDivergedError(RuntimeError):
    """A loss or a chain became non-finite or exploded; the run stopped and its checkpoints are untouched."""


class Interruption:
    """Whether somebody asked the run to stop; asked again, it raises a `KeyboardInterrupt` at once.

    Args:
        say: Tells the user what happens.

    Attributes:
        answer: What it tells: `STEPPING`, or later `FINISHING`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.answer = STEPPING
        self.since: float | None = None

    @property
    def asked(self) -> bool:
        """Whether the run is to end after the step that is under way, or what comes after the last one."""
        return self.since is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handler of the signals."""
        if self.since is None:
            self.since = time.monotonic()
            self.say(f"hf-ebm: {self.answer}")
        elif time.monotonic() - self.since > ONE_PRESS:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stopping(
    checkpoints: Path,
    step: Callable[[], int],
    say: Callable[[str], None],
    when_diverged: str,
) -> Iterator[Interruption]:
    """Inside, a first Ctrl-C or SIGTERM is only noted; a run that stops says where, and how to go on.

    A signal that others answer (ignored, in a thread, a handler of the caller's) is left to them.

    Args:
        checkpoints: Folder of the run's checkpoints.
        step: Tells the number of finished steps.
        say: Tells the user something.
        when_diverged: Which settings to change after a run that diverged, in words.

    Raises:
        KeyboardInterrupt: With that message.
        TrainingDivergedError: The same, with the step.
        WriteError: The same, if a file could not be written or read.
    """
    interruption, ours = Interruption(say), []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, default in DEFAULTS.items() if signal.getsignal(number) is default]
    for number in ours:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    except KeyboardInterrupt as error:
        found = list_checkpoints(checkpoints)
        resume = (
            f"the last checkpoint is {found[-1]}: go on with the same settings and resume=latest"
            if found
            else "there is no checkpoint yet (checkpoint_every): begin again, with overwrite_output_dir=true"
        )
        raise KeyboardInterrupt(f"stopped by the user at step {step()}; {resume}.") from error
    except TrainingDivergedError as error:
        found = list_checkpoints(checkpoints)
        resume = (
            f"The last checkpoint, untouched, is {found[-1]}: go on with resume=latest and {when_diverged}"
            if found
            else f"There is no checkpoint yet: begin again with {when_diverged}, and overwrite_output_dir=true"
        )
        raise TrainingDivergedError(f"{DIVERGED} {step()}: {error}. {resume}.") from error
    except (WriteError, OSError, SafetensorError) as error:
        found = list_checkpoints(checkpoints)
        resume = (
            f"The last checkpoint is {found[-1]}: once this is fixed, go on with resume=latest"
            if found
            else "There is no checkpoint yet: once this is fixed, begin again with overwrite_output_dir=true"
        )
        raise WriteError(f"training stopped at step {step()}: {error}. {resume}.") from error
    finally:
        for number in ours:
            signal.signal(number, DEFAULTS[number])


def outlive_signals(worker: int) -> None:
    """For a loader's workers, which terminals and launchers tell to stop as well: the last step still needs its data.

    They end with their process. After a SIGTERM, by which it ends those that do not, they have `GRACE` seconds more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
