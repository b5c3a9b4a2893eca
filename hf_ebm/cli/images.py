"""Image files that commands read and write: checked before the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

URL_SCHEMES = ("http://", "https://")


def check_picture(path: Path) -> None:
    """Raise a `ValueError` if `path` is no name of a picture that can be written."""
    import PIL.Image

    if PIL.Image.registered_extensions().get(path.suffix.lower()) not in PIL.Image.SAVE:  # some are only read
        raise ValueError(f"--output must end in .png or another picture format, got {path.name!r}.")


def check_images(images: Sequence[str]) -> None:
    """Raise a `ValueError` for the first image file that is not there: at once, not after seconds of imports.

    URLs are asked for later.
    """
    for image in images:
        if image.startswith(URL_SCHEMES):
            continue
        if Path(image).is_dir():
            raise ValueError(
                f"image {image} is a folder; name its files, or score them all into a table: hf-ebm score --dataset "
                f"{image} --output FOLDER."
            )
        if not Path(image).is_file():
            raise ValueError(f"image {image} cannot be read: there is no such file.")


def open_named_picture(name: str) -> Any:
    """The PIL image in a file or at a URL; one that cannot be read is a `ValueError` with its name."""
    from hf_ebm.data.image_files import open_picture

    try:
        return open_picture(name)
    except ValueError as error:
        raise ValueError(f"image {name} {error}") from error
