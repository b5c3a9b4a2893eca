"""What one visitor of the demo may ask for, checked by the server whatever the page says."""

from __future__ import annotations

from typing import Any

from hf_ebm.utils.validation import is_number

MAX_IMAGES = 16  # per call
MAX_CHAIN_STEPS = 100  # updates of a chain per call
MAX_FRAMES = 12  # of a blend
MAX_SEED = 2**32 - 1
MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # a phone's largest photographs, and 150 MB in memory
MAX_FILES = 200  # that visitors sent or were shown and that are kept
MAX_TOTAL_BYTES = 500 * 2**20  # of them
KEEP_SECONDS = 3000  # so long is a file kept
MAX_WAITING = 16  # calls in the queue; one runs at a time


def check_whole_number(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int.

    Raises:
        ValueError: If it is no whole number from `low` to `high`; it names the field.
    """
    if not is_number(value) or value != value or not low <= value <= high or int(value) != value:
        got = "nothing" if value is None else repr(value)
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {got}.")
    return int(value)
