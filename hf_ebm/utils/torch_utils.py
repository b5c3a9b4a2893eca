"""Devices, memory formats and inference mode.

Chains need the energy's gradient, which autograd does not compute inside ``torch.inference_mode()``, nor later for
tensors created in it. `no_grad` leaves the mode and clones such tensors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn


def find_device(name: str) -> torch.device:
    """The device of that name, such as ``"cuda:1"`` or ``"mps"``; a `ValueError` if it is not available here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own, by kind of device
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device must be one that is available here, got {name!r}: {reason}") from error
    return device


def execution_device(model: nn.Module) -> torch.device:
    """The device that a network computes on, which under offloading is not the one that holds its parameters.

    With ``enable_model_cpu_offload`` the parameters wait on the CPU, with ``enable_sequential_cpu_offload`` and some
    device maps they are on ``meta``, and accelerate's hooks, on the network or in it, name the device.
    """
    first = next(model.parameters(), None)
    device = torch.device(getattr(model, "device", "cpu")) if first is None else first.device
    if "_hf_hook" not in vars(model) and (device.type != "cpu" or not torch.accelerator.is_available()):
        return device  # no hook can be inside, and going through all modules takes time
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):  # a SequentialHook has several
            named = getattr(one, "execution_device", None)
            if named is not None:
                return torch.device(named)
    return device


def send(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`x` on the device of a model, in its dtype; a GPU's work on what was sent before is not waited for.

    From memory that the system may page out torch copies only when the GPU has done all it was given.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True).to(dtype)
    return x.to(device=device, dtype=dtype)


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """Images on a CPU, shape (B, C, H, W), laid out channels last; anything else, and gray images, unchanged.

    PyTorch's convolutions keep the layout that they are given, and on a CPU this one is the faster
    (1.06 to 1.08 times on two cores). On a GPU that depends on the precision: there it is left to the caller.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.device.type == "cpu" else x


P = ParamSpec("P")
R = TypeVar("R")


def without_inference_tensors(value: Any) -> Any:
    """`value` with clones in place of inference tensors.

    They are looked for in lists, tuples, dicts and dataclasses too. Anything that holds none is
    returned unchanged.
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
