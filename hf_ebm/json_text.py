"""JSON that every reader takes: Python's own would write ``Infinity`` and ``NaN``, which are none.

A figure that may be without bound (a PSNR of a perfect picture, an error bar of one weight) is null: `finite_or_none`.
"""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(record: Any, indent: int | None = None) -> str:
    """The text of a record.

    Raises:
        ValueError: If a number in it is not finite.
    """
    try:
        return json.dumps(record, indent=indent, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"the result holds a number that is not finite ({error}), so nothing was written.") from error


def finite_or_none(value: float | None) -> float | None:
    """`value`, or None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
