"""The ablations of Cui & Han 2023, on the digits or another recipe: one table (Markdown, JSON) and one figure.

    python benchmarks/dual_mcmc_ablations.py --output outputs/dual-mcmc-ablations
    python benchmarks/dual_mcmc_ablations.py --rows x_steps --max-steps 100 --seeds 0 1 2
    python benchmarks/dual_mcmc_ablations.py --data fashion_mnist --max-steps 1000 --output outputs/fashion-ablations
    python benchmarks/dual_mcmc_ablations.py --change "x_step_size=0.5 x_noise_std=0.001" --change sample_weight=50

Every row is a training run of ``dual_mcmc_<data>.yaml`` with the row's changes, evaluated as in the
demo.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from ablations import MAX_SAMPLES, MAX_TEST_IMAGES, Changes, Results, Row, make_table, name_of
from benchmark_data import BenchmarkData

from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.evaluation.plots import new_figure
from hf_ebm.evaluation.samples import draw_samples
from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.training.digits_demo import CHAIN_STEPS

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


def evaluate(folder: Path, changes: Changes, data: BenchmarkData, device: str) -> Row:
    """Metrics of samples before and after the x-chain, of reconstructions around the z-chain, and of OOD images."""
    pipeline = DualMCMCPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    number = data.num_samples(MAX_SAMPLES)

    def distance(steps: int | None) -> float:
        return data.frechet_distance(torch.cat(list(draw_samples(pipeline, number, number, steps, seed=0))))

    alone = distance(0)
    random = torch.Generator().manual_seed(0)
    held_out = data.held_out_images(MAX_TEST_IMAGES)
    errors = pipeline.reconstruct(
        to_unit_range(held_out), CHAIN_STEPS, generator=random, output_type="pt", output_squared_errors=True
    ).squared_errors.mean(dim=1)
    aurocs = data.ood_aurocs(pipeline, MAX_TEST_IMAGES)
    return {
        "frechet_distance": distance(None),
        "generator_alone": alone,
        "mse_inference": errors[0].item(),
        "mse_z_chain": errors[-1].item(),
        **{f"auroc_{name}": aurocs[name] for name in ("noise", "inverted", "shuffled")},
    }


def plot(results: Results, path: Path) -> None:
    """Plot the Frechet distance against the steps of each chain, and for each kind of negatives (means over seeds)."""
    figure = new_figure(12.0, 3.2)
    left, right, last = figure.subplots(1, 3, width_ratios=(3, 3, 2))

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
    for key, marker, label in (
        ("frechet_distance", "o", "after the x-chain"),
        ("generator_alone", "x", "generator alone"),
    ):
        for changes in GROUPS["negatives"]:
            values = [row[key] for row in results.get(name_of(changes), {}).values() if row]
            names = [changes["energy_negatives"].replace("_", "\n")] * len(values)
            last.scatter(names, values, marker=marker, color="tab:blue" if marker == "o" else "tab:orange", label=label)
            label = ""  # one entry of the legend
    last.set(xlabel="the energy's negatives, one mark a seed", yscale="log")
    for axis in (left, right, last):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    make_table("dual_mcmc", (__doc__ or "").splitlines()[0], GROUPS, COLUMNS, evaluate, plot)
