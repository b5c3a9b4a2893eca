"""Limits of what one visitor of the demo may request, enforced by the server."""

from __future__ import annotations

from typing import Any

from hf_ebm.utils.validation import is_number

MAX_IMAGES = 16  # per call
MAX_CHAIN_STEPS = 100  # updates of a chain per call
MAX_FRAMES = 12  # of an interpolation
MAX_SEED = 2**32 - 1
MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # the largest photographs of phones; 150 MB in memory
MAX_FILES = 200  # uploads and results that are kept
MAX_TOTAL_BYTES = 500 * 2**20  # of these files
MAX_WAITING = 16  # calls in the queue; one runs at a time


def check_whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int; a `ValueError` that names the field unless it is whole and from `low` to `high`."""
    if not is_number(value) or value != value or not low <= value <= high or int(value) != value:
        got = "nothing" if value is None else repr(value)
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {got}.")
    return int(value)
