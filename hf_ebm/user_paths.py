"""Paths as users write them: a leading ``~`` is a home folder everywhere, also where no shell has expanded it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar, cast

PathT = TypeVar("PathT", bound=str | Path)


def expand_home(path: PathT) -> PathT:
    """`path` with a leading ``~`` or ``~user`` replaced by that user's home folder; any other path as it is.

    Raises:
        ValueError: If there is no such user, and no file or folder of this name.
    """
    text = str(path)
    expanded = os.path.expanduser(text)
    if expanded == text and text.startswith("~") and not os.path.lexists(text):
        user = text.split("/")[0]
        raise ValueError(f"{text!r} starts with {user}, and there is no home folder of that name; write out the path.")
    return cast(PathT, expanded if isinstance(path, str) else Path(expanded))
