"""Record memory and speed of `hf_ebm.evaluation.bulk_scoring` on a million generated images with a small model.

    python benchmarks/scoring_at_scale.py --output outputs/million
    python benchmarks/scoring_at_scale.py --output outputs/cifar10-scores --dataset path/to/cifar10 --split test

Each image is generated from its row number on access, so that the data set takes no disk space or
memory. With --dataset it is a Hub id or a folder, and the network has 32x32 RGB inputs and 3.1
million parameters. The weights are random. Memory is sampled each second: the anonymous pages of
this process (memory-mapped files can be evicted by the kernel), and the memory of all workers.
"""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timing import cpu_name

from hf_ebm import DDAEBMScheduler, EnergyScoringPipeline
from hf_ebm.evaluation.bulk_scoring import ScoringSettings, load_rows, score_rows
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.scoring.inputs import Row
from hf_ebm.utils.files import path_option

TINY = {"energy": {"block_out_channels": (16, 16)}}
SMALL = {"unet": {"base_channels": 32, "channel_multipliers": (1, 2, 2), "patch_size": 2}}


class GeneratedRows:
    """Gray 8x8 noise, generated from the row number."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        return [
            (row, np.random.default_rng(row).integers(0, 256, (8, 8), dtype=np.uint8)) for row in range(start, stop)
        ]


class MemoryRecord:
    """Inside ``with``, a thread notes ``(seconds, own anonymous MiB, resident MiB, workers' resident MiB)``."""

    def __init__(self, every: float) -> None:
        self.every, self.samples, self.stop = every, list[tuple[float, float, float, float]](), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        """Sample until `stop` is set."""
        process, started = psutil.Process(), time.perf_counter()
        while not self.stop.wait(self.every):
            workers = 0
            for child in process.children():
                try:
                    workers += child.memory_info().rss
                except psutil.NoSuchProcess:  # it has ended
                    continue
            own, resident = anonymous_memory(), process.memory_info().rss
            seconds = time.perf_counter() - started
            self.samples.append((seconds, own / 2**20, resident / 2**20, workers / 2**20))

    def __enter__(self) -> MemoryRecord:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.thread.join()


def anonymous_memory() -> int:
    """Anonymous memory of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("error: /proc/self/status has no RssAnon; this benchmark needs Linux.")


def main() -> None:
    """Score, watch the memory, report."""
    parser = argparse.ArgumentParser(description="Memory and speed of a long scoring run.")
    parser.add_argument("--output", type=path_option, required=True, help="a new folder")
    parser.add_argument("--rows", type=int, default=1_000_000, help="generated images (default: %(default)s)")
    parser.add_argument("--dataset", help="a Hub id or a folder of 32x32 RGB images, instead of generated ones")
    parser.add_argument("--split", default="test", help="of the data set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--json", type=path_option, help="also write the results to this file")
    options = parser.parse_args()
    set_seed(0)
    if options.dataset is None:
        _, energy_model, _ = build_dual_mcmc_models(dual_mcmc_model_settings("digits", overrides=TINY))
        pipeline = EnergyScoringPipeline(energy_model.eval())
    else:
        _, energy_model, _ = build_ddaebm_models(ddaebm_model_settings("cifar10", overrides=SMALL))
        pipeline = EnergyScoringPipeline(energy_model.eval(), DDAEBMScheduler())
    settings = ScoringSettings(
        model="random weights",
        dataset=options.dataset or "generated",
        output=options.output,
        split=options.split,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    rows: Any = GeneratedRows(options.rows)
    fingerprint = f"generated-{options.rows}"
    if options.dataset is not None:
        rows, fingerprint = load_rows(settings)
    with MemoryRecord(every=1.0) as memory:
        summary = score_rows(pipeline, rows, fingerprint, settings, Accelerator())
    if len(memory.samples) < 10:
        raise SystemExit("error: the run was too short for a memory trend.")
    samples = np.array(memory.samples)
    late = samples[len(samples) // 10 :]  # the first tenth fills buffers and starts workers
    seconds = summary["seconds_of_this_run"]
    growth = np.polyfit(late[:, 0], late[:, 1:], deg=1)[0] * (late[-1, 0] - late[0, 0])
    names = ("own anonymous", "own resident", "workers resident")
    record = {
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in energy_model.parameters()),
        "rows": summary["rows"],
        "unreadable": summary["unreadable"],
        "seconds": seconds,
        "rows_per_second": round(summary["rows_of_this_run"] / seconds, 1),
        "peak_MiB": {name: round(value, 1) for name, value in zip(names, samples[:, 1:].max(axis=0), strict=True)},
        "trend_over_the_last_nine_tenths_MiB": {
            name: round(value, 1) for name, value in zip(names, growth, strict=True)
        },
        "MiB_at_each_tenth": {
            name: [round(samples[len(samples) * k // 10, 1 + i], 1) for k in range(1, 10)]
            for i, name in enumerate(names)
        },
    }
    print(json.dumps(record, indent=2))
    if options.json:
        options.json.write_text(json.dumps({**record, "samples": memory.samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
