"""``accelerate launch`` of a method's script from Python: its own message and exit code, and no traceback below it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

from hf_ebm.exit_codes import CALLERS_MISTAKE, FAILURE, INTERRUPTED


def launch(method: str, launcher: Sequence[str], arguments: Sequence[str]) -> int:
    """Run a training script and return its exit code: 0, 2 or 130, or 1 for any other.

    A signal that ends the script before it answers them (while it still imports) gives 130 as well.

    Ctrl-C, which the script gets too, is the script's to answer: this process waits for it. A SIGTERM, which the script
    does not get, is passed on and waited for as well: the script would train on alone.

    Args:
        method: Whose script: ``hf_ebm.training.train_<method>``.
        launcher: Options of ``accelerate launch``.
        arguments: Of the script.
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
