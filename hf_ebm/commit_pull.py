"""One pull: files of one commit of a Hub repository into the cache, verified, or nothing of it trusted.

Other processes may use the same cache at the same time. So a pull that fails takes back what is damaged, and the
branch's or tag's place, but no whole file: whoever brought it, another process may be about to read it, and the next
pull need not fetch it again. What cannot be told without the network stays too: every pull verifies all that it uses.
Who fetched the same commit at the same time may need the network once more to find it by the branch's name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from hf_ebm.hub_cache import (
    cache_folder,
    file_ids,
    known_checksums,
    new_files,
    ref_file,
    remove_damaged,
    restore_ref,
    verify_checksums,
)
from hf_ebm.missing_models import check_hub_id, not_to_be_had, warn_of_near_folder

logger = logging.getLogger(__name__)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
LOST = {  # file beside a pipeline -> what there is without it
    "calibration.json": "no p-values and verdicts",
    "settings.yaml": "no padding as in training",
}


def check_subfolder(subfolder: str | None) -> str:
    """A subfolder of a repository as a prefix of its files' names: empty, or with a "/" at the end.

    Raises:
        ValueError: If it leads out of the repository.
    """
    if subfolder is not None and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise ValueError(f"subfolder must lie inside the repository, got {subfolder!r}.")
    return f"{subfolder.strip('/')}/" if subfolder else ""


@dataclass
class CommitPull:
    """The files of one commit that are being fetched.

    Attributes:
        repo_id: Of the repository.
        root: Folder of the commit in the cache.
        options: `HUB_OPTIONS`; the revision is the commit, though somebody pushes meanwhile.
        patterns: What was asked for.
    """

    repo_id: str
    root: Path
    options: dict[str, Any]
    patterns: list[str]

    def fetch(self, patterns: Collection[str], beside: Collection[str] = ()) -> None:
        """Fetch the files that the patterns name, where they are there.

        Args:
            patterns: Of files that are needed.
            beside: Of files that a pipeline can be without: offline those that the cache lacks are left out, as an
                earlier pull of another kind need not have brought them.
        """
        self.patterns += [*patterns, *beside]
        if not patterns and not beside:
            return
        try:
            snapshot_download(self.repo_id, allow_patterns=[*patterns, *beside], **self.options)
        except LocalEntryNotFoundError:
            if not self.offline or not beside:
                raise
            self.fetch(patterns)
            lacking = [Path(name).name for name in beside if not (self.root / name).is_file()]
            logger.warning(
                "offline: the model %s is in the cache, but not all that may lie beside it; %s. A run with the network "
                "brings what there is.",
                self.repo_id,
                ", ".join(f"without {name} {LOST.get(name, 'less is told of the model')}" for name in lacking),
            )

    @property
    def offline(self) -> bool:
        """Whether the Hub must not be asked: the caller's ``local_files_only``, or ``HF_HUB_OFFLINE``."""
        return bool(self.options.get("local_files_only")) or is_offline_mode()

    def verify(self) -> None:
        """Compare all that was asked for with its checksums, whoever brought it into the cache; raises an OSError."""
        here = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        paths = [self.root / name for name in filter_repo_objects(here, allow_patterns=self.patterns)]
        verify_checksums(self.repo_id, self.root, paths, self.options.get("token"), self.offline)


@contextmanager
def pull_commit(repo_id: str, first_file: str, options: dict[str, Any]) -> Iterator[CommitPull]:
    """Inside, a pull that has fetched `first_file`; whatever goes wrong takes back what came damaged.

    Args:
        repo_id: Such as ``"user/name"``.
        first_file: A file that the repository must have.
        options: `HUB_OPTIONS` of huggingface_hub.

    Raises:
        OSError: If the repository, the revision, the file or the network is not there, or a file came damaged; for a
            name that can be no Hub id without asking the Hub.
        ValueError: If the revision cannot be one, or the body raised it.
    """
    check_hub_id(repo_id)
    warn_of_near_folder(repo_id)
    ref = ref_file(repo_id, options.get("revision"), options.get("cache_dir"))
    ref_before = ref.read_bytes() if ref.is_file() else None
    files_before = file_ids(cache_folder(repo_id, options.get("cache_dir")))
    root: Path | None = None
    try:
        root = Path(hf_hub_download(repo_id, first_file, **options)).parents[len(Path(first_file).parts) - 1]
        yield CommitPull(repo_id, root, {**options, "revision": root.name}, [first_file])
    except BaseException as error:
        if root is not None:
            remove_damaged(root, known_checksums(root, new_files(root, files_before)))
        restore_ref(ref, ref_before, None if root is None else root.name)
        if isinstance(error, Exception) and not isinstance(error, ValueError):  # the client's have no base of their own
            raise not_to_be_had(repo_id, error) from error
        raise  # what is there cannot be used
