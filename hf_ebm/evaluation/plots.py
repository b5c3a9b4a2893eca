"""Plots: histograms of energies and scores, ROC curves, 2-D samples and densities, image grids.

matplotlib is imported when a plot is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from hf_ebm.scoring.statistics import compute_energies
from hf_ebm.utils.software import how_to_install

MAX_HEAT = 4.0  # standard deviations: larger values of a heat map have one colour
HISTOGRAM_TICKS = (-1000, -100, -10, -3, 0, 3, 10, 100, 1000, 1e4, 1e5, 1e6, 1e7)  # in-distribution standard deviations


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure that needs no screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {how_to_install('eval')}.") from error
    return Figure(figsize=(width, height), layout="constrained")


def heat_map_figure(image: Tensor, heat_map: Tensor, width: float = 5.2) -> Any:
    """An image beside its heat map, laid over it, on a scale that is the same for all images.

    Args:
        image: In [0, 1], shape (C, H, W), C = 1 or 3.
        heat_map: Shape (H, W), in standard deviations of in-distribution images.
        width: Of the figure, in inches.
    """
    figure = new_figure(width, 0.47 * width)
    axes = figure.subplots(1, 2)
    for axis, title in zip(axes, ("the model's input", "unusual pixels"), strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        axis.imshow(pixels.squeeze(-1) if len(image) == 1 else pixels, cmap="gray", vmin=0.0, vmax=1.0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    shown = axes[1].imshow(heat_map.numpy(), cmap="inferno", vmin=0.0, vmax=MAX_HEAT, alpha=0.7)
    bar = figure.colorbar(shown, ax=axes[1], extend="max", shrink=0.85)
    bar.set_label("standard deviations", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file, whose folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def plot_roc(scores: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """ROC curves of each scorer, one panel per OOD set, the false positive rate on a logarithmic axis.

    `scores` are ``{scorer: {"in_distribution" or OOD set: scores (N,)}}``, larger = more out of distribution.
    """
    from matplotlib import rcParams
    from matplotlib.rcsetup import cycler
    from sklearn.metrics import roc_curve

    looks = cycler(linestyle=["-", "--", ":"]) * rcParams["axes.prop_cycle"]  # more lines than colours differ by style
    ood_sets = [name for name in next(iter(scores.values())) if name != "in_distribution"]
    num_columns = min(4, len(ood_sets))
    num_rows = -(-len(ood_sets) // num_columns)
    names_in_row = max(2, int(2.9 * num_columns / 1.8))  # of the legend, in inches
    figure = new_figure(2.9 * num_columns, 2.6 * num_rows + 0.4 + 0.2 * -(-len(scores) // names_in_row))
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for index, axis in enumerate(axes.flat):
        if index >= len(ood_sets):
            axis.set_axis_off()
            continue
        axis.set_prop_cycle(looks)
        for name, found in scores.items():
            inside, ood = found["in_distribution"].double(), found[ood_sets[index]].double()
            labels = np.r_[np.zeros(len(inside)), np.ones(len(ood))]
            fpr, tpr, _ = roc_curve(labels, torch.cat([inside, ood]).numpy())
            axis.plot(fpr.clip(0.5 / len(inside)), tpr, label=name.replace("_", " "), linewidth=1.3)
        axis.set_xscale("log")
        axis.set_title(ood_sets[index].replace("_", " "), fontsize=10)
    figure.supxlabel("in-distribution images flagged as OOD", fontsize=9)
    figure.supylabel("OOD images detected", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=names_in_row, frameon=False, fontsize=8)
    save(figure, path)


def histogram_ticks(lowest: float, highest: float) -> list[float]:
    """Where the axis of a histogram of scores has its ticks: `HISTOGRAM_TICKS`, or a narrower range's own."""
    from matplotlib.ticker import MaxNLocator

    for ticks in (HISTOGRAM_TICKS, MaxNLocator(4).tick_values(lowest, highest)):
        shown = [float(at) for at in ticks if lowest <= at <= highest]
        if len(shown) > 2:
            break
    return shown


