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
    """`tqdm` on a terminal for who waits longer than `DELAY`, nothing of it left at the end; `options` are tqdm's."""
    from tqdm.auto import tqdm

    return functools.partial(tqdm, **{"leave": False, "delay": DELAY, "disable": None, "file": sys.stderr, **options})


def hide_library_bars() -> None:
    """Switch off the bars of transformers and diffusers for reading and writing weights; those of downloads stay."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    shows_downloads = not are_progress_bars_disabled()
    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()  # and huggingface_hub's with them
    if shows_downloads:
        enable_progress_bars()


CALLERS_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # the last as shells have it: 128 + SIGINT
NOT_THE_CALLERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def exit_code(error: Exception) -> int:
    """2 for what the caller can put right in the command, 1 for a full disk, no network, a missing package, ..."""
    is_broken = isinstance(error, OSError) and error.errno in NOT_THE_CALLERS
    is_failure = is_broken or isinstance(error, ImportError | ConnectionError)
    return FAILURE if is_failure else CALLERS_MISTAKE
