"""Figures of the demo: filmstrips over energy curves, and score histograms, narrow enough for a phone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.demo.generation import Generation
from hf_ebm.demo.reconstruction import Reconstruction
from hf_ebm.demo.verdict import Reference
from hf_ebm.evaluation.plots import heat_map_figure, new_figure

WIDTH = 5.2  # inches: 9-point letters stay readable when a phone shows it 3.5 inches wide
DPI = 160
MAX_SHOWN = 6  # states in a strip
MAX_TICK_GAPS = 6  # of a histogram's axis: energies may need a sign and five digits
COLOURS = ("#0b6e99", "#d1495b", "#2e7d32")
GRAY = "#9aa5ab"


def to_pil(figure: Any) -> PIL.Image.Image:
    """Render a matplotlib figure as a PIL image."""
    file = io.BytesIO()
    figure.draw_without_rendering()  # first layout pass: it may change the tick labels, and so the room they need
    figure.savefig(file, format="png", dpi=DPI)
    return PIL.Image.open(file, formats=["PNG"])


def show_state(axis: Any, x: Tensor, colour: str | None = None) -> None:
    """Show one image in [0, 1], shape (C, S, S), in a frame of `colour`, or a thin gray one."""
    pixels = x.permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0.0, vmax=1.0)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour or GRAY, linewidth=2.0 if colour else 0.8)


def shown_points(number: int) -> list[int]:
    """Select at most `MAX_SHOWN` evenly spaced points of 0 .. number - 1, including both ends."""
    return sorted({round(point) for point in np.linspace(0, number - 1, min(number, MAX_SHOWN))})


def filmstrip(generation: Generation, reference: Reference | None = None) -> PIL.Image.Image:
    """Plot the first samples' states, one row each, above the energies of all samples at all points."""
    points = shown_points(len(generation.states))
    num_rows = generation.states.shape[1]
    cell = WIDTH / (len(points) + 0.6) if len(points) > 3 else WIDTH / 4.6
    figure = new_figure(WIDTH, 3.0 + num_rows * cell)
    strip, curve = figure.subfigures(2, 1, height_ratios=(num_rows * cell + 0.2, 2.8))
    axes = strip.subplots(num_rows, len(points), squeeze=False)
    for row in range(num_rows):
        for axis, point in zip(axes[row], points, strict=True):
            show_state(axis, to_unit_range(generation.states[point, row]), COLOURS[row])
    for axis, point in zip(axes[0], points, strict=True):
        axis.set_title(generation.point_names[point], fontsize=9)

    axis = curve.subplots()
    steps = np.arange(len(generation.energies))
    for index, energies in reversed(list(enumerate(generation.energies.T.numpy()))):
        watched = index < num_rows
        axis.plot(
            steps,
            energies,
            marker="o",
            markersize=3,
            color=COLOURS[index] if watched else GRAY,
            linewidth=1.6 if watched else 0.8,
            alpha=1.0 if watched else 0.6,
            label=f"sample {index + 1}" if watched else "others" if index == num_rows else None,
        )
    if reference is not None and reference.threshold is not None:
        low, high = reference.scores.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        axis.axhspan(low, high, color="#f2c14e", alpha=0.35, linewidth=0, label="in-distribution (90 %)")
    ticks = shown_points(len(steps))
    axis.set_xticks(ticks, [generation.point_names[tick].removeprefix("step ") for tick in ticks])
    axis.set(xlabel="step", ylabel="energy (low = likely)")
    handles, labels = ordered_legend(axis)
    layout = {"ncols": len(labels), "handlelength": 1.2, "columnspacing": 1.0}
    curve.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper left", **layout)
    return to_pil(figure)


def ordered_legend(axis: Any) -> tuple[list[Any], list[str]]:
    """Return the handles and labels of an axis, sorted by label."""
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return [handles[i] for i in order], [labels[i] for i in order]


