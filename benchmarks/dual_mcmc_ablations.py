"""The ablations of Cui & Han 2023 on the digits: one table (Markdown, JSON) and one figure.

    python benchmarks/dual_mcmc_ablations.py --output outputs/dual-mcmc-ablations
    python benchmarks/dual_mcmc_ablations.py --rows x_steps --max-steps 100

Every row is a training run of `dual_mcmc_digits.yaml` with the row's changes and fewer steps, launched as the demo
launches it and measured as the demo measures. Rows that `results.json` holds already are not run again, so an
interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.scoring.plots import new_figure
from hf_ebm.training.demo import evaluate_chains, evaluate_digits, launch_command
from hf_ebm.training.settings import CONFIGS

GROUPS: dict[str, list[dict[str, Any]]] = {
    "x_steps": [{"x_num_steps": steps} for steps in (0, 10, 20, 30, 50)],
    "z_steps": [{"z_num_steps": steps} for steps in (0, 5, 10, 30)],
    "z_start": [{"z_start": "noise", "z_num_steps": steps} for steps in (10, 30)],
    "negatives": [{"energy_negatives": name} for name in ("second_chain", "first_chain", "generator")],
}
COLUMNS = {
    "frechet_distance": "FD",
    "generator_alone": "FD, generator alone",
    "mse_inference": "MSE, inference alone",
    "mse_z_chain": "MSE, 10 z-steps",
    "auroc_noise": "AUROC noise",
    "auroc_inverted": "inverted",
    "auroc_shuffled": "shuffled",
}


def name_of(changes: dict[str, Any]) -> str:
    """A row's name, the arguments it passes."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def run_row(changes: dict[str, Any], max_steps: int, seed: int, folder: Path) -> dict[str, float]:
    """Train with `changes` and measure."""
    launcher, environment = launch_command("dual_mcmc")
    arguments = {
        **changes,
        "max_steps": max_steps,
        "seed": seed,
        "output_dir": folder,
        "overwrite_output_dir": "true",
        "sample_every": 0,
        "checkpoint_every": 0,
    }
    command = [*launcher, "--config", str(CONFIGS / "dual_mcmc_digits.yaml")]
    command += [f"{key}={value}" for key, value in arguments.items()]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    pipeline = DualMCMCPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    metrics, chains = evaluate_digits(pipeline)[0], evaluate_chains(pipeline, folder)
    alone = chains["generator_alone"]
    row = {
        # trained without an x-chain, it samples without one
        "frechet_distance": metrics["frechet_distance"]["samples"] if changes.get("x_num_steps") != 0 else alone,
        "generator_alone": alone,
        "mse_inference": chains["reconstruction_mse"]["inference_model"],
        "mse_z_chain": chains["reconstruction_mse"]["z_chain"],
        **{f"auroc_{name}": metrics["auroc"][name] for name in ("noise", "inverted", "shuffled")},
    }
    shutil.rmtree(folder)
    return row


def write_table(results: dict[str, dict[str, float]], path: Path) -> None:
    """All rows as a Markdown table."""
    lines = ["| change | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in results.items():
        digits = {"frechet_distance": 2, "generator_alone": 2}
        cells = [f"{row[key]:.{digits.get(key, 4)}f}" for key in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Frechet distance and reconstruction error against the steps of each chain."""
    figure = new_figure(9.0, 3.2)
    left, right = figure.subplots(1, 2)

    def line(axis: Any, rows: list[dict[str, Any]], step_key: str, value: str, label: str) -> None:
        points = [(row[step_key], results[name_of(row)][value]) for row in rows if name_of(row) in results]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=label)

    line(left, GROUPS["x_steps"], "x_num_steps", "frechet_distance", "after the x-chain")
    line(left, GROUPS["x_steps"], "x_num_steps", "generator_alone", "generator alone")
    left.set(xlabel="x-chain steps in training", ylabel="Frechet distance")
    line(right, GROUPS["z_steps"], "z_num_steps", "frechet_distance", "started by the inference model")
    line(right, GROUPS["z_start"], "z_num_steps", "frechet_distance", "started at noise")
    right.set(xlabel="z-chain steps in training", ylabel="Frechet distance")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, write what there is."""
    parser = argparse.ArgumentParser(description="The ablations of Dual-MCMC Teaching on the digits.")
    parser.add_argument("--output", type=Path, default=Path("outputs/dual-mcmc-ablations"))
    parser.add_argument("--rows", nargs="+", choices=sorted(GROUPS), default=list(GROUPS))
    parser.add_argument("--max-steps", type=int, default=250, help="of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "results.json"
    protocol = {"max_steps": options.max_steps, "seed": options.seed, "config": "dual_mcmc_digits.yaml"}
    saved = json.loads(record.read_text()) if record.is_file() else {"protocol": protocol, "rows": {}}
    if saved["protocol"] != protocol:
        raise SystemExit(f"error: {record} was made with {saved['protocol']}, not {protocol}; choose another --output.")
    results = saved["rows"]
    for changes in [row for group in options.rows for row in GROUPS[group]]:
        name = name_of(changes)
        if name in results:
            continue
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        results[name] = run_row(changes, options.max_steps, options.seed, options.output / "run")
        print(f"{time.perf_counter() - started:.0f} s: {results[name]}", flush=True)
        record.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    write_table(results, options.output / "table.md")
    plot(results, options.output / "ablations.png")
    print((options.output / "table.md").read_text())


if __name__ == "__main__":
    main()
