"""Score a whole data set in Parquet shards, over several processes, resuming where a killed run stopped.

The settings of a scoring run, and their options on the command line; nothing heavy is imported.

The folder that `hf_ebm.evaluation.bulk_scoring` fills: Parquet shards that are whole or not there, so that a killed run goes on.

    manifest.json            the protocol, written before the first row; a run with another one is refused
    scores/000000.parquet    id, energy, score, p_value, is_ood of rows 0..shard_size-1, and so on
    unreadable/000000.jsonl  rows of that shard without a score, and why; only where there are some
    unreadable.jsonl         all of them; it and the next are written when every row is accounted for
    summary.json             the counts: while it is not there, the folder is not complete

Which rows a shard holds is decided by their numbers, not by how many processes there are. A shard is written under a
temporary name, brought to the disk and renamed, its list of unreadable rows before it: a shard that is there is whole.

Some shards of a data set, scored and written one after the other: what each process of `hf_ebm.evaluation.bulk_scoring` does.

Score a whole data set: over several processes, into Parquet shards, and on from where a killed run stopped.

    accelerate launch -m hf_ebm.evaluation.bulk_scoring --model outputs/ddaebm-digits --dataset digits --output outputs/scores
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m hf_ebm.evaluation.bulk_scoring ...

The same command again goes on with what is missing. The folder is described in `hf_ebm.evaluation.bulk_scoring`; a batch never
reaches over the end of a shard, so the rows are the same however many processes there are and however often they were
killed. In memory are one shard's rows and a few batches.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

import hf_ebm
from hf_ebm.data.loading import hash_images, load_digits, load_hub_dataset
from hf_ebm.data.padding import add_padding_option, find_padding
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput, EnergyScoringPipeline
from hf_ebm.scoring.calibration import how_to_calibrate
from hf_ebm.scoring.inputs import HubRows, ListRows, Rows, Span, Unreadable, prepare_rows, prepared_batches, spans_of
from hf_ebm.scoring.scores import SCORES
from hf_ebm.scoring.statistics import measure_batches
from hf_ebm.utils.files import check_writable, expand_home, hash_tensors, naming, path_option, path_text
from hf_ebm.utils.torch_utils import find_device
from hf_ebm.utils.validation import check_count, counted

ON_ERROR = ("skip", "stop")
SCORE_NAMES = ("energy", "gradient_norm", "multiscale", "typicality", "complexity", "reconstruction", "combined")


def default_num_workers() -> int:
    """Two processes that open images, or one where this process may use one core alone."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return min(2, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)


@dataclass(frozen=True)
class ScoringSettings:
    """What `hf_ebm.evaluation.bulk_scoring` is asked to do.

    Attributes:
        model: A run folder or a Hub id.
        dataset: ``"digits"``, a Hub id, or a folder of parquet files or images.
        output: The folder to fill, see `hf_ebm.evaluation.bulk_scoring`; one that is not complete is gone on with.
        split: Of the data set.
        config_name: Of a Hub data set.
        revision: Of a Hub data set.
        image_column: Column of the images; None = the only one.
        id_column: Column of the ids; None = the paths of an image folder, else the row numbers.
        score: A name of `hf_ebm.scoring.scores.SCORES`.
        batch_size: Images per forward pass and process.
        shard_size: Rows per Parquet file; the most that a kill loses, and what is kept in memory.
        num_workers: Processes that open images, for each process that scores.
        resize: Whether images are converted, cropped square and resized; else one that does not fit has no score.
        padding: Black pixels on each side of images, as in training.
        on_error: ``"skip"`` lists unreadable images and goes on; ``"stop"`` ends the run at the first.
        device: Where the model runs, as torch names it; None = what accelerate finds.
        require_calibration: Whether a model without a calibration is refused, so that ``is_ood`` is never null.
    """

    model: str
    dataset: str
    output: Path
    split: str = "train"
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    score: str = "energy"
    batch_size: int = 256
    shard_size: int = 10_000
    num_workers: int = field(default_factory=default_num_workers)
    resize: bool = False
    padding: int = 0
    on_error: str = "skip"
    device: str | None = None
    require_calibration: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("num_workers", 0), ("padding", 0)):
            check_count(name, getattr(self, name), least)
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {ON_ERROR}, got {self.on_error!r}.")


