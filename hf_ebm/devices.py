"""The device that somebody names for a model: one that is here and computes."""

from __future__ import annotations

import torch


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
