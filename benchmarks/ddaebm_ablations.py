"""The ablations of Geng et al. 2024, on the digits or another recipe: one table (Markdown, JSON) and one figure.

    python benchmarks/ddaebm_ablations.py --output outputs/ddaebm-ablations
    python benchmarks/ddaebm_ablations.py --rows timesteps --max-steps 300 --seeds 0 1 2
    python benchmarks/ddaebm_ablations.py --data fashion_mnist --max-steps 2000 --output outputs/fashion-ablations
    python benchmarks/ddaebm_ablations.py --change coupled_noise=false --change "r1_weight=0.02 recon_weight=0.2"

Every row is a training run of ``ddaebm_<data>.yaml`` with the row's changes, evaluated as in the
demo. One denoising step (T = 1) is a plain adversarial EBM, whose generator maps noise to images
directly.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from ablations import MAX_SAMPLES, MAX_TEST_IMAGES, Changes, Results, Row, make_table, name_of
from benchmark_data import BenchmarkData

from hf_ebm.evaluation.plots import new_figure
from hf_ebm.evaluation.samples import draw_samples
from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline

TIMESTEPS = [{"num_timesteps": number, "timestep_weights": None} for number in (1, 2, 4, 8)]
GROUPS: dict[str, list[Changes]] = {
    "shipped": [{}],
    "latent": [{"latent_dim": 0}],
    "divergence": [
        {"kl_weight": 0.0, "recon_weight": 0.0},  # reverse KL only
        {  # forward KL only, by its bound: the posterior's z, and the terms' own weights
            "adversarial_weight": 0.0,
            "latent_weight": 0.0,
            "reconstruction_latent": "posterior",
            "recon_weight": 1.0,
        },
    ],
    "penalty": [{"r1_weight": 0.0}],
    "timesteps": TIMESTEPS,
    "reconstruction": [{"reconstruction_latent": "posterior"}],
}
AUROCS = ("noise", "inverted", "rotated", "mixed")
COLUMNS = {"frechet_distance": ("FD", 2)} | {f"auroc_{name}": (f"AUROC {name}", 4) for name in AUROCS}


def evaluate(folder: Path, changes: Changes, data: BenchmarkData, device: str) -> Row:
    """Frechet distance of samples, and AUROCs of OOD images."""
    pipeline = DDAEBMPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    number = data.num_samples(MAX_SAMPLES)
    samples = torch.cat(list(draw_samples(pipeline, number, number, None, seed=0)))
    aurocs = data.ood_aurocs(pipeline, MAX_TEST_IMAGES)
    return {"frechet_distance": data.frechet_distance(samples)} | {f"auroc_{name}": aurocs[name] for name in AUROCS}


def plot(results: Results, path: Path) -> None:
    """Plot the Frechet distance against the number of denoising steps: a dot per seed, a line through the means."""
    figure = new_figure(4.5, 3.2)
    axis = figure.subplots()
    means = []
    for changes in TIMESTEPS:
        values = [row["frechet_distance"] for row in results.get(name_of(changes), {}).values() if row]
        axis.scatter([changes["num_timesteps"]] * len(values), values, color="tab:blue", s=12)
        if values:
            means.append((changes["num_timesteps"], statistics.fmean(values)))
    if means:
        axis.plot(*zip(*means, strict=True), color="tab:blue")
    axis.set(xlabel="denoising steps T", ylabel="Frechet distance")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    make_table("ddaebm", (__doc__ or "").splitlines()[0], GROUPS, COLUMNS, evaluate, plot)
