"""The Hub's cache on this machine: what a pull brought into it, whether it came whole, and how it is taken back.

The client compares sizes alone, and a process can be killed before anybody has looked further: a file is trusted once
it has been verified. Of that a mark is kept in the repository's folder of the cache, beside what huggingface_hub reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from hf_ebm.whole_files import whole_file

logger = logging.getLogger(__name__)
MARKS = ".hf_ebm_verified"  # holds a JSON of each commit: file -> its `FileIds` numbers when verified, its checksum
CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's name of a small file, the SHA-256 of a large one

FileIds = dict[Path, tuple[int, int, int]]  # file -> its inode, time and size: others once it was fetched again


def cache_folder(repo_id: str, cache_dir: str | Path | None) -> Path:
    """Where the cache keeps a repository: ``refs``, ``snapshots`` (by commit) and ``blobs``."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    return cache / f"models--{repo_id.replace('/', '--')}"


def ref_file(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Where the cache keeps the commit that a branch or tag pointed to when it was last fetched.

    Raises:
        ValueError: If the revision leads out of the cache.
    """
    revision = revision or constants.DEFAULT_REVISION
    if Path(revision).is_absolute() or ".." in Path(revision).parts:
        raise ValueError(f"revision must be the name of a branch, a tag or a commit, got {revision!r}.")
    return cache_folder(repo_id, cache_dir) / "refs" / revision


def restore_ref(ref: Path, before: bytes | None, commit: str | None) -> None:
    """Put `ref` back to what it was, if it holds the `commit` that was just written (None = any commit's name)."""
    if not ref.is_file():
        return
    found = ref.read_text(encoding="utf-8", errors="replace").strip()
    if found != commit and not (commit is None and re.fullmatch(r"[0-9a-f]{40}", found)):
        return
    if before is None:
        ref.unlink()
    else:
        ref.write_bytes(before)


def file_ids(folder: Path) -> FileIds:
    """All files below `folder`; a link has the numbers of what it leads to."""
    return {path: ids_of(path) for path in folder.rglob("*") if path.is_file()}


def ids_of(path: Path) -> tuple[int, int, int]:
    """The `FileIds` numbers of a file."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def new_files(folder: Path, before: FileIds) -> list[Path]:
    """Files below `folder` that were not there `before`, or were fetched again."""
    return [path for path, numbers in file_ids(folder).items() if before.get(path) != numbers]


def known_checksums(root: Path, paths: Collection[Path]) -> dict[str, str]:
    """Checksums of files of a commit that need no network, by name.

    Where the cache has links, a file's checksum is the name of its content; where it has none, as on a file system
    without them, a file that was verified before has it in its mark.
    """
    marks, known = read_marks(root), {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        checksum = Path(os.readlink(path)).name if path.is_symlink() else (marks.get(name) or [None])[-1]
        if isinstance(checksum, str) and CHECKSUM.fullmatch(checksum):
            known[name] = checksum
    return known


def listed_checksums(
    repo_id: str, root: Path, names: list[str], token: str | bool | None, offline: bool
) -> dict[str, str]:
    """Checksums of files of a commit from the repository's list, by name; the other arguments: `verify_checksums`.

    Raises:
        OSError: If the Hub cannot be asked, or must not; it says what to do.
    """
    advice = (
        f"{names[0]} cannot be verified: it was not before, and this cache has no links, whose names would be the "
        f"checksums. Pull once with the network and without local_files_only, or give the folder {root} itself if you "
        "trust what is in it"
    )
    if offline:
        raise OSError(f"{advice}.")
    try:
        entries = HfApi(token=token).get_paths_info(repo_id, names, revision=root.name)
    except Exception as error:  # the client's errors have no base class of their own
        raise OSError(f"{advice}. The Hub could not be asked: {error}") from error
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {entry.path: entry.blob_id if entry.lfs is None else entry.lfs.sha256 for entry in files}


def remove_damaged(root: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """Take files of a commit out of the cache that have not the checksums that are `expected`, by name.

    One that somebody else replaces meanwhile is left: it is not what was read.

    Returns:
        The checksums that the damaged files had.
    """
    damaged, numbers = {}, {}
    for name, checksum in expected.items():
        numbers[name] = ids_of(root / name)
        if (found := file_checksum(root / name, len(checksum) == 64)) != checksum:
            damaged[name] = found
    for name in damaged:  # after all were read: two files may share their content
        if (root / name).is_file() and ids_of(root / name) == numbers[name]:
            remove_content(root, root / name)
    return damaged


def verify_checksums(
    repo_id: str, root: Path, paths: Collection[Path], token: str | bool | None, offline: bool = False
) -> None:
    """Compare files of a commit with their checksums, unless they were verified before and are the same since.

    Args:
        repo_id: The repository.
        root: Folder of the commit in the cache; its name is the commit.
        paths: Files in it.
        token: To read the repository's list, for files without `known_checksums`.
        offline: Whether the Hub must not be asked for it.

    Raises:
        OSError: It names the first file that is damaged, or that cannot be verified. All damaged ones were removed.
    """
    marks, now = read_marks(root), file_ids(root)
    local = {path.relative_to(root).as_posix(): path for path in paths}
    pending = {name: path for name, path in local.items() if (marks.get(name) or [])[:3] != list(now[path])}
    if not pending:
        return
    expected = known_checksums(root, pending.values())
    if unknown := [name for name in pending if name not in expected]:
        expected |= listed_checksums(repo_id, root, unknown, token, offline)
    damaged = remove_damaged(root, expected)
    for name, found in damaged.items():
        raise OSError(f"{name} came damaged (checksum {found}, not {expected[name]}); it was removed, try again.")
    write_marks(root, marks | {name: [*now[pending[name]], checksum] for name, checksum in expected.items()})


def file_checksum(path: Path, large: bool) -> str:
    """The SHA-256 of a large file; of a small one git's name of its content."""
    checksum = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum.update(block)
    return checksum.hexdigest()


def remove_content(root: Path, path: Path) -> None:
    """Take a file of a commit out of the cache, its content, and all links that lead to it."""
    content = path.resolve()
    links = [other for other in root.parents[1].rglob("*") if other.is_symlink() and other.resolve() == content]
    for found in {content, path, *links}:
        found.unlink(missing_ok=True)


def marks_file(root: Path) -> Path:
    """Where the marks of a commit are kept; `root` is its folder in the cache."""
    return root.parents[1] / MARKS / f"{root.name}.json"


def read_marks(root: Path) -> dict[str, list[Any]]:
    """The marks of a commit; none where they are not there or damaged: then files are verified again."""
    try:
        marks = json.loads(marks_file(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def write_marks(root: Path, marks: dict[str, list[Any]]) -> None:
    """Keep the marks of a commit; in a cache that cannot be written files are verified every time."""
    try:
        with whole_file(marks_file(root)) as path:
            path.write_text(json.dumps(marks), encoding="utf-8")
    except OSError as error:
        logger.info("%s cannot be written (%s): the next pull verifies the files again.", marks_file(root), error)
