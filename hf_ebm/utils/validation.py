"""Checks of arguments: counts, numbers, seeds, config types, and suggestions for unknown names."""

from __future__ import annotations

import collections.abc
import difflib
import math
import sys
import types
import typing
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

MAX_SEED = 2**64 - 1  # of a torch.Generator
MAX_NUMPY_SEED = 2**32 - 1  # of numpy's legacy generator, and so of scikit-learn and accelerate's set_seed


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "seed")`` is ``"1 seed"``, ``counted(1200, "seed")`` is ``"1,200 seeds"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """``duration(4.32)`` is ``"4.3 seconds"``, ``duration(95)`` is ``"1.6 minutes"``; hours from two on."""
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
    """Return a whole number >= `least` as a Python int; else a `ValueError`, whose rule `remark` continues."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}{remark}, got {value!r}.")
    return int(value)


def check_fraction(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a number strictly between 0 and 1."""
    if not is_number(value) or not 0.0 < value < 1.0:
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}.")


def check_seed(name: str, value: Any, largest: int = MAX_SEED) -> int:
    """Return a seed from 0 to `largest` (`MAX_NUMPY_SEED` where numpy gets it) as a Python int; else a `ValueError`."""
    if not is_integer(value) or not 0 <= value <= largest:
        bits = largest.bit_length()
        raise ValueError(f"{name} must be a whole number from 0 to 2**{bits} - 1 ({largest}), got {value!r}.")
    return int(value)


def has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a type hint; a list stands for any sequence, and hints not of JSON fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, option) for option in arguments)
    if origin in (list, tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(has_type(item, arguments[0]) for item in value)
    if hint is float:
        return is_number(value)
    if hint is int:
        return is_integer(value)
    if hint in (str, bool):
        return isinstance(value, hint)
    return hint is not type(None) or value is None


def check_config_types(taker: Any, config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first setting of another type than `taker`'s annotations say.

    `taker` is a constructor, or a config class, of which its own fields count.
    """
    own = type("own", (), {"__annotations__": taker.__annotations__})  # a base class's may name what is not imported
    hints = typing.get_type_hints(own, globalns=vars(sys.modules[taker.__module__]))
    for name, value in config.items():
        if name in hints and not has_type(value, hints[name]):
            raise ValueError(
                f"config of {taker.__qualname__.removesuffix('.__init__')}: {name} must be {hints[name]}, got "
                f"{value!r}; correct its config file, or save the model again."
            )


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """``"did you mean a, b?"`` with the known names that are like `name`, or `otherwise` where none is."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def check_known(owner: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise a `ValueError` for the first of the settings `names` that `owner`, a class by name, does not know."""
    for name in sorted(set(names) - set(known)):
        raise ValueError(f"models: {owner} has no setting {name!r}; {did_you_mean(name, known, 'see its docstring.')}")


def check_positive(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a positive, finite number."""
    if not is_number(value) or not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}.")


def check_not_negative(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a finite number >= 0."""
    if not is_number(value) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be >= 0 and finite, got {value!r}.")
