"""Uploaded files as model inputs, with their size checked before anything is decoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageOps
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.demo.limits import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # no format that runs a program or a script


@dataclass(frozen=True)
class Upload:
    """An uploaded image as the model takes it."""

    x: Tensor  # in [0, 1], shape (1, C, S, S)
    changes: str  # a description of the conversions; empty if there were none


def read_upload(path: str | None, image_processor: EBMImageProcessor, what: str = "image") -> Upload:
    """Read an uploaded image, None if nothing was chosen, and prepare it as in training; messages call it `what`."""
    if not path:
        raise ValueError(f"Choose the {what} first: upload one, or select an example below.")
    size = Path(path).stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"The {what} has {size / 2**20:.1f} MB; at most {MAX_UPLOAD_BYTES // 2**20} MB are allowed.")
    allowed = f"at most {MAX_UPLOAD_PIXELS // 1_000_000} million are allowed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit comes next
            file = PIL.Image.open(path, formats=FORMATS)
        with file:
            width, height = file.size
            if width * height > MAX_UPLOAD_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels, and {allowed}")
            mode, transparent, frames = file.mode, file.has_transparency_data, getattr(file, "n_frames", 1)
            image = PIL.ImageOps.exif_transpose(file)
            x = image_processor.prepare(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "it is damaged, or of an unknown image format" if not isinstance(error, ValueError) else str(error)
        if isinstance(error, PIL.Image.DecompressionBombError):
            reason = f"it has too many pixels, {allowed}"
        raise ValueError(
            f"The {what} cannot be read: {reason}. Please try another PNG, JPEG, WebP, GIF or BMP file."
        ) from error
    return Upload(to_unit_range(x), image_processor.describe_changes(image.size, mode, transparent, frames))
