"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """``"did you mean a, b?"`` with the known names that are like `name`, or `otherwise` where none is."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def near_folders(path: Path) -> list[str]:
    """Folders beside `path`, which is not there, whose names are like its own."""
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, folders_in(path.parent), n=3)]


def folders_in(path: Path) -> list[str]:
    """Names of the folders in `path`, in their order; none where it is no folder."""
    try:
        return sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    except OSError:
        return []


def check_known(owner: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise a `ValueError` for the first of the settings `names` that `owner`, a class by name, does not know."""
    for name in sorted(set(names) - set(known)):
        raise ValueError(f"models: {owner} has no setting {name!r}; {did_you_mean(name, known, 'see its docstring.')}")
