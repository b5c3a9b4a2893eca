"""Progress bars that a function takes as an argument: as `tqdm` makes them, or none."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

ProgressBar = Callable[..., Iterable[Any]]  # as `tqdm`: (things, desc=in words, total=their number) -> the things

DELAY = 1.0  # seconds


def no_bar(things: Iterable[Any], **_: Any) -> Iterable[Any]:
    """The things, with nothing shown."""
    return things


def passing_bar(**options: Any) -> ProgressBar:
    """`tqdm` on stderr for who waits longer than `DELAY`, and nothing of it left at the end; `options` are tqdm's."""
    from tqdm.auto import tqdm

    return functools.partial(tqdm, **{"leave": False, "delay": DELAY, "file": sys.stderr, **options})
