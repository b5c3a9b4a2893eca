"""The ablations of Geng et al. 2024 on the digits: one table (Markdown, JSON) and one figure.

    python benchmarks/ddaebm_ablations.py --output outputs/ddaebm-ablations
    python benchmarks/ddaebm_ablations.py --rows timesteps --max-steps 300 --seeds 0 1 2

Every row is a training run of `ddaebm_digits.yaml` with the row's changes, measured as the demo measures. One denoising
step (T = 1) is a plain adversarial EBM: its generator makes images out of noise at once.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from ablations import Changes, Results, Row, make_table, name_of

from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline
from hf_ebm.scoring.plots import new_figure
from hf_ebm.training.demo import evaluate_digits

TIMESTEPS = [{"num_timesteps": number, "timestep_weights": None} for number in (1, 2, 4, 8)]
GROUPS: dict[str, list[Changes]] = {
    "shipped": [{}],
    "latent": [{"latent_dim": 0}],
    "divergence": [{"kl_weight": 0.0, "recon_weight": 0.0}, {"adversarial_weight": 0.0, "latent_weight": 0.0}],
    "penalty": [{"r1_weight": 0.0}],
    "timesteps": TIMESTEPS,
    "reconstruction": [{"reconstruction_latent": "posterior"}],
}
AUROCS = ("noise", "inverted", "rotated", "mixed")
COLUMNS = {"frechet_distance": ("FD", 2)} | {f"auroc_{name}": (f"AUROC {name}", 4) for name in AUROCS}


def measure(folder: Path, changes: Changes) -> Row:
    """Samples and odd images, as the demo measures them."""
    pipeline = DDAEBMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    metrics = evaluate_digits(pipeline)[0]
    row = {"frechet_distance": metrics["frechet_distance"]["samples"]}
    return row | {f"auroc_{name}": metrics["auroc"][name] for name in AUROCS}


def plot(results: Results, path: Path) -> None:
    """Frechet distance against the number of denoising steps; one dot a seed, a line through the means."""
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
    make_table("ddaebm", (__doc__ or "").splitlines()[0], GROUPS, COLUMNS, measure, plot)
