"""Files that are there whole or not at all, and errors that name the file that cannot be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile


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
def naming(path: Path) -> Iterator[None]:
    """Raise a `WriteError` that names `path` for every other `OSError` of the block, whose work is to write it."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place if the block ends well, else it is removed.

    Args:
        path: The file to make or to replace; its folder is made if it is missing.

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


def check_writable(argument: str, path: Path, is_folder: bool = False) -> None:
    """Check that an output can be written before the work for it starts; nothing is made or changed.

    Args:
        argument: The option or setting that names it, for the message.
        path: The file, or the folder, that is to be written; missing parents are made later.
        is_folder: Which of both.

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