def plot_score_histograms(scores: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Histograms of scores: a row for each scorer, a column for each OOD set, in-distribution scores in every panel.

    Scores are shown in in-distribution standard deviations from the in-distribution mean, on an axis that is linear up
    to about one and logarithmic beyond, because scores of OOD sets may be very large. `scores` are as for `plot_roc`.
    """
    ood_sets = [name for name in next(iter(scores.values())) if name != "in_distribution"]
    figure = new_figure(max(4.5, 1.45 * len(ood_sets) + 1.6), 1.05 * len(scores) + 1.1)
    axes = figure.subplots(len(scores), len(ood_sets), squeeze=False, sharex="row")
    for row, (scorer, found) in zip(axes, scores.items(), strict=True):
        inside = found["in_distribution"].double()
        scale = inside.std() or 1.0  # all in-distribution scores may be equal
        units = {
            name: ((values.double() - inside.mean()) / scale).clamp(-1e9, 1e9).numpy() for name, values in found.items()
        }
        shown = np.arcsinh(np.concatenate(list(units.values())))  # equal bins on an axis that bends as symlog does
        edges = np.sinh(np.linspace(shown.min() - 0.05, shown.max() + 0.05, 45))
        for axis, ood_set in zip(row, ood_sets, strict=True):
            for name, colour in (("in_distribution", "#0b6e99"), (ood_set, "#d1495b")):
                weights = np.full(len(units[name]), 1 / len(units[name]))
                axis.hist(units[name], bins=edges, weights=weights, alpha=0.65, color=colour)
            axis.set_xscale("asinh", linear_width=1.0)
            axis.set_xticks(ticks := histogram_ticks(edges[0], edges[-1]), minor=False)
            axis.set_xticklabels([f"{at:g}" for at in ticks], fontsize=6)
            axis.set_xticks([], minor=True)
            axis.set_yticks([])
        row[0].set_ylabel(scorer.replace("_", " "), rotation=0, ha="right", va="center", fontsize=8)
    for axis, ood_set in zip(axes[0], ood_sets, strict=True):
        axis.set_title(ood_set.replace("_", " "), fontsize=9)
    figure.supxlabel("score, in standard deviations of the in-distribution scores (asinh scale)", fontsize=9)
    figure.suptitle("in distribution (blue) and out of distribution (red)", fontsize=10)
    save(figure, path)


def plot_chain_profiles(energies: Tensor, squared_errors: Tensor, path: Path) -> None:
    """The energy along the x-chain and the squared error along the z-chain: Figure 2 of Cui & Han 2023.

    Both have the shape (num_steps + 1, B): a value at the start and after each update.
    """
    figure = new_figure(8.4, 3.2)
    axes = figure.subplots(1, 2)
    panels = (
        (energies, "x-chain: energy of the samples", "E(x)"),
        (squared_errors, "z-chain: error of the reconstructions", "mean squared error"),
    )
    for axis, (values, title, label) in zip(axes, panels, strict=True):
        low, middle, high = np.quantile(values.double().numpy(), (0.25, 0.5, 0.75), axis=1)
        steps = np.arange(len(values))
        axis.fill_between(steps, low, high, color="#0b6e99", alpha=0.25, label="quartiles")
        axis.plot(steps, middle, color="#0b6e99", label="median")
        axis.set(xlabel="updates", ylabel=label)
        axis.set_title(title, fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def density_on_grid(energy_model: Any, limit: float, resolution: int) -> np.ndarray:
    """``exp(-E(x, 0))`` normalised to sum 1 over a square grid on [-limit, limit]^2, shape (resolution, resolution)."""
    line = torch.linspace(-limit, limit, resolution)
    points = torch.cartesian_prod(line, line)
    energies = compute_energies(energy_model, points, batch_size=16_384).double()
    return torch.softmax(-energies, dim=0).reshape(resolution, resolution).T.numpy()


def plot_2d(samples: Tensor, energy_model: Any, data: Tensor | None, path: Path, limit: float = 2.2) -> None:
    """Data (M, 2) where given, samples (N, 2) and density ``exp(-E(x, 0))`` side by side, on [-limit, limit]^2."""
    panels = [("data", data), ("samples", samples)] if data is not None else [("samples", samples)]
    figure = new_figure(4.0 * (len(panels) + 1), 4.2)
    axes = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    for axis, (name, points) in zip(axes, panels, strict=False):
        axis.plot(*points.cpu().numpy().T, ",", color="#0b6e99", alpha=0.6)
        axis.set_title(f"{name} ({len(points):,} points)", fontsize=10)
    density = density_on_grid(energy_model, limit, 400)
    axes[-1].imshow(density, origin="lower", extent=(-limit, limit, -limit, limit), cmap="magma")
    axes[-1].set_title("density exp(-E(x, 0))", fontsize=10)
    for axis in axes:
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    save(figure, path)


def save_grid(images: list[PIL.Image.Image], path: Path, num_columns: int | None = None) -> None:
    """Arrange images in a grid of `num_columns` columns (None: a square), small ones enlarged to 64 pixels, framed."""
    from diffusers.utils import make_image_grid

    num_columns = num_columns or max(1, int(len(images) ** 0.5))
    rows, scale = len(images) // num_columns, max(1, 64 // images[0].width)
    size = (images[0].width * scale, images[0].height * scale)
    border = max(1, size[0] // 16)
    shown = [
        PIL.ImageOps.expand(image.resize(size, PIL.Image.Resampling.NEAREST).convert("RGB"), border, "white")
        for image in images[: rows * num_columns]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(shown, rows=rows, cols=num_columns).save(path)
