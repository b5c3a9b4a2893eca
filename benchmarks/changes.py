"""Changes to a recipe, as the command line of the benchmarks names them."""

from __future__ import annotations

import shlex

SHIPPED = "as shipped"  # the recipe without a change


def split_change(title: str) -> list[str]:
    """The ``key=value`` of a change, none of `SHIPPED`.

    Raises:
        ValueError: If it is not of that form.
    """
    if title == SHIPPED:
        return []
    pairs = shlex.split(title)
    if not pairs or not all("=" in pair for pair in pairs):
        raise ValueError(f"--change must be key=value, several in quotes, got {title!r}.")
    return pairs
