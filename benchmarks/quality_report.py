"""The table and the two plots of `quality.py`: quality against sampling time, and against training time."""

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
    """Whether a run has been measured at its end."""
    return bool(run["looks"]) and run["looks"][-1]["training"]["steps"] >= run["max_steps"]


def last_looks(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The last looks of a contender's finished runs, one a seed."""
    return [run["looks"][-1] for run in record["runs"].get(name, {}).values() if is_finished(run)]


def seeds_cell(record: dict[str, Any], name: str) -> str:
    """How many runs a line is the mean of, and how many others ended early."""
    runs = record["runs"].get(name, {}).values()
    finished = sum(map(is_finished, runs))
    early = sum(not is_finished(run) and run.get("ended_early", False) for run in runs)
    return f"{finished}, {early} ended early" if early else str(finished)


def make_table(record: dict[str, Any], contenders: dict[str, Contender]) -> str:
    """One line a sampler, mean and standard deviation over seeds, the floor above."""
    heads = [heading for heading, _ in COLUMNS.values()]
    heads += ["AUROC", "sampled images/s", "training s", "trained images/s", "peak memory MiB", "saved parameters M"]
    heads += ["seeds"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    floor = [f"{record['floor'][name]:.{digits}f}" for name, (_, digits) in COLUMNS.items()]
    lines.append("| training images (the floor) | " + " | ".join(floor) + " | " * (len(heads) - len(floor)) + " |")
    for name, contender in contenders.items():
        looks, seeds = last_looks(record, name), seeds_cell(record, name)
        if not looks and "early" in seeds:
            lines += [f"| {sampler} | " + " | " * (len(heads) - 1) + f"{seeds} |" for sampler in contender.samplers]
        for sampler in contender.samplers if looks else ():
            found = [look["samplers"][sampler] for look in looks]
            training = [look["training"] for look in looks]
            cells = [cell([one[key] for one in found], digits) for key, (_, digits) in COLUMNS.items()]
            aurocs = [statistics.fmean(look["aurocs"].values()) for look in looks if look.get("aurocs")]
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


LOOKS = (("o", "-"), ("s", "--"), ("^", ":"))  # marker and line of a contender's first, second, third sampler


def plot(record: dict[str, Any], contenders: dict[str, Contender], path: Path) -> None:
    """Frechet distance against seconds per sampled image, and against seconds of training; lines through means."""
    figure = new_figure(10.5, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (name, contender) in enumerate(contenders.items()):
        colour = f"C{index}"
        looks = last_looks(record, name)
        points = []
        for sampler, (marker, _) in zip(contender.samplers if looks else (), cycle(LOOKS), strict=False):
            found = [look["samplers"][sampler] for look in looks]
            seconds = statistics.fmean(1.0 / one["images_per_second"] for one in found)
            distance = statistics.fmean(one["frechet_distance"] for one in found)
            points.append((seconds, distance))
            left.plot(*points[-1], marker=marker, color=colour)
        if points:
            left.plot(*zip(*points, strict=True), color=colour, linewidth=0.8)
        runs = [run["looks"] for run in record["runs"].get(name, {}).values()]
        for sampler, (marker, style) in zip(contender.samplers, cycle(LOOKS), strict=False):
            line = []
            for look in range(max(map(len, runs), default=0)):
                there = [looks[look] for looks in runs if len(looks) > look]
                if there:
                    seconds = statistics.fmean(one["training"]["seconds"] for one in there)
                    distance = statistics.fmean(one["samplers"][sampler]["frechet_distance"] for one in there)
                    line.append((seconds, distance))
            if line:
                right.plot(*zip(*line, strict=True), style, marker=marker, markersize=4, color=colour, label=sampler)
    for axis, label in ((left, "seconds per sampled image"), (right, "seconds of training")):
        axis.axhline(record["floor"]["frechet_distance"], color="gray", linewidth=0.8)
        axis.set(xlabel=label, yscale="log")
    left.set(xscale="log", ylabel="Frechet distance (gray: training images)")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


def write_report(record: dict[str, Any], contenders: dict[str, Contender], folder: Path) -> None:
    """Write ``table.md`` and ``quality.png``."""
    (folder / "table.md").write_text(make_table(record, contenders), encoding="utf-8")
    plot(record, contenders, folder / "quality.png")
