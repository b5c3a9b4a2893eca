"""Table and plots of `quality.py`: sample quality against sampling time and training time."""

from __future__ import annotations

import statistics
from itertools import cycle
from pathlib import Path
from typing import Any

from ablations import cell
from quality_methods import Contender

from hf_ebm.evaluation.plots import new_figure

COLUMNS = {
    "frechet_distance": ("FD", 2),
    "kernel_distance": ("kernel distance", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
}


def is_finished(run: dict[str, Any]) -> bool:
    """Whether a run was evaluated after its last step."""
    return bool(run["evaluations"]) and run["evaluations"][-1]["training"]["steps"] >= run["max_steps"]


def last_evaluations(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The last evaluation of each finished run of a contender."""
    return [run["evaluations"][-1] for run in record["runs"].get(name, {}).values() if is_finished(run)]


def seeds_cell(record: dict[str, Any], name: str) -> str:
    """The number of finished runs, and of those that ended early."""
    runs = record["runs"].get(name, {}).values()
    finished = sum(map(is_finished, runs))
    early = sum(not is_finished(run) and run.get("ended_early", False) for run in runs)
    return f"{finished}, {early} ended early" if early else str(finished)


def make_table(record: dict[str, Any], contenders: dict[str, Contender]) -> str:
    """A row per sampler, mean and standard deviation over seeds, below the real-vs-real distances."""
    heads = [heading for heading, _ in COLUMNS.values()]
    heads += ["AUROC", "sampled images/s", "training s", "trained images/s", "peak memory MiB", "saved parameters M"]
    heads += ["seeds"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    real = [f"{record['real_vs_real'][name]:.{digits}f}" for name, (_, digits) in COLUMNS.items()]
    lines.append("| training images (real vs real) | " + " | ".join(real) + " | " * (len(heads) - len(real)) + " |")
    for name, contender in contenders.items():
        evaluations, seeds = last_evaluations(record, name), seeds_cell(record, name)
        if not evaluations and "early" in seeds:
            lines += [f"| {sampler} | " + " | " * (len(heads) - 1) + f"{seeds} |" for sampler in contender.samplers]
        for sampler in contender.samplers if evaluations else ():
            found = [evaluation["samplers"][sampler] for evaluation in evaluations]
            training = [evaluation["training"] for evaluation in evaluations]
            cells = [cell([one[key] for one in found], digits) for key, (_, digits) in COLUMNS.items()]
            aurocs = [
                statistics.fmean(evaluation["aurocs"].values())
                for evaluation in evaluations
                if evaluation.get("aurocs")
            ]
            cells += [
                cell(aurocs, 3) if aurocs else "",
                f"{statistics.fmean(one['images_per_second'] for one in found):.0f}",
                f"{statistics.fmean(one['seconds'] for one in training):.0f}",
                f"{statistics.fmean(one['images_per_second'] for one in training):.0f}",
                f"{max(one['peak_memory_bytes'] for one in training) / 2**20:.0f}",
                f"{sum(training[0]['parameters'].values()) / 1e6:.2f}",
                seeds,
            ]
            lines.append(f"| {sampler} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


STYLES = (("o", "-"), ("s", "--"), ("^", ":"))  # marker and line of a contender's samplers


def plot(record: dict[str, Any], contenders: dict[str, Contender], path: Path) -> None:
    """Plot the mean Frechet distance against seconds per sampled image and against seconds of training."""
    figure = new_figure(10.5, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (name, contender) in enumerate(contenders.items()):
        colour = f"C{index}"
        evaluations = last_evaluations(record, name)
        points = []
        for sampler, (marker, _) in zip(contender.samplers if evaluations else (), cycle(STYLES), strict=False):
            found = [evaluation["samplers"][sampler] for evaluation in evaluations]
            seconds = statistics.fmean(1.0 / one["images_per_second"] for one in found)
            distance = statistics.fmean(one["frechet_distance"] for one in found)
            points.append((seconds, distance))
            left.plot(*points[-1], marker=marker, color=colour)
        if points:
            left.plot(*zip(*points, strict=True), color=colour, linewidth=0.8)
        runs = [run["evaluations"] for run in record["runs"].get(name, {}).values()]
        for sampler, (marker, style) in zip(contender.samplers, cycle(STYLES), strict=False):
            line = []
            for number in range(max(map(len, runs), default=0)):
                there = [evaluations[number] for evaluations in runs if len(evaluations) > number]
                if there:
                    seconds = statistics.fmean(one["training"]["seconds"] for one in there)
                    distance = statistics.fmean(one["samplers"][sampler]["frechet_distance"] for one in there)
                    line.append((seconds, distance))
            if line:
                right.plot(*zip(*line, strict=True), style, marker=marker, markersize=4, color=colour, label=sampler)
    for axis, label in ((left, "seconds per sampled image"), (right, "seconds of training")):
        axis.axhline(record["real_vs_real"]["frechet_distance"], color="gray", linewidth=0.8)
        axis.set(xlabel=label, yscale="log")
    left.set(xscale="log", ylabel="Frechet distance (gray: real vs real)")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


def write_report(record: dict[str, Any], contenders: dict[str, Contender], folder: Path) -> None:
    """Write ``table.md`` and ``quality.png``."""
    (folder / "table.md").write_text(make_table(record, contenders), encoding="utf-8")
    plot(record, contenders, folder / "quality.png")
