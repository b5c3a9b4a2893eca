"""Numbers of things, and times, in words; and whether a number is one of things."""

from typing import Any


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "seed")`` is ``"1 seed"``, ``counted(1200, "seed")`` is ``"1,200 seeds"``.

    Args:
        number: How many.
        noun: Of one.
        plural: Of several; None = `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """``duration(4.32)`` is ``"4.3 seconds"``, ``duration(95)`` is ``"1.6 minutes"``; from two hours on they are hours.

    Args:
        seconds: How long.
    """
    if seconds < 60:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def check_count(name: str, value: Any, least: int, remark: str = "") -> None:
    """Raise a `ValueError` unless `value` is a whole number >= `least`.

    Args:
        name: The argument's.
        value: What came.
        least: The smallest allowed.
        remark: What the rule goes on with, as ``", or None for all"``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}{remark}, got {value!r}.")
