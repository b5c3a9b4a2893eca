"""The Hub's cache on this machine: what a pull brought into it, whether it came whole, and how it is taken back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

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
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in found}


def new_files(folder: Path, before: FileIds) -> list[Path]:
    """Files below `folder` that were not there `before`, or were fetched again."""
    return [path for path, numbers in file_ids(folder).items() if before.get(path) != numbers]


def remove_files(paths: Collection[Path], before: FileIds) -> None:
    """Take files of a commit out of the cache, and their content unless another commit brought it `before`."""
    kept = set(before.values())
    for path in paths:
        stat = path.stat()
        if (stat.st_ino, stat.st_mtime_ns, stat.st_size) not in kept:
            path.resolve().unlink()
        path.unlink(missing_ok=True)


def verify_checksums(repo_id: str, root: Path, paths: Collection[Path], token: str | bool | None) -> None:
    """Compare fetched files with the checksums that the repository lists; the client compares their sizes alone.

    Args:
        repo_id: The repository.
        root: Folder of the commit in the cache; its name is the commit.
        paths: Files in it.
        token: To read the list.

    Raises:
        OSError: It names the file.
    """
    if not paths:
        return
    local = {path.relative_to(root).as_posix(): path for path in paths}
    for entry in HfApi(token=token).get_paths_info(repo_id, list(local), revision=root.name):
        if not isinstance(entry, RepoFile):
            continue
        path = local[entry.path]
        expected = entry.blob_id if entry.lfs is None else entry.lfs.sha256
        checksum = hashlib.sha256()
        if entry.lfs is None:  # small files have git's name of their content
            checksum = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            while block := file.read(2**20):
                checksum.update(block)
        if (found := checksum.hexdigest()) != expected:
            raise OSError(f"{entry.path} came damaged (checksum {found}, not {expected}); it was removed, try again.")
