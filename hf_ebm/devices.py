"""The device that somebody names for a model, one that is here and computes, and sending samples to it."""

from __future__ import annotations

import torch
from torch import Tensor


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


def send(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`x` on the device of a model, in its dtype; a GPU's work on what was sent before is not waited for.

    From memory that the system may page out torch copies only when the GPU has done all it was given.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True).to(dtype)
    return x.to(device=device, dtype=dtype)
