"""Open an image from a file, a URL, bytes or PIL safely: upright, one frame, converted to gray or RGB.

| what comes | what happens |
|---|---|
| not an image, a corrupt or a truncated one | refused |
| a file of another format than `FORMATS`, such as EPS, which PIL opens with another program (Ghostscript) | refused |
| more than `MAX_PIXELS` pixels (a decompression bomb) | refused before it is decoded |
| several frames: animated GIF, WebP, APNG, pages of a TIFF | refused; an MPO's first frame is the photograph |
| an EXIF orientation | turned upright |
| 16-bit gray | scaled, 65535 is white; PIL's own ``convert`` clips |
| whole numbers of 32 bits, floats, LAB | refused: their range is not known |
| transparency | laid on white |
| palette, 1 bit, CMYK, YCbCr, HSV, another of gray and RGB | converted by PIL |

Refused means a `ValueError` with the reason. The first five rows are `open_image`, the others `convert_image`, which
runs only where a conversion was asked for, mostly as the first step of `fit_image`. The demo's page opens its
uploads itself (`hf_ebm.demo.uploads`): it uses an animation's first frame and reports that.
"""

from __future__ import annotations

import functools
import io
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base as ExifTag

from hf_ebm.utils.files import expand_home

MAX_PIXELS = 89_478_485  # the size at which PIL warns; a quarter of a gigabyte of RGB
UNKNOWN_RANGE = ("I", "F", "LAB")  # modes that are not converted
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")  # read by PIL itself
IMAGE_TYPES = (str, Path, bytes, dict, PIL.Image.Image)
URL_TIMEOUT = 30.0  # seconds without an answer
MAX_BYTES = 2**28  # of a downloaded image
ORIENTATION = int(ExifTag.Orientation)


def open_image(source: Any) -> PIL.Image.Image:
    """Return the decoded image by the module's table, upright, in its stored mode.

    Args:
        source: Path, URL, bytes of a file, an undecoded `datasets.Image` (``{"bytes", "path"}``), or a PIL image.

    Raises:
        ValueError: If the image cannot be read or is refused: "cannot be read (reason)", to follow the image's name.
    """
    try:
        if isinstance(source, PIL.Image.Image):
            return _decoded(source)
        if not isinstance(source, IMAGE_TYPES):
            raise ValueError(f"an image must be a PIL image, a path, a URL or bytes, got {type(source).__name__}")
        with _file(source) as file:
            return _decoded(_recognised(file))
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise ValueError(f"cannot be read ({error or type(error).__name__})") from error


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads: an older one has no AVIF."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN or name == "MPO")  # which the JPEG reader makes


@functools.cache
def image_extensions() -> frozenset[str]:
    """The file name extensions of `readable_formats`, in lower case, each with its dot."""
    formats = readable_formats()
    return frozenset(end for end, name in PIL.Image.registered_extensions().items() if name in formats)


def is_url(source: Any) -> bool:
    """Whether an image's name is a URL, not a path."""
    return str(source).startswith(("http://", "https://"))


def words_of(error: ValueError) -> str:
    """The message of a reader's error; from a `DataLoader`'s worker it comes with the worker's traceback before it."""
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


def _decoded(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decode an image and turn it upright, if its size, format and number of frames are allowed."""
    if image.format not in (None, *FORMATS):  # opened by the caller, and not decoded yet
        raise ValueError(f"its format {image.format} is not one of {', '.join(FORMATS)}; convert it to one of them")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}: a decompression bomb?")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames; save the frame you need as an image")
    image.load()
    turned = image.getexif().get(ORIENTATION, 1) != 1
    return PIL.ImageOps.exif_transpose(image) if turned else image


def _recognised(file: BinaryIO) -> PIL.Image.Image:
    """Open an image file without decoding it."""
    try:
        return PIL.Image.open(file, formats=[name for name in readable_formats() if name != "MPO"])
    except PIL.UnidentifiedImageError as error:  # its own words name an object in memory
        raise ValueError(f"it is not an image of a known format: {', '.join(FORMATS)}") from error
    except PIL.Image.DecompressionBombError as error:  # its own words name PIL's limit, twice ours
        raise ValueError(f"its pixels are more than {MAX_PIXELS:,}: a decompression bomb?") from error


def _file(source: Any) -> BinaryIO | Any:
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
        if source is None:
            raise ValueError("the row holds no image")
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if is_url(source):
        with urllib.request.urlopen(str(source), timeout=URL_TIMEOUT) as answer:
            content = _bounded(answer)
            if answer.length:
                raise ValueError(f"the server announced {answer.length:,} bytes more than it sent")
            return content
    if "://" in str(source):  # hf://..., zip://...: what streaming data sets give
        import fsspec

        with fsspec.open(str(source), "rb") as file:
            return _bounded(file)
    return Path(expand_home(source)).open("rb")


def _bounded(file: Any) -> BinaryIO:
    """The content of a file that comes from elsewhere; a `ValueError` if it is longer than `MAX_BYTES`."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return io.BytesIO(content)


def convert_image(image: PIL.Image.Image, num_channels: int) -> PIL.Image.Image:
    """Convert to 8 bits per value, mode "L" for 1 channel and "RGB" for 3, by the module's table.

    Raises:
        ValueError: If the number of channels is another, or the image's mode is refused.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 or 3 to read images, got {num_channels}.")
    mode = {1: "L", 3: "RGB"}[num_channels]
    transparent = image.has_transparency_data
    if image.mode in UNKNOWN_RANGE or (image.mode.startswith("I;") and transparent):
        raise ValueError(
            f"images of mode {image.mode!r}{' with transparency' if transparent else ''} are not converted, as their "
            "range is not known; save them with 8 bits per value."
        )
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8)).convert(mode)
    if transparent:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def fit_image(image: PIL.Image.Image, num_channels: int, size: int) -> PIL.Image.Image:
    """Prepare an image for a model: `convert_image`, centre crop to a square, bicubic resize.

    Raises:
        ValueError: If it cannot be converted.
    """
    image = convert_image(image, num_channels)
    width, height = image.size
    if width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), PIL.Image.Resampling.BICUBIC)


def is_gray(mode: str) -> bool:
    """Whether an image of this Pillow mode is gray, whatever its bits and its transparency."""
    return mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;")
