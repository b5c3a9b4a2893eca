"""Whether a config.json has values of the types its class takes, before a network is built from them."""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from hf_ebm.counting import is_integer, is_number


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
    """Compare a config with annotations.

    Args:
        taker: What has them: a constructor, or a config class (of which its own fields count).
        config: Values by name; names without an annotation are not looked at.

    Raises:
        ValueError: It names the first setting of another type.
    """
    own = type("own", (), {"__annotations__": taker.__annotations__})  # a base class's may name what is not imported
    hints = typing.get_type_hints(own, globalns=vars(sys.modules[taker.__module__]))
    for name, value in config.items():
        if name in hints and not has_type(value, hints[name]):
            raise ValueError(
                f"config of {taker.__qualname__.removesuffix('.__init__')}: {name} must be {hints[name]}, got "
                f"{value!r}; correct its config file, or save the model again."
            )
