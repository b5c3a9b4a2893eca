"""The folder that `hf_ebm.scoring.run` fills: Parquet shards that are whole or not there, so that a killed run goes on.

    manifest.json            the protocol, written before the first row; a run with another one is refused
    scores/000000.parquet    id, energy, score, p_value, is_ood of rows 0..shard_size-1, and so on
    unreadable/000000.jsonl  rows of that shard without a score, and why; only where there are some
    unreadable.jsonl         all of them; it and the next are written when every row is accounted for
    summary.json             the counts: while it is not there, the folder is not complete

Which rows a shard holds is decided by their numbers, not by how many processes there are. A shard is written under a
temporary name, brought to the disk and renamed, its list of unreadable rows before it: a shard that is there is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ebm.scoring.rows import Span, Unreadable
from hf_ebm.whole_files import naming

MANIFEST, SUMMARY, UNREADABLE = "manifest.json", "summary.json", "unreadable.jsonl"
TEMPORARY, LOCK = ".tmp", ".lock"
# of a protocol, what may differ when a run goes on: names, which the fingerprints tell better, and the batch size, on
# which scores depend by rounding alone
FREE = ("model", "dataset", "batch_size")


@dataclass(frozen=True)
class ShardFolder:
    """The folder of a run.

    Attributes:
        folder: Where it is.
        num_rows: Of the data set.
        shard_size: Rows of a shard; the last one may have fewer.
    """

    folder: Path
    num_rows: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """How many shards a complete folder has."""
        return -(-self.num_rows // self.shard_size)

    def span(self, shard: int) -> Span:
        """The rows start..stop-1 of a shard."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_rows)

    def size(self, shard: int) -> int:
        """How many rows of the data set a shard stands for."""
        start, stop = self.span(shard)
        return stop - start

    def path(self, shard: int) -> Path:
        """The Parquet file of a shard."""
        return self.folder / "scores" / f"{shard:06d}.parquet"

    def report(self, shard: int) -> Path:
        """The list of a shard's unreadable rows."""
        return self.folder / "unreadable" / f"{shard:06d}.jsonl"

    def is_written(self, shard: int) -> bool:
        """Whether the shard is there, which means that it is whole."""
        return self.path(shard).is_file()

    def check_shard(self, shard: int) -> tuple[int, int]:
        """Numbers of scored and of unreadable rows of a shard that is there.

        Raises:
            ValueError: If they do not add up to the shard's rows, or the file is damaged: somebody changed it.
        """
        path = self.path(shard)
        try:
            scored = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to have its rows scored again.") from error
        unreadable = sum(1 for _ in self.read_report(shard))
        if scored + unreadable != self.size(shard):
            raise ValueError(
                f"{path} holds {scored} rows and {self.report(shard)} {unreadable}, together they must be "
                f"{self.size(shard)}; remove both to have them scored again."
            )
        return scored, unreadable

    def read_report(self, shard: int) -> Iterator[str]:
        """The lines of a shard's list of unreadable rows."""
        if self.report(shard).is_file():
            with self.report(shard).open(encoding="utf-8") as lines:
                yield from lines

    def check_protocol(self, protocol: Mapping[str, Any]) -> bool:
        """Whether the folder holds a run of this protocol, but for `FREE`, that goes on; False if it is new or empty.

        Raises:
            ValueError: If it holds a run of another protocol, or anything else.
        """
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            if self.folder.exists() and not self._is_blank():
                raise ValueError(
                    f"output {self.folder} is there and holds no {MANIFEST}, so it is no run to go on with; "
                    "choose another output folder."
                )
            return False
        saved, now = json.loads(manifest.read_text(encoding="utf-8")), json.loads(json.dumps(protocol))
        different = [
            f"{name}: {saved.get(name)!r} there, {now.get(name)!r} now"
            for name in dict.fromkeys([*saved, *now])
            if saved.get(name) != now.get(name) and name not in FREE
        ]
        if different:
            model = " (the model's weights, preparation or calibration changed since)"
            raise ValueError(
                f"output {self.folder} holds a run with another protocol ({'; '.join(different)})"
                f"{model if saved.get('model_fingerprint') != now.get('model_fingerprint') else ''}; go on with the "
                "same one, or choose another output folder."
            )
        return True

    def _is_blank(self) -> bool:
        return self.folder.is_dir() and all(entry.name in (TEMPORARY, LOCK) for entry in self.folder.iterdir())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other run works in this folder; the system ends that with the process, however it dies.

        Raises:
            ValueError: If one is at work: processes may outlive their launcher.
        """
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if os.name != "posix":
            yield
            return
        import fcntl

        with naming(self.folder):
            lock = (self.folder / LOCK).open("w")
        with lock as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of its workers
            except (BlockingIOError, PermissionError) as error:  # POSIX allows both for a lock that is held
                raise ValueError(f"output {self.folder} has a run at work in it; wait for it, or end it.") from error
            yield
            (self.folder / LOCK).unlink()

    def start(self, protocol: Mapping[str, Any]) -> None:
        """Make the folder, write the manifest, and remove what a killed run left half-written and a stale summary."""
        with naming(self.folder):
            (self.folder / SUMMARY).unlink(missing_ok=True)
            shutil.rmtree(self.folder / TEMPORARY, ignore_errors=True)
            (self.folder / TEMPORARY).mkdir(parents=True)
            self.write_text(self.folder / MANIFEST, json.dumps(protocol, indent=2) + "\n")
            for name in ("scores", "unreadable"):
                (self.folder / name).mkdir(exist_ok=True)

    def write_shard(self, shard: int, table: pa.Table, unreadable: Sequence[Unreadable]) -> None:
        """Write a shard's list of unreadable rows, then the shard."""
        if unreadable:
            self.write_text(self.report(shard), "".join(json.dumps(asdict(row)) + "\n" for row in unreadable))
        else:
            self.report(shard).unlink(missing_ok=True)  # left by a run that was killed before it wrote the shard
        self._write(self.path(shard), lambda path: pq.write_table(table, path))

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Check that every row is there, write ``unreadable.jsonl`` and at last ``summary.json``, and return it.

        Raises:
            ValueError: If a shard is missing or does not hold what it must.
        """
        scored = unreadable = odd = 0
        every = self.folder / TEMPORARY / "all"
        with naming(self.folder / UNREADABLE), every.open("w", encoding="utf-8") as file:
            for shard in range(self.num_shards):
                counts = self.check_shard(shard)
                scored, unreadable = scored + counts[0], unreadable + counts[1]
                odd += pc.sum(pq.read_table(self.path(shard), columns=["is_ood"])["is_ood"]).as_py() or 0
                file.writelines(self.read_report(shard))
        self._keep(every, self.folder / UNREADABLE)
        called = odd if facts["protocol"]["calibrated"] else None
        counts_of_all = {"rows": self.num_rows, "scored": scored, "unreadable": unreadable, "called_ood": called}
        summary = {**counts_of_all, "shards": self.num_shards, **facts}
        self.write_text(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        shutil.rmtree(self.folder / TEMPORARY)
        return summary

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file, whole or not at all."""
        self._write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        temporary = self.folder / TEMPORARY / f"{os.getpid()}-{path.name}"
        try:
            with naming(path):
                write(temporary)
                self._keep(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    @staticmethod
    def _keep(temporary: Path, path: Path) -> None:
        """Bring a file to the disk, then give it its name, then bring the name to the disk."""
        _sync(temporary)
        temporary.replace(path)
        if os.name == "posix":
            _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
