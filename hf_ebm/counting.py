"""Numbers and durations in words, and checks of numeric arguments: counts, seeds, fractions."""

from numbers import Integral, Real
from typing import Any

MAX_SEED = 2**64 - 1  # of a torch.Generator
MAX_NUMPY_SEED = 2**32 - 1  # of numpy's legacy generator, and so of scikit-learn and accelerate's set_seed


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


def is_integer(value: Any) -> bool:
    """Whether `value` is a whole number: Python's or numpy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number: Python's or numpy's, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def python_number(value: Any) -> Any:
    """Return a numpy number, also in a list or tuple, as Python's, which JSON can hold; anything else unchanged."""
    if isinstance(value, list | tuple):
        return type(value)(python_number(item) for item in value) if type(value) in (list, tuple) else value
    if is_integer(value):
        return int(value)
    return float(value) if is_number(value) else value


def check_count(name: str, value: Any, least: int, remark: str = "") -> int:
    """Return a whole number >= `least` as a Python int, which torch takes everywhere.

    Args:
        name: The argument's name.
        value: The value passed.
        least: The smallest value allowed.
        remark: Continues the rule in the message, such as ``", or None for all"``.

    Raises:
        ValueError: If it is not one.
    """
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}{remark}, got {value!r}.")
    return int(value)


def check_fraction(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a number strictly between 0 and 1."""
    if not is_number(value) or not 0.0 < value < 1.0:
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}.")


def check_seed(name: str, value: Any, largest: int = MAX_SEED) -> int:
    """Return a seed as a Python int.

    Args:
        name: The argument's name.
        value: The value passed.
        largest: The largest seed allowed: `MAX_SEED`, or `MAX_NUMPY_SEED` where numpy or scikit-learn gets it.

    Raises:
        ValueError: If it is not a whole number from 0 to `largest`.
    """
    if not is_integer(value) or not 0 <= value <= largest:
        bits = largest.bit_length()
        raise ValueError(f"{name} must be a whole number from 0 to 2**{bits} - 1 ({largest}), got {value!r}.")
    return int(value)
