"""Gradients inside ``torch.inference_mode()``: leave the mode, and clone the tensors created in it.

Chains need the energy's gradient. Autograd does not compute it in inference mode, nor later from
tensors that were created there. Sampling and scoring are often wrapped in that mode, so they leave
it on their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_inference_tensors(value: Any) -> Any:
    """`value` with clones in place of inference tensors.

    They are looked for in lists, tuples, dicts and dataclasses too. Anything that holds none is
    returned as it is.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        items = [without_inference_tensors(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    if type(value) is dict:
        entries = {key: without_inference_tensors(item) for key, item in value.items()}
        return value if all(entries[key] is value[key] for key in value) else entries
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = without_inference_tensors(fields)
        return value if changed is fields else dataclasses.replace(value, **changed)
    return value


def no_grad(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate as ``torch.no_grad()`` does, and leave ``torch.inference_mode()`` during the call.

    Parts of `function` may then enable gradients. Inference tensors among its arguments are cloned.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            args = tuple(without_inference_tensors(value) for value in args)  # type: ignore[assignment]
            kwargs = {name: without_inference_tensors(value) for name, value in kwargs.items()}  # type: ignore[assignment]
            return function(*args, **kwargs)

    return call