def score_histogram(reference: Reference, score: float, score_name: str) -> PIL.Image.Image:
    """Plot the reference scores as a histogram, with the threshold and the score of an image; a far one at the edge."""
    low, high = float(reference.scores.min()), float(reference.scores.max())
    span = max(high - low, 1e-12)
    left, right = max(low - 0.6 * span, min(low, 0.0)), high + 0.9 * span  # no negative axis for scores >= 0
    left, right = max(left, min(low, score)), min(right, max(high, score))  # no empty margins
    figure = new_figure(WIDTH, 3.0)
    axis = figure.subplots()
    axis.hist(reference.scores.numpy(), bins=24, color=COLOURS[0], alpha=0.7, label=reference.name)
    if reference.threshold is not None:
        axis.axvline(reference.threshold, color=GRAY, linestyle="--", label="flagged as OOD to the right")
    top = axis.get_ylim()[1]
    place = min(max(score, left), right)
    axis.axvline(place, color=COLOURS[1], linewidth=2.2, label="this image")
    if place != score:
        arrow, aligned = ("\u2192", "right") if score > right else ("\u2190", "left")
        text = f"{score:.3g} {arrow} " if score > right else f" {arrow} {score:.3g}"
        axis.text(place, 0.5 * top, text, color=COLOURS[1], ha=aligned, va="center", fontsize=9)
    margin = 0.03 * max(right - left, span)
    words = score_name.replace("_", " ")
    label = "energy (low = likely)" if score_name == "energy" else f"{words} score (low = in-distribution)"
    axis.locator_params(axis="x", nbins=MAX_TICK_GAPS)
    axis.set(xlim=(left - margin, right + margin), ylim=(0, 1.05 * top), xlabel=label, ylabel="images")
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=2)
    return to_pil(figure)


def heat_map(x: Tensor, values: Tensor) -> PIL.Image.Image:
    """Plot an image in [0, 1], shape (C, S, S), beside its heat map, shape (S, S)."""
    return to_pil(heat_map_figure(x, values, WIDTH))


def reconstruction_figure(reconstruction: Reconstruction) -> PIL.Image.Image:
    """Plot the original and both reconstructions, above the error along the z-chain."""
    errors = reconstruction.errors
    num_steps = len(errors) - 1
    figure = new_figure(WIDTH, 4.6)
    strip, curve = figure.subfigures(2, 1, height_ratios=(2.1, 2.5))
    panels = (
        ("original", reconstruction.original),
        (f"inferred\nerror {errors[0]:.3f}", reconstruction.inferred),
        (f"after {num_steps} steps\nerror {errors[-1]:.3f}", reconstruction.revised),
    )
    for axis, (title, x) in zip(strip.subplots(1, 3), panels, strict=True):
        show_state(axis, x[0])
        axis.set_title(title, fontsize=9)
    axis = curve.subplots()
    axis.plot(np.arange(len(errors)), errors.numpy(), marker="o", markersize=3, color=COLOURS[0])
    axis.set(xlabel="step", ylabel="mean squared error")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if num_steps == 0:
        axis.set_xticks([0])
    axis.set_ylim(0.0, 1.1 * float(errors.max()))
    return to_pil(figure)


def interpolation_figure(frames: Tensor, energies: Tensor) -> PIL.Image.Image:
    """Plot frames (F, C, S, S) in reading order, above their energies (F,)."""
    number = len(frames)
    columns = min(number, 6)
    rows = -(-number // columns)
    cell = WIDTH / (columns + 0.6) if columns > 3 else WIDTH / 4.6
    figure = new_figure(WIDTH, 2.8 + rows * (cell + 0.2))
    strip, curve = figure.subfigures(2, 1, height_ratios=(rows * (cell + 0.2), 2.6))
    for index, axis in enumerate(strip.subplots(rows, columns, squeeze=False).flat):
        if index < number:
            show_state(axis, frames[index])
            axis.set_title(str(index + 1), fontsize=9)
        else:
            axis.set_axis_off()
    axis = curve.subplots()
    axis.plot(np.arange(1, number + 1), energies.numpy(), marker="o", markersize=4, color=COLOURS[0])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="frame", ylabel="energy (low = likely)")
    return to_pil(figure)
