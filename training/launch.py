"""Start and stop of a training run: the script's entry point, ``accelerate launch`` from Python, signals, exit codes.

Ctrl-C or a SIGTERM stops a run after its current step, with a checkpoint; a diverging loss stops it without one. The
exit code is 0 on success, 2 for a mistake of the caller, 130 after Ctrl-C or a SIGTERM, and 1 otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from safetensors import SafetensorError

from hf_ebm.hub.upload import PushError
from hf_ebm.training.checkpointing import list_checkpoints
from hf_ebm.training.config import describe_settings, load_settings, shipped_configs
from hf_ebm.utils.logging import CALLERS_MISTAKE, FAILURE, INTERRUPTED, exit_code, hide_library_bars

ONE_PRESS = 2.0  # seconds in which a second signal is the same Ctrl-C: the launcher of several processes sends its own
GRACE = 10  # seconds that a loader's worker has after a SIGTERM
STEPPING = "stopping after this step, with a checkpoint (again: at once, without one)"
FINISHING = "no more steps: the run is being written, and ends then (again: at once)"
DIVERGED = "training diverged at step"  # how the message of a run that diverged begins
DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class TrainingDivergedError(RuntimeError):
    """A loss or a chain became non-finite or exploded; the run stopped and its checkpoints are untouched."""


class TrainingStoppedError(RuntimeError):
    """A file could not be read or written, e.g. because the disk is full; earlier checkpoints are untouched."""


class Interruption:
    """Whether somebody asked the run to stop, answered by `say(answer)`; asked again, a `KeyboardInterrupt`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.answer = STEPPING
        self.since: float | None = None

    @property
    def asked(self) -> bool:
        """Whether the run is to end after the present step."""
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
    """Context in which a first Ctrl-C or SIGTERM is only noted; errors say where the run stopped and how to resume.

    A signal that others answer (ignored, in a thread, a handler of the caller's) is left to them. A file that could not
    be read or written becomes a `TrainingStoppedError`.
    """
    interruption, ours = Interruption(say), []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, default in DEFAULTS.items() if signal.getsignal(number) is default]
    for number in ours:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    except (KeyboardInterrupt, TrainingDivergedError, OSError, SafetensorError) as error:
        found, diverged = list_checkpoints(checkpoints), isinstance(error, TrainingDivergedError)
        settings = when_diverged if diverged else "the same settings"
        then = (
            f"the last checkpoint is {found[-1]}: resume with {settings} and resume=latest"
            if found
            else f"there is no checkpoint yet: restart with {settings} and overwrite_output_dir=true"
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped by the user at step {step()}; {then}.") from error
        if diverged:
            raise TrainingDivergedError(f"{DIVERGED} {step()}: {error}; {then}.") from error
        raise TrainingStoppedError(f"training stopped at step {step()}: {error}; {then}.") from error
    finally:
        for number in ours:
            signal.signal(number, DEFAULTS[number])


def outlive_signals(worker: int) -> None:
    """For a loader's workers, which terminals and launchers signal as well: the last step still needs its data.

    They end with their process. After a SIGTERM, by which it ends those that do not, they have `GRACE` seconds more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def launch(method: str, launcher: Sequence[str], arguments: Sequence[str]) -> int:
    """Run a training script and return its exit code: 0, 2 or 130, or 1 for any other.

    A signal that ends the script before it answers them (while it still imports) gives 130 as well.

    Ctrl-C, which the script gets too, is the script's to answer: this process waits for it. A SIGTERM, which the script
    does not get, is passed on and waited for as well: the script would continue training.
    """
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    script = ["-m", f"hf_ebm.training.train_{method}", *arguments]
    options = accelerate_launch.launch_command_parser().parse_args([*launcher, *script])
    answers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: end_children}  # handlers, unlike SIG_IGN, stay here
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        accelerate_launch.launch_command(options)
    except subprocess.CalledProcessError as error:  # of one process
        code = error.returncode
    except ChildFailedError as error:  # of several
        code = error.get_first_failure()[1].exitcode
    except SignalException as error:  # of several, whose launcher has its own handler
        code = INTERRUPTED if error.sigval == signal.SIGINT else FAILURE
    else:
        return 0
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)
    if code in (-signal.SIGINT, -signal.SIGTERM):
        print("hf-ebm: stopped by the user.", file=sys.stderr)  # which the script had no time to say
        return INTERRUPTED
    return code if code in (CALLERS_MISTAKE, INTERRUPTED) else FAILURE


def end_children(*_: object) -> None:
    """Send a SIGTERM to the processes that this one has started; those that they have started are theirs to end."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


def run_script(
    doc: str, cls: type[Any], default_config: str, train: Callable[[Any], Path], arguments: Sequence[str] | None
) -> None:
    """Entry point of a script.

    A setting that cannot be used ends it with one clear line and exit code 2, Ctrl-C and a SIGTERM with another one and
    130, a loss that diverges or a full disk with 1.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        configs = ", ".join(path.name for path in shipped_configs(default_config))
        try:
            print(doc, f"Configs: {configs}", sep="\n")
            print(f"Without --config the settings of {default_config} hold (beside the defaults, where they differ).")
            print("What a config leaves out is by default:")
            print(describe_settings(cls, default_config), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; Python would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    hide_library_bars()
    try:
        train(load_settings(cls, default_config, arguments))
    except KeyboardInterrupt as error:
        say_once(f"hf-ebm: {str(error) or 'stopped by the user.'}")
        raise SystemExit(INTERRUPTED) from error
    except (TrainingDivergedError, TrainingStoppedError) as error:
        say_once(f"hf-ebm: error: {error}")
        raise SystemExit(FAILURE) from error
    except PushError as error:
        raise SystemExit(f"hf-ebm: error: {error}") from error  # with exit code 1
    except (ValueError, OSError) as error:
        print(f"hf-ebm: error: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error


def say_once(line: str) -> None:
    """Print a line to stderr, by one of several processes."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr)
