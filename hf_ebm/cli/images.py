"""Checks of the image files that commands read and write, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

URL_SCHEMES = ("http://", "https://")


def check_image_format(path: Path) -> None:
    """Raise a `ValueError` if `path` has no suffix of an image format that can be written."""
    import PIL.Image

    if PIL.Image.registered_extensions().get(path.suffix.lower()) not in PIL.Image.SAVE:  # some formats are read-only
        raise ValueError(f"--output must end in .png or another image format, got {path.name!r}.")


def check_images(images: Sequence[str]) -> None:
    """Raise a `ValueError` for the first image file that does not exist, before any heavy import.

    URLs are requested later.
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


def png_names(images: Sequence[str], folder: Path) -> list[str]:
    """Names of the PNG files of images in `folder`, one per image, after the images' own.

    Raises:
        ValueError: If two would be the same.
    """
    names = [f"{Path(image).stem}.png" for image in images]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"images of the same name would overwrite each other in {folder}: {repeated}.")
    return names


def open_named(name: str) -> Any:
    """Open the PIL image in a file or at a URL; an unreadable one raises a `ValueError` with its name."""
    from hf_ebm.data.image_files import open_image

    try:
        return open_image(name)
    except ValueError as error:
        raise ValueError(f"image {name} {error}") from error
