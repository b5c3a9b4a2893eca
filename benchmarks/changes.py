"""Changes to a recipe on the benchmarks' command lines, and the commit of a run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

SHIPPED = "as shipped"  # the recipe without a change


def split_change(title: str) -> list[str]:
    """Split a change into its ``key=value`` pairs; `SHIPPED` has none.

    Raises:
        ValueError: If it is not of that form.
    """
    if title == SHIPPED:
        return []
    pairs = shlex.split(title)
    if not pairs or not all("=" in pair for pair in pairs):
        raise ValueError(f"--change must be key=value, several in quotes, got {title!r}.")
    return pairs


def current_commit() -> str | None:
    """The commit of this checkout, with a "+" where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    command += ["--exclude", "*"]  # no tag's name
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
