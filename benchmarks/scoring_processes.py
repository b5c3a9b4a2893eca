"""Compare the speed of `hf_ebm.evaluation.bulk_scoring` with two processes and with one, of one thread each, on PNGs.

    python benchmarks/scoring_processes.py --cores 0,1

One process runs on the first core, two on both; images are opened in the scoring processes (no
workers). The comparison uses the seconds that the runs report, from the first row to the last
shard, without starting Python and loading the model. The sides alternate, and their rows must be
identical. Random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from accelerate.utils import set_seed
from scoring_speed import png_dataset
from timing import Spread, cpu_name

from hf_ebm import DDAEBMScheduler, EnergyScoringPipeline
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

SMALL = {"unet": {"base_channels": 32, "channel_multipliers": (1, 2, 2), "patch_size": 2}}


def prepare(folder: Path, number: int) -> None:
    """A model with random weights and a data set of PNGs."""
    set_seed(0)
    _, energy_model, _ = build_ddaebm_models(ddaebm_model_settings("cifar10", overrides=SMALL))
    EnergyScoringPipeline(energy_model, DDAEBMScheduler()).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    png_dataset(torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8)).to_parquet(folder / "data/train.parquet")


def score(folder: Path, cores: list[str], shard_size: int, batch_size: int) -> tuple[dict[str, Any], Any]:
    """Run with a process per core; returns the summary and the rows."""
    output = folder / f"scores-{len(cores)}"
    shutil.rmtree(output, ignore_errors=True)
    command = ["taskset", "-c", ",".join(cores), sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_processes", str(len(cores)), *(["--multi_gpu"] if len(cores) > 1 else ["--cpu"])]
    command += [
        "-m",
        "hf_ebm.evaluation.bulk_scoring",
        "--model",
        str(folder / "model"),
        "--dataset",
        str(folder / "data"),
    ]
    command += ["--output", str(output), "--batch-size", str(batch_size), "--shard-size", str(shard_size)]
    command += ["--num-workers", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    summary = json.loads((output / "summary.json").read_text())
    if summary["num_processes"] != len(cores):
        raise SystemExit(f"error: asked for {len(cores)} processes, had {summary['num_processes']}.")
    return summary, pq.read_table(sorted((output / "scores").glob("*.parquet")))


def main() -> None:
    """Alternate, compare, report."""
    parser = argparse.ArgumentParser(description="Two scoring processes against one.")
    parser.add_argument("--cores", default="0,1", help="two cores (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores, shard_size = arguments.cores.split(","), arguments.images // 10
    if len(cores) != 2:
        parser.error("--cores must name two.")
    ratios, rates = [], {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), arguments.images)
        for _ in range(arguments.repeats):
            one, rows_of_one = score(Path(name), cores[:1], shard_size, arguments.batch_size)
            two, rows_of_two = score(Path(name), cores, shard_size, arguments.batch_size)
            if not rows_of_one.equals(rows_of_two):
                raise SystemExit("error: two processes and one process wrote different rows.")
            ratios.append(one["seconds_of_this_run"] / two["seconds_of_this_run"])
            for processes, summary in ((1, one), (2, two)):
                rates[processes].append(arguments.images / summary["seconds_of_this_run"])
            print(f"load average {os.getloadavg()[0]:.2f}, speed-up {ratios[-1]:.3f}", flush=True)
    print(f"{cpu_name()}, torch {torch.__version__}, {arguments.images} images, batch {arguments.batch_size}")
    print(f"two processes are {Spread.of(ratios)} times as fast as one, with the same rows")
    for processes, found in rates.items():
        print(f"  images per second, {processes} process(es): {Spread.of(found)}")


if __name__ == "__main__":
    main()
