"""Weights are read from safetensors alone: .bin files and pickles can run code when they are read."""

from __future__ import annotations

from typing import Any


def require_safetensors(kwargs: dict[str, Any]) -> None:
    """Set ``use_safetensors=True`` in the keyword arguments of a ``from_pretrained``.

    Raises:
        ValueError: If the caller wants other weights, which can run code when they are read.
    """
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors must be True: .bin and pickles, which can run code, are not read.")
    kwargs["use_safetensors"] = True
