"""What the user sees of a process: progress bars, and exit codes.

Exit codes are 0 for success, 2 for a mistake of the caller, 130 for Ctrl-C, and 1 otherwise.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

ProgressBar = Callable[..., Iterable[Any]]  # as `tqdm`: (items, desc=description, total=number of items) -> the items

DELAY = 1.0  # seconds


def no_bar(things: Iterable[Any], **_: Any) -> Iterable[Any]:
    """The things, with nothing shown."""
    return things


def passing_bar(**options: Any) -> ProgressBar:
    """`tqdm` on stderr for who waits longer than `DELAY`, and nothing of it left at the end; `options` are tqdm's."""
    from tqdm.auto import tqdm

    return functools.partial(tqdm, **{"leave": False, "delay": DELAY, "file": sys.stderr, **options})


CALLERS_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # the last as shells have it: 128 + SIGINT
NOT_THE_CALLERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def exit_code(error: Exception) -> int:
    """2 for what the caller can put right in the command, 1 for a full disk, no network, a missing package, ..."""
    is_broken = isinstance(error, OSError) and error.errno in NOT_THE_CALLERS
    is_failure = is_broken or isinstance(error, ImportError | ConnectionError)
    return FAILURE if is_failure else CALLERS_MISTAKE
