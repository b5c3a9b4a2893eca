"""Files: atomic writes, checks that an output can be written, strict JSON, content hashes, and ``~`` in paths.

JSON has no ``Infinity`` and ``NaN``, which Python would write: a number without bound (the PSNR of a perfect
reconstruction) is null, see `finite_or_none`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor


def to_json(record: Any, indent: int | None = None) -> str:
    """The text of a record; a `ValueError` if a number in it is not finite."""
    try:
        return json.dumps(record, indent=indent, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"the result holds a number that is not finite ({error}), so nothing was written.") from error


def finite_or_none(value: float | None) -> float | None:
    """`value`, or None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


class WriteError(OSError):
    """A file or folder that cannot be written: its path and the system's reason, in one line."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        if error.filename is not None and str(error.filename) != str(path):
            reason = f"{reason} ({error.filename})"
        super().__init__(error.errno, f"{path} cannot be written: {reason}")

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place if the block ends well, else it is removed.

    Raises:
        WriteError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")  # writers go by the suffix
    ours = {str(place) for place in (temporary, path, *path.parents)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, WriteError) or not (error.filename is None or str(error.filename) in ours):
            raise  # of another file, which the block reads
        raise WriteError(path, OSError(error.errno, error.strerror or str(error))) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder of the same name to write to; it becomes `path` if the block ends well, else it is removed.

    Raises:
        WriteError: If it cannot be written, or `path` holds something by then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as parent:
            temporary = Path(parent, path.name)
            temporary.mkdir()
            yield temporary
            temporary.rename(path)
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(path, error) from error


def check_writable(argument: str, path: Path, is_folder: bool = False) -> None:
    """Check that an output, named by the option `argument`, can be written; nothing is made or changed.

    Raises:
        ValueError: If the path is a folder where a file is needed or the reverse, or a link to nothing is in the way.
        WriteError: If the system refuses.
    """
    kind, other = ("folder", "file") if is_folder else ("file", "folder")
    if os.path.exists(path) and os.path.isdir(path) != is_folder:
        raise ValueError(f"{argument} must be a {kind}, and {path} is a {other}; choose another.")
    folder = path if is_folder else path.parent
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not os.path.isdir(place):
        what = "a file" if os.path.exists(place) else "a link to nothing"
        raise ValueError(f"{argument} {path} cannot be written: {place} is {what}; remove it, or choose another.")
    try:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # a name that is too long
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        where = None if place == path else str(place)
        raise WriteError(f"{argument} {path}", OSError(error.errno, error.strerror, where)) from error


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and values, whatever their order and device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_image_bytes(images: Iterable[Any]) -> str:
    """SHA-256 of images in their order, by their files' bytes: nothing is decoded, names and dates do not count.

    Args:
        images: Undecoded `datasets.Image` (``{"bytes", "path"}``), paths, bytes of files, or PIL images, which are
            hashed by mode, size and pixels. A file that cannot be read counts by its name.
    """
    digest = hashlib.sha256()
    for image in images:
        content = image
        if isinstance(image, dict):
            content = image["path"] if image.get("bytes") is None else image["bytes"]
        if isinstance(content, (str, os.PathLike)):
            try:
                content = Path(content).read_bytes()
            except OSError:
                content = Path(content).name.encode()
        elif not isinstance(content, bytes):
            content = f"{content.mode} {content.size}".encode() + content.tobytes()
        digest.update(hashlib.sha256(content).digest())  # of each: a byte more here and less there is another set
    return digest.hexdigest()


PathT = TypeVar("PathT", bound=str | Path)


def expand_home(path: PathT) -> PathT:
    """`path` with a leading ``~`` or ``~user`` replaced by that user's home folder; any other path unchanged."""
    text = str(path)
    expanded = os.path.expanduser(text)
    if expanded == text and text.startswith("~") and not os.path.lexists(text):
        user = text.split("/")[0]
        raise ValueError(f"{text!r} starts with {user}, and there is no home folder of that name; write out the path.")
    return cast(PathT, expanded if isinstance(path, str) else Path(expanded))


def path_text(text: str) -> str:
    """A path, a URL or a Hub id that an option names, with a leading ``~`` expanded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path_option(text: str) -> Path:
    """A path that an option names, with a leading ``~`` expanded."""
    return Path(path_text(text))
