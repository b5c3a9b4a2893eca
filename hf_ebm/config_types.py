"""Whether a config.json has values of the types its class takes, before a network is built from them."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Mapping
from typing import Any


def has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a type hint; a list stands for any sequence, and hints not of JSON fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, option) for option in arguments)
    if origin in (list, tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(has_type(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    return hint is not type(None) or value is None


def check_config_types(cls: type[Any], config: Mapping[str, Any]) -> None:
    """Compare a config with the annotations of the constructor of `cls`.

    Raises:
        ValueError: It names the first setting of another type.
    """
    hints = typing.get_type_hints(cls.__init__)
    for name, value in config.items():
        if name in hints and not has_type(value, hints[name]):
            raise ValueError(
                f"config of {cls.__name__}: {name} must be {hints[name]}, got {value!r}; correct its config file, or "
                "save the model again."
            )
