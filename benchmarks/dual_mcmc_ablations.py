"""The ablations of Cui & Han 2023 on the digits: one table (Markdown, JSON) and one figure.

    python benchmarks/dual_mcmc_ablations.py --output outputs/dual-mcmc-ablations
    python benchmarks/dual_mcmc_ablations.py --rows x_steps --max-steps 100 --seeds 0 1 2

Every row is a training run of `dual_mcmc_digits.yaml` with the row's changes, measured as the demo measures.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ablations import Changes, Results, Row, make_table, name_of

from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.scoring.plots import new_figure
from hf_ebm.training.demo import evaluate_chains, evaluate_digits

GROUPS: dict[str, list[Changes]] = {
    "x_steps": [{"x_num_steps": steps} for steps in (0, 10, 20, 30, 50)],
    "z_steps": [{"z_num_steps": steps} for steps in (0, 5, 10, 30)],
    "z_start": [{"z_start": "noise", "z_num_steps": steps} for steps in (10, 30)],
    "negatives": [{"energy_negatives": name} for name in ("second_chain", "first_chain", "generator")],
}
COLUMNS = {
    "frechet_distance": ("FD", 2),
    "generator_alone": ("FD, generator alone", 2),
    "mse_inference": ("MSE, inference alone", 4),
    "mse_z_chain": ("MSE, 10 z-steps", 4),
    "auroc_noise": ("AUROC noise", 4),
    "auroc_inverted": ("inverted", 4),
    "auroc_shuffled": ("shuffled", 4),
}


def measure(folder: Path, changes: Changes) -> Row:
    """Samples, reconstructions and odd images, as the demo measures them."""
    pipeline = DualMCMCPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    metrics, chains = evaluate_digits(pipeline)[0], evaluate_chains(pipeline, folder)
    alone = chains["generator_alone"]
    return {
        # trained without an x-chain, it samples without one
        "frechet_distance": metrics["frechet_distance"]["samples"] if changes.get("x_num_steps") != 0 else alone,
        "generator_alone": alone,
        "mse_inference": chains["reconstruction_mse"]["inference_model"],
        "mse_z_chain": chains["reconstruction_mse"]["z_chain"],
        **{f"auroc_{name}": metrics["auroc"][name] for name in ("noise", "inverted", "shuffled")},
    }


def plot(results: Results, path: Path) -> None:
    """Frechet distance against the steps of each chain, mean over seeds."""
    figure = new_figure(9.0, 3.2)
    left, right = figure.subplots(1, 2)

    def line(axis: Any, rows: list[Changes], step_key: str, value: str, label: str) -> None:
        points = []
        for changes in rows:
            measured = [row[value] for row in results.get(name_of(changes), {}).values() if row]
            if measured:
                points.append((changes[step_key], statistics.fmean(measured)))
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


if __name__ == "__main__":
    make_table("dual_mcmc", (__doc__ or "").splitlines()[0], GROUPS, COLUMNS, measure, plot)
