"""Score a whole data set: over several processes, into Parquet shards, and on from where a killed run stopped.

    accelerate launch -m hf_ebm.scoring.run --model outputs/ddaebm-digits --dataset digits --output outputs/scores
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m hf_ebm.scoring.run ...

The same command again goes on with what is missing. The folder is described in `hf_ebm.scoring.shards`; a batch never
reaches over the end of a shard, so the rows are the same however many processes there are and however often they were
killed. In memory are one shard's rows and a few batches.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

import hf_ebm
from hf_ebm.content_hash import hash_tensors
from hf_ebm.counting import counted
from hf_ebm.data import hash_images, load_digits
from hf_ebm.devices import find_device
from hf_ebm.hub_datasets import load_hub_dataset
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline
from hf_ebm.scoring.calibration import how_to_calibrate
from hf_ebm.scoring.rows import HubRows, ListRows, Rows, prepare_rows, spans_of
from hf_ebm.scoring.run_settings import ScoringSettings, add_options, settings_of
from hf_ebm.scoring.scores import SCORES
from hf_ebm.scoring.shard_scoring import rows_written, score_shards
from hf_ebm.scoring.shards import SUMMARY, UNREADABLE, ShardFolder
from hf_ebm.user_paths import expand_home
from hf_ebm.whole_files import check_writable

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
    parser = argparse.ArgumentParser(prog="hf_ebm.scoring.run", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, required=True)
    try:
        run(settings_of(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