def add_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options of a run; `required`: whether a data set must be given."""
    parser.add_argument("--model", required=True, type=path_text, help="a run folder or a Hub id")
    parser.add_argument(
        "--dataset",
        required=required,
        type=path_text,
        help="digits, or a Hub id or a folder of parquet files or images, name[:config][@split]",
    )
    parser.add_argument(
        "--output", required=required, type=path_option, help="folder for the Parquet shards of a data set"
    )
    parser.add_argument(
        "--split",
        help="of the data set, where --dataset names none (default: train, the only split of a folder of images unless "
        "all its folders have names of splits; evaluate and eval-ood: test)",
    )
    parser.add_argument("--config-name", help="of a Hub data set; default: its only one")
    parser.add_argument("--revision", help="of a Hub data set; default: its newest")
    parser.add_argument("--image-column", help="of the data set; default: its only image column")
    parser.add_argument("--id-column", help="of the data set; default: the paths of an image folder, else row numbers")
    parser.add_argument(
        "--score",
        choices=SCORE_NAMES,
        default="energy",
        help="larger = more out of distribution (default: %(default)s); multiscale needs a model with noise levels, "
        "reconstruction and combined one with its generator, all but energy, gradient_norm and reconstruction a "
        "calibrated one",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows per Parquet file (default: %(default)s)")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=default_num_workers(),
        help="processes that open images (default: %(default)s, which is 2 or this process's cores if they are fewer)",
    )
    parser.add_argument("--resize", action="store_true", help="convert, crop square and resize to the model's size")
    add_padding_option(parser)
    parser.add_argument("--on-error", choices=ON_ERROR, default="skip", help="unreadable images (default: %(default)s)")
    parser.add_argument(
        "--device",
        help="where the model runs: cpu, cuda, cuda:1, mps, ...; default: cpu for files, for a data set what "
        "accelerate finds",
    )
    parser.add_argument("--require-calibration", action="store_true", help="refuse a model that was not calibrated")


def settings_of(options: argparse.Namespace) -> ScoringSettings:
    """The settings that the options say; the padding is looked up where they say none.

    The data set's name, ``name[:config][@split]``, may hold its configuration and split.

    Raises:
        ValueError: If one is out of its range, or the name and an option differ.
    """
    from hf_ebm.data.loading import DatasetName

    values = {field.name: getattr(options, field.name) for field in fields(ScoringSettings)}
    named = DatasetName.parse(options.dataset)
    if named.config and options.config_name not in (None, named.config):
        raise ValueError(f"--config-name {options.config_name} and --dataset {options.dataset} differ; give one.")
    values |= {"dataset": named.name, "config_name": named.config or options.config_name}
    values |= {"split": named.choose_split(options.split, ScoringSettings.split)}
    return ScoringSettings(**{**values, "padding": find_padding(options.model, options.padding)})


def refuse_dataset_options(options: argparse.Namespace) -> None:
    """Raise a `ValueError` for the first option that single files have no use for."""
    for name in ("output", "split", "config_name", "revision", "image_column", "id_column"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for a data set (--dataset), and image files were given; leave it out. "
                "What is printed of files goes elsewhere by > FILE, as JSON with --json."
            )


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


COLUMNS = {  # of the shards: the output's attribute, the type
    "energy": ("energies", pa.float32()),
    "score": ("scores", pa.float64()),
    "p_value": ("p_values", pa.float64()),
    "is_ood": ("is_ood", pa.bool_()),
}


@dataclass(frozen=True)
class ShardSpans:
    """The batches of some shards in their order, none of which reaches over the end of its shard."""

    folder: ShardFolder
    shards: Sequence[int]
    batch_size: int

    def __iter__(self) -> Iterator[Span]:
        for shard in self.shards:
            yield from spans_of(*self.folder.span(shard), self.batch_size)


class ScoredRows:
    """The scored rows of one shard, in places that are made at once.

    Something small kept from each batch would lie between the networks' large tensors, hold the heap in pieces, and
    make the memory of the process grow with the rows.
    """

    def __init__(self, size: int, schema: pa.Schema) -> None:
        self.schema, self.number = schema, 0
        self.ids: list[Any] = [None] * size
        self.values = {name: np.zeros(size, schema.field(name).type.to_pandas_dtype()) for name in COLUMNS}
        self.absent: set[str] = set()

    def add(self, ids: list[Any], output: EnergyScoringOutput) -> None:
        """The rows of a batch; p_value and is_ood are absent without a calibration."""
        places = slice(self.number, self.number + len(ids))
        self.ids[places] = ids
        for name, (attribute, _) in COLUMNS.items():
            values = getattr(output, attribute)
            if values is None:
                self.absent.add(name)
            else:
                self.values[name][places] = values.numpy()
        self.number += len(ids)

    def table(self) -> pa.Table:
        """All rows; what is absent is null."""
        columns = {"id": pa.array(self.ids[: self.number], self.schema.field("id").type)}
        for name, values in self.values.items():
            kind = self.schema.field(name).type
            absent = name in self.absent
            columns[name] = pa.nulls(self.number, kind) if absent else pa.array(values[: self.number], kind)
        return pa.table(columns, self.schema)


def score_shards(
    pipeline: EnergyScoringPipeline, rows: Rows, folder: ShardFolder, shards: Sequence[int], settings: ScoringSettings
) -> Iterator[int]:
    """Score and write these shards; yields the number of rows of each batch that is done.

    Raises:
        ValueError: If an image is unreadable and ``on_error`` is "stop".
    """
    id_type = pa.string() if isinstance(rows.read(0, 1)[0][0], str) else pa.int64()
    schema = pa.schema([("id", id_type), *((name, kind) for name, (_, kind) in COLUMNS.items())])
    measure = pipeline.make_measure(pipeline.needed(settings.score))
    spans = ShardSpans(folder, shards, settings.batch_size)
    preparation = (pipeline.sample_shape, settings.resize, settings.num_workers, settings.padding)
    prepared = prepared_batches(rows, spans, *preparation)
    batches = measure_batches(prepared, lambda batch: measure(batch.x) if batch.ids else {})
    for shard in shards:
        scored = ScoredRows(folder.size(shard), schema)
        unreadable: list[Unreadable] = []
        start, stop = folder.span(shard)
        for batch, measures in batches:
            if batch.unreadable and settings.on_error == "stop":
                first = batch.unreadable[0]
                raise ValueError(
                    f"image {first.name} {first.reason}; on_error=skip (--on-error skip) lists such images and goes on."
                )
            unreadable += batch.unreadable
            if batch.ids:
                scored.add(batch.ids, pipeline.judge(measures, settings.score, batch.ids))
            yield batch.stop - start
            start = batch.stop
            if batch.stop == stop:
                break
        folder.write_shard(shard, scored.table(), unreadable)


def rows_written(folder: ShardFolder, others: Sequence[deque[int]]) -> int:
    """Rows of the shards that other processes have written since the last call; each writes its own in order."""
    rows = 0
    for shards in others:
        while shards and folder.is_written(shards[0]):
            rows += folder.size(shards.popleft())
    return rows


NUM_PROBED = 100  # rows of which one at least must have a score, or nothing is begun
NUM_SHOWN = 5  # unreadable images named at the end
POLL_SECONDS = 0.2
LONGEST_WAIT = timedelta(days=1)  # of processes for the first, which may be downloading the data set


def load_rows(settings: ScoringSettings) -> tuple[Rows, str]:
    """The rows of the settings' data set, and its fingerprint, which changes with the data.

    Raises:
        ValueError: If the data set or a column is missing, or the data set is empty.
    """
    if settings.dataset == "digits":
        return ListRows(load_digits(settings.split)[0]), f"digits-{settings.split}"
    dataset = load_hub_dataset(settings.dataset, settings.split, settings.config_name, settings.revision)
    folder = expand_home(settings.dataset)
    rows = HubRows(dataset, settings.image_column, settings.id_column, folder if Path(folder).is_dir() else None)
    # the fingerprint of a folder of image files is of names and sizes
    content = f":{hash_images(rows.dataset, rows.column)}" if rows.files else ""
    return rows, f"{rows.fingerprint}{content}"


def model_fingerprint(pipeline: EnergyScoringPipeline) -> str:
    """A hash of everything that decides a score: weights, buffers, all settings and the calibration."""
    digest = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            digest.update(f"{name} {hash_tensors(component.state_dict())}".encode())
        if component is not None:  # what begins with "_" says where it is from and who wrote it
            config = component.config.to_dict() if isinstance(component.config, PreTrainedConfig) else component.config
            decisive = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(f"{name} {json.dumps(decisive, default=str, sort_keys=True)}".encode())
    if pipeline.calibration is not None:
        digest.update(json.dumps(asdict(pipeline.calibration), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def make_protocol(
    pipeline: EnergyScoringPipeline, rows: Rows, fingerprint: str, settings: ScoringSettings
) -> dict[str, Any]:
    """What decides the rows of the result; a run goes on only with the same."""
    names = ("split", "image_column", "id_column", "score", "batch_size", "shard_size", "resize", "padding")
    calibration = pipeline.calibration
    return {
        "model": settings.model,
        "model_fingerprint": model_fingerprint(pipeline),
        "calibrated": calibration is not None,
        "target_fpr": None if calibration is None else calibration.target_fpr,
        "dataset": settings.dataset,
        "dataset_fingerprint": fingerprint,
        "num_rows": len(rows),
        **{name: getattr(settings, name) for name in names},
        "dtype": str(pipeline.energy_model.dtype),
    }


def check_some_fit(rows: Rows, sample_shape: tuple[int, ...], resize: bool, padding: int) -> None:
    """Raise a `ValueError` if none of the first rows can be scored: no run of hours for an empty result."""
    reason = ""
    for span in spans_of(0, min(len(rows), NUM_PROBED), 1):
        batch = prepare_rows(rows.read(*span), span[0], sample_shape, resize, padding)
        if not batch.unreadable:
            return
        reason = reason or f"image {batch.unreadable[0].name} {batch.unreadable[0].reason}"
    raise ValueError(
        f"none of the first {min(len(rows), NUM_PROBED)} images can be scored; the first: {reason}. Other sizes and "
        "modes than the model's need --resize."
    )


def score_rows(
    pipeline: EnergyScoringPipeline, rows: Rows, fingerprint: str, settings: ScoringSettings, accelerator: Accelerator
) -> dict[str, Any]:
    """Fill the output folder, or what is missing in it, and return the summary; called by all processes.

    Args:
        pipeline: Loaded, with its calibration if it has one.
        rows: Of the data set.
        fingerprint: Of the data set.
        settings: Of the run.
        accelerator: Tells the processes apart.

    Raises:
        ValueError: If the score cannot be computed, the folder holds something else, no image fits, or one is
            unreadable and ``on_error`` is "stop". Shards that were written stay, and the next run goes on.
    """
    pipeline.check_score(settings.score)
    device = accelerator.device if settings.device is None else find_device(settings.device)
    if settings.device is None and device.type == "cpu":
        device = torch.device("cpu")  # not "cpu:0", as several processes have it: weights copied there round otherwise
    if settings.require_calibration and pipeline.calibration is None:
        raise ValueError(
            f"model {settings.model} was not calibrated, so nothing is called odd: {how_to_calibrate(settings.model)}."
        )
    folder = ShardFolder(settings.output, len(rows), settings.shard_size)
    protocol = make_protocol(pipeline, rows, fingerprint, settings)
    if not folder.check_protocol(protocol):
        check_some_fit(rows, pipeline.sample_shape, settings.resize, settings.padding)
    accelerator.wait_for_everyone()  # all have looked before one writes
    is_main = accelerator.is_main_process
    with folder.alone() if is_main else contextlib.nullcontext():
        missing = missing_shards(folder) if is_main else []
        if is_main and not missing and (folder.folder / SUMMARY).is_file():
            print(f"{folder.folder} is complete; nothing was done.")
            broadcast_object_list([missing])
            return json.loads((folder.folder / SUMMARY).read_text(encoding="utf-8"))
        if is_main:
            folder.start(protocol)
        missing = broadcast_object_list([missing])[0]  # what the first process saw, so that no shard is left out
        started = time.perf_counter()
        score_missing(pipeline.to(device), rows, folder, missing, settings, accelerator)
        if not is_main:
            return {}
        facts = {
            "rows_of_this_run": sum(folder.size(shard) for shard in missing),
            "seconds_of_this_run": round(time.perf_counter() - started, 3),
            "num_processes": accelerator.num_processes,
            "device": device.type,
            "hf_ebm": hf_ebm.__version__,
            "torch": torch.__version__,
            "protocol": protocol,
        }
        return folder.finish(facts)


def missing_shards(folder: ShardFolder) -> list[int]:
    """The shards that are not there, by number.

    Raises:
        ValueError: If one that is there does not hold what it must.
    """
    missing = []
    for shard in range(folder.num_shards):
        if folder.is_written(shard):
            folder.check_shard(shard)
        else:
            missing.append(shard)
    return missing


def score_missing(
    pipeline: EnergyScoringPipeline,
    rows: Rows,
    folder: ShardFolder,
    missing: list[int],
    settings: ScoringSettings,
    accelerator: Accelerator,
) -> None:
    """Score this process's part of the missing shards; the first shows the progress of all, and waits for the others.

    Raises:
        ValueError: If an image is unreadable and ``on_error`` is "stop".
    """
    parts = [missing[process :: accelerator.num_processes] for process in range(accelerator.num_processes)]
    mine = parts.pop(accelerator.process_index)
    others = [deque(part) for part in parts]
    done = len(rows) - sum(folder.size(shard) for shard in missing)
    show = accelerator.is_main_process
    with tqdm(total=len(rows), initial=done, disable=not show, unit="row", desc="score") as progress:
        for scored in score_shards(pipeline, rows, folder, mine, settings):
            progress.update(scored + rows_written(folder, others))
        while show and any(others):
            time.sleep(POLL_SECONDS)
            progress.update(rows_written(folder, others))


def describe(summary: dict[str, Any], output: Path) -> str:
    """The counts of a finished run in words, and the first unreadable images by name."""
    where = f"in {counted(summary['shards'], 'file')} of {output / 'scores'}"
    lines = [f"{summary['scored']:,} of {summary['rows']:,} rows have a score, {where}"]
    if summary["protocol"]["calibrated"]:
        lines.append(f"called out of distribution: {summary['called_ood']:,}")
    else:
        hint = how_to_calibrate(summary["protocol"]["model"])
        lines.append(f"the model was not calibrated, so p_value and is_ood are null: {hint}")
    if summary["unreadable"]:
        with (output / UNREADABLE).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, NUM_SHOWN)]
        number = summary["unreadable"]
        shown = "" if number == len(rows) else f"; the first {len(rows)}"
        lines.append(f"{number:,} could not be scored, all listed in {output / UNREADABLE}{shown}:")
        lines += [f"  image {row['name']} {row['reason']}" for row in rows]
        if not summary["protocol"]["resize"] and any(row["reason"].startswith("does not fit") for row in rows):
            lines.append("  (--resize converts and resizes pictures that do not fit)")
    return "\n".join(lines)


def run(settings: ScoringSettings) -> dict[str, Any]:
    """Load the model and the data set, score it, and print what came out; called by all processes.

    Returns:
        The summary, on the main process; empty on the others.

    Raises:
        ValueError: If anything that was asked for cannot be done.
        WriteError: If the output folder cannot be written.
    """
    check_writable("output", settings.output, is_folder=True)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
    measures = SCORES[settings.score].measures if settings.score in SCORES else ()
    pipeline = EnergyScoringPipeline.from_pretrained(
        settings.model, load_reconstruction="reconstruction_error" in measures
    )
    with accelerator.local_main_process_first():
        rows, fingerprint = load_rows(settings)
    summary = score_rows(pipeline, rows, fingerprint, settings, accelerator)
    if accelerator.is_main_process:
        print(describe(summary, settings.output), flush=True)
    accelerator.end_training()
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; what cannot be done ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="hf_ebm.evaluation.bulk_scoring", description=(__doc__ or "").partition("\n")[0]
    )
    add_options(parser, required=True)
    try:
        run(settings_of(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
