"""The device that a user names, the one a network computes on, and sending samples to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def find_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: As torch's: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ...

    Raises:
        ValueError: If there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own, by kind of device
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        here = "cpu" if found is None else f"cpu, {found.type}"
        reason = str(error).partition("\n")[0]
        if "at start of device string" in reason:  # followed by the names of twenty kinds
            reason = "PyTorch knows no such kind of device"
        raise ValueError(f"--device must be one that is available here ({here}), got {name!r}: {reason}.") from error
    return device


def execution_device(model: nn.Module) -> torch.device:
    """The device that a network computes on, which under offloading is not the one that holds its parameters.

    With ``enable_model_cpu_offload`` the parameters wait on the CPU, with ``enable_sequential_cpu_offload`` and some
    device maps they are on ``meta``, and accelerate's hooks, on the network or in it, name the device. diffusers' group
    offloading has hooks of its own.
    """
    device = next(model.parameters()).device
    if "_hf_hook" not in vars(model) and (device.type != "cpu" or not torch.accelerator.is_available()):
        return device  # no hook can be inside, and going through all modules takes time
    for module in model.modules():
        hook, registry = vars(module).get("_hf_hook"), vars(module).get("_diffusers_hook")
        for one in getattr(hook, "hooks", (hook,)):  # a SequentialHook has several
            named = getattr(one, "execution_device", None)
            if named is not None:
                return torch.device(named)
        group = None if registry is None else registry.get_hook("group_offloading")
        if group is not None:
            return torch.device(group.config.onload_device)
    return device


def send(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`x` on the device of a model, in its dtype; a GPU's work on what was sent before is not waited for.

    From memory that the system may page out torch copies only when the GPU has done all it was given.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True).to(dtype)
    return x.to(device=device, dtype=dtype)
