"""Weights are saved and read as safetensors only: .bin files and pickles can run code when they are read."""

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


def require_safe_serialization(safe_serialization: bool, use_flashpack: bool) -> None:
    """Raise a `ValueError` if a ``save_pretrained`` is asked for a format that is never read here."""
    if not safe_serialization:
        raise ValueError("safe_serialization must be True: models are saved as safetensors only.")
    if use_flashpack:
        raise ValueError("use_flashpack must be False: models are saved as safetensors only.")
