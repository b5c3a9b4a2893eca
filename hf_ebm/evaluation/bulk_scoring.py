"""Score a whole data set into Parquet shards, with any number of processes, resuming after a kill.

    hf-ebm score --model outputs/ddaebm-digits --dataset digits --output outputs/scores
    accelerate launch -m hf_ebm.evaluation.bulk_scoring --model outputs/ddaebm-digits --dataset digits \
        --output outputs/scores

The output folder:

    manifest.json          hashes of model and data, and the settings that decide the rows
    scores/000000.parquet  id, energy, score, p_value, is_ood of rows 0..shard_size-1, and so on
    unreadable.jsonl       the rows without a score, and why
    summary.json           the counts; it and unreadable.jsonl are written when every shard exists

Shards are fixed ranges of row numbers, so the rows are the same for any number of processes and kills. A shard is
written under a temporary name and renamed: one that exists is complete, and the same command again scores only the
missing ones. A folder with another manifest is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedConfig

import hf_ebm
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import EBMImageProcessor, to_model_range
from hf_ebm.data.loading import MOST_HASHED, DatasetName, fingerprint, hash_images, load_hub_dataset
from hf_ebm.pipelines.loading import load_scorer
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput, EnergyScoringPipeline
from hf_ebm.scoring.calibration import how_to_calibrate
from hf_ebm.scoring.inputs import HubRows, ListRows, Rows, Unreadable, prepare_rows, prepared_batches, spans_of
from hf_ebm.scoring.scores import SCORES
from hf_ebm.scoring.statistics import statistics_of_batches
from hf_ebm.utils.files import check_writable, expand_home, hash_tensors, whole_file
from hf_ebm.utils.torch_utils import find_device
from hf_ebm.utils.validation import check_count, counted

MANIFEST, SUMMARY, UNREADABLE = "manifest.json", "summary.json", "unreadable.jsonl"
# the settings in the manifest; scores depend on the batch size only by rounding
DECISIVE = ("split", "image_column", "id_column", "score", "shard_size")
COLUMNS = {  # of the shards: the output's attribute, the type
    "energy": ("energies", pa.float32()),
    "score": ("scores", pa.float64()),
    "p_value": ("p_values", pa.float64()),
    "is_ood": ("is_ood", pa.bool_()),
}
NUM_PROBED = 100  # rows of which at least one must be readable
NUM_SHOWN = 5  # unreadable images named at the end
LONGEST_WAIT = timedelta(days=1)  # of processes for each other: one may be downloading, or have the slowest shards


def default_num_workers() -> int:
    """Two worker processes, or one where this process may use only one core."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return min(2, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of a scoring run; `hf-ebm score` describes them."""

    model: str
    dataset: str  # name[:config][@split]; afterwards the name only, and the others are in the next settings
    output: Path
    split: str | None = None  # None: that of the name, else "train"
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None  # None: the only one
    id_column: str | None = None  # None: the paths of an image folder, else the row numbers
    score: str | None = None  # None: the pipeline's default, density of a calibrated model, else energy
    encoder: str | None = None  # None: that of the calibration
    batch_size: int = 256  # per process
    shard_size: int = 10_000  # rows per file: a kill loses at most one shard per process
    num_workers: int = field(default_factory=default_num_workers)  # of each process that scores
    on_error: Literal["skip", "stop"] = "skip"
    device: str | None = None  # None: accelerate's
    require_calibration: bool = False  # so that ``is_ood`` is never null

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("num_workers", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if self.on_error not in ("skip", "stop"):
            raise ValueError(f"on_error must be 'skip' or 'stop', got {self.on_error!r}.")
        named = DatasetName.parse(self.dataset)
        if named.config and self.config_name not in (None, named.config):
            raise ValueError(f"--config-name {self.config_name} and --dataset {self.dataset} differ; give one.")
        resolved = {
            "model": expand_home(self.model),
            "dataset": named.name,
            "config_name": named.config or self.config_name,
            "split": named.choose_split(self.split, "train"),
            "output": expand_home(Path(self.output)),
        }
        for name, value in resolved.items():
            object.__setattr__(self, name, value)


def load_rows(settings: ScoringSettings) -> tuple[Rows, str]:
    """The rows of the settings' data set, and a hash of their images and ids.

    Images are hashed as in `hf_ebm.data.loading.fingerprint`, so a copy of a folder has the same hash.
    """
    if settings.dataset == "digits":
        samples = load_digits(str(settings.split))[0]
        return ListRows(samples), fingerprint(TensorDataset(to_model_range(samples)))
    dataset = load_hub_dataset(settings.dataset, str(settings.split), settings.config_name, settings.revision)
    folder = settings.dataset if Path(settings.dataset).is_dir() else None
    rows = HubRows(dataset, settings.image_column, settings.id_column, folder)
    content = f"{hash_images(rows.dataset, rows.column)}:{len(rows)}:{rows.column}"
    if settings.id_column is None and not rows.files:
        return rows, content
    some = range(0, len(rows), math.ceil(len(rows) / MOST_HASHED))
    ids = json.dumps([rows.read(row, row + 1)[0][0] for row in some])
    return rows, f"{content}:{hashlib.sha256(ids.encode()).hexdigest()[:16]}"


def model_fingerprint(pipeline: EnergyScoringPipeline) -> str:
    """A hash of everything that decides a score: weights, buffers, configs and the calibration."""
    digest = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            digest.update(f"{name} {hash_tensors(component.state_dict())}".encode())
        if component is not None:  # keys with a leading "_" hold names and versions
            config = getattr(component, "config", component)  # an image processor is its own config
            config = config.to_dict() if isinstance(config, PreTrainedConfig | EBMImageProcessor) else config
            decisive = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(f"{name} {json.dumps(decisive, default=str, sort_keys=True)}".encode())
    if pipeline.calibration is not None:
        digest.update(json.dumps(pipeline.calibration.to_dict(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def make_manifest(
    pipeline: EnergyScoringPipeline, rows: Rows, fingerprint: str, settings: ScoringSettings
) -> dict[str, Any]:
    """Everything that decides the rows of the result."""
    return {
        "model_fingerprint": model_fingerprint(pipeline),
        "dataset_fingerprint": fingerprint,
        "num_rows": len(rows),
        **{name: getattr(settings, name) for name in DECISIVE},
        "dtype": str(pipeline.energy_model.dtype),
    }


def check_manifest(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the folder holds a run with this manifest; False if it is new or empty, else a `ValueError`."""
    path = folder / MANIFEST
    if not path.is_file():
        # a run that was killed in its first step may have left a temporary manifest
        if folder.exists() and not all(entry.name.startswith(".manifest.") for entry in folder.iterdir()):
            raise ValueError(f"output {folder} exists and has no {MANIFEST}; choose a new or an empty folder.")
        return False
    saved = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key in dict.fromkeys([*saved, *manifest]) if saved.get(key) != manifest.get(key)]
    if different:
        shown = "; ".join(f"{key}: {saved.get(key)!r} there, {manifest.get(key)!r} now" for key in different)
        raise ValueError(
            f"output {folder} holds a run with another manifest ({shown}); use the same model, data and settings, or "
            "choose another output folder."
        )
    return True


def check_some_fit(rows: Rows, sample_shape: tuple[int, ...], image_processor: EBMImageProcessor | None) -> None:
    """Raise a `ValueError` if none of the first rows can be scored, before hours are spent on an empty result."""
    reason = ""
    for span in spans_of(0, min(len(rows), NUM_PROBED), 1):
        batch = prepare_rows(rows.read(*span), span[0], sample_shape, image_processor)
        if not batch.unreadable:
            return
        reason = reason or f"image {batch.unreadable[0].name} {batch.unreadable[0].reason}"
    raise ValueError(f"none of the first {min(len(rows), NUM_PROBED)} images can be scored; the first: {reason}.")


def shard_path(folder: Path, shard: int) -> Path:
    """The Parquet file of a shard."""
    return folder / "scores" / f"{shard:06d}.parquet"


def write_shard(path: Path, table: pa.Table, unreadable: Sequence[Unreadable]) -> None:
    """Write a shard, with its unreadable rows in the metadata, under a temporary name, and rename it."""
    table = table.replace_schema_metadata({"unreadable": json.dumps([asdict(row) for row in unreadable])})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def read_shard(path: Path, num_rows: int) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The verdicts of a shard, and its unreadable rows; a `ValueError` unless they account for its `num_rows` rows."""
    try:
        table = pq.read_table(path, columns=["is_ood"])
        unreadable = json.loads(table.schema.metadata[b"unreadable"])
        if len(table) + len(unreadable) != num_rows:
            raise ValueError(f"{len(table)} scored and {len(unreadable)} unreadable rows of {num_rows}")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to score its rows again.") from error
    return table, unreadable


def score_rows(
    pipeline: EnergyScoringPipeline, rows: Rows, fingerprint: str, settings: ScoringSettings, accelerator: Accelerator
) -> dict[str, Any]:
    """Score the missing shards and return the summary (on other processes than the main one, {}); by all processes.

    Raises:
        ValueError: If the score cannot be computed, the folder holds something else, no image fits, or one is
            unreadable and ``on_error`` is "stop". Shards that were written stay.
    """
    score = pipeline.default_score if settings.score is None else settings.score
    settings = replace(settings, score=score)
    pipeline.check_score(score)
    device = accelerator.device if settings.device is None else find_device(settings.device)
    if settings.device is None and device.type == "cpu":
        device = torch.device("cpu")  # not the "cpu:0" of several processes: weights copied there round differently
    if settings.require_calibration and pipeline.calibration is None:
        raise ValueError(
            f"model {settings.model} was not calibrated, so no image can be flagged as OOD: "
            f"{how_to_calibrate(settings.model)}."
        )
    folder, is_main = settings.output, accelerator.is_main_process
    manifest = make_manifest(pipeline, rows, fingerprint, settings)
    if not check_manifest(folder, manifest):
        check_some_fit(rows, pipeline.sample_shape, pipeline.image_processor)
    accelerator.wait_for_everyone()  # every process has checked the folder before one writes
    spans = list(spans_of(0, len(rows), settings.shard_size))
    missing: list[int] = []
    if is_main:
        for shard, (start, stop) in enumerate(spans):
            if shard_path(folder, shard).is_file():
                read_shard(shard_path(folder, shard), stop - start)
            else:
                missing.append(shard)
    summary = folder / SUMMARY
    # from the main process, so that all agree
    missing, is_complete = broadcast_object_list([missing, not missing and summary.is_file()])
    if is_complete:
        if not is_main:
            return {}
        print(f"{folder} is complete; nothing was done.")
        return json.loads(summary.read_text(encoding="utf-8"))
    if is_main:
        with whole_file(folder / MANIFEST) as path:
            path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        summary.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    # not split_between_processes: processes beyond the number of shards would all get the last one
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    score_shards(pipeline.to(device), rows, mine, settings, show_progress=is_main)
    accelerator.wait_for_everyone()
    if not is_main:
        return {}
    facts = {
        "rows_of_this_run": sum(spans[shard][1] - spans[shard][0] for shard in missing),
        "seconds_of_this_run": round(time.perf_counter() - started, 3),
        "num_processes": accelerator.num_processes,
        "device": device.type,
        "hf_ebm": hf_ebm.__version__,
        "torch": torch.__version__,
        "model": settings.model,
        "calibrated": pipeline.calibration is not None,
        "target_fpr": None if pipeline.calibration is None else pipeline.calibration.target_fpr,
        "dataset": settings.dataset,
        "manifest": manifest,
    }
    return finish(folder, spans, facts)


def score_shards(
    pipeline: EnergyScoringPipeline,
    rows: Rows,
    shards: Sequence[int],
    settings: ScoringSettings,
    show_progress: bool = False,
) -> None:
    """Score and write these shards, one after the other."""
    size = settings.shard_size
    ends = [(shard * size, min((shard + 1) * size, len(rows))) for shard in shards]
    spans = [span for start, stop in ends for span in spans_of(start, stop, settings.batch_size)]
    score = pipeline.default_score if settings.score is None else settings.score
    compute = pipeline.make_statistics_function(pipeline.needed(score))
    prepared = prepared_batches(rows, spans, pipeline.sample_shape, pipeline.image_processor, settings.num_workers)
    batches = statistics_of_batches(prepared, lambda batch: compute(batch.x) if batch.ids else {})
    id_type = pa.string() if isinstance(rows.read(0, 1)[0][0], str) else pa.int64()
    schema = pa.schema([("id", id_type), *((name, kind) for name, (_, kind) in COLUMNS.items())])
    total = sum(stop - start for start, stop in ends)
    with tqdm(total=total, disable=None if show_progress else True, unit="row", desc="score") as progress:
        for shard, (_, stop) in zip(shards, ends, strict=True):
            tables, unreadable = [schema.empty_table()], list[Unreadable]()
            for batch, statistics in batches:
                if batch.unreadable and settings.on_error == "stop":
                    first = batch.unreadable[0]
                    raise ValueError(
                        f"image {first.name} {first.reason}; on_error=skip (--on-error skip) lists such images and "
                        "continues."
                    )
                unreadable += batch.unreadable
                if batch.ids:
                    tables.append(as_table(batch.ids, pipeline.judge(statistics, score, batch.ids), schema))
                progress.update(len(batch.ids) + len(batch.unreadable))
                if batch.stop == stop:
                    break
            write_shard(shard_path(settings.output, shard), pa.concat_tables(tables), unreadable)


def as_table(ids: list[Any], output: EnergyScoringOutput, schema: pa.Schema) -> pa.Table:
    """The rows of a batch; without a calibration, p_value and is_ood are null."""
    columns: dict[str, Any] = {"id": ids}
    for name, (attribute, _) in COLUMNS.items():
        values = getattr(output, attribute)
        # lists, so that the values move to Arrow's memory: small tensors that stay would fragment the heap
        columns[name] = [None] * len(ids) if values is None else values.tolist()
    return pa.table(columns, schema)


def finish(folder: Path, spans: Sequence[tuple[int, int]], facts: dict[str, Any]) -> dict[str, Any]:
    """Check that every row is accounted for, write the last two files, and return the summary."""
    scored = num_unreadable = flagged = 0
    with whole_file(folder / UNREADABLE) as path, path.open("w", encoding="utf-8") as file:
        for shard, (start, stop) in enumerate(spans):
            table, unreadable = read_shard(shard_path(folder, shard), stop - start)
            scored, num_unreadable = scored + len(table), num_unreadable + len(unreadable)
            flagged += pc.sum(table["is_ood"]).as_py() or 0
            file.writelines(json.dumps(row) + "\n" for row in unreadable)
    summary = {
        "rows": spans[-1][1],
        "scored": scored,
        "unreadable": num_unreadable,
        "called_ood": flagged if facts["calibrated"] else None,
        "shards": len(spans),
        **facts,
    }
    with whole_file(folder / SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for left in [*(folder / "scores").glob(".*.tmp.parquet"), *folder.glob(".manifest.*.tmp.json")]:  # by killed runs
        left.unlink(missing_ok=True)
    return summary


def describe(summary: dict[str, Any], output: Path) -> Iterator[str]:
    """Lines for the user: the counts of a finished run, and the first unreadable images by name."""
    where = f"in {counted(summary['shards'], 'file')} of {output / 'scores'}"
    yield f"{summary['scored']:,} of {summary['rows']:,} rows have a score, {where}"
    if summary["calibrated"]:
        yield f"flagged as out of distribution: {summary['called_ood']:,}"
    else:
        yield f"the model was not calibrated, so p_value and is_ood are null: {how_to_calibrate(summary['model'])}"
    if not summary["unreadable"]:
        return
    found = [json.loads(line) for line in (output / UNREADABLE).read_text(encoding="utf-8").splitlines()]
    shown = "" if len(found) <= NUM_SHOWN else f"; the first {NUM_SHOWN}"
    yield f"{len(found):,} could not be scored, all listed in {output / UNREADABLE}{shown}:"
    for row in found[:NUM_SHOWN]:
        yield f"  image {row['name']} {row['reason']}"


def run(settings: ScoringSettings) -> dict[str, Any]:
    """Load the model and the data set, score it, print the counts and return `score_rows`; by all processes."""
    check_writable("output", settings.output, is_folder=True)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
    reconstructs = settings.score in SCORES and SCORES[settings.score].needs_reconstruction
    pipeline = load_scorer(settings.model, load_reconstruction=reconstructs, image_encoder=settings.encoder)
    with accelerator.local_main_process_first():
        rows, fingerprint = load_rows(settings)
    summary = score_rows(pipeline, rows, fingerprint, settings, accelerator)
    if accelerator.is_main_process:
        print("\n".join(describe(summary, settings.output)), flush=True)
    accelerator.end_training()
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point for ``accelerate launch``; a `ValueError` or `OSError` ends it with one line and exit code 1."""
    parser = HfArgumentParser(
        ScoringSettings,
        prog="hf_ebm.evaluation.bulk_scoring",
        description=(__doc__ or "").partition("\n")[0],
        epilog="The options are those of `hf-ebm score`, which describes them.",
        allow_abbrev=False,
    )
    options = vars(parser.parse_args(arguments))
    try:
        run(ScoringSettings(**options))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
