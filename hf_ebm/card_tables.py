"""The tables of a model card that come from ``metrics.json``, ``evaluate.json`` and ``ood.json``, as Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from hf_ebm.counting import counted

WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
LOCAL = re.compile(rf"/|\.{{1,2}}(?:/|$)|\.\w[^\s/]*/|{WINDOWS.pattern}")  # how a local path starts, apart from "~"
OTHER_METRICS = {  # of `hf_ebm.scoring.ood_metrics`, besides AUROC
    "aupr_out": "AUPR, odd images positive",
    "aupr_in": "AUPR, images like the training data positive",
    "fpr95": "FPR at 95 % TPR (share of these called odd where 95 % of the odd are found; lower is better)",
}

TOY_METRICS = {  # of `hf_ebm.scoring.modes` and `hf_ebm.scoring.near_data`
    "within_4_sigma": "samples within 4 standard deviations of one of the 25 modes, share",
    "num_modes": "modes that get samples, of 25",
    "balance": "samples of the smallest mode over those of the largest",
    "num_peaks": "separate regions of the density above 5 % of its highest value",
    "modes_with_a_peak": "modes inside such a region, of 25 (several may share one)",
    "mass_at_modes": "share of the density's mass at the modes",
    "reach": "near is what has a point of data within",
    "samples_near_data": "samples near the data, share (0.99 of data are)",
    "data_near_samples": "data near a sample, share",
    "mass_near_data": "share of the density's mass near the data",
}


def is_local(name: str) -> bool:
    """Whether a text is a path on this machine: one that exists, or one that has the form of a local path.

    It never raises: a text may be too long for a file name, or start like the home of a user who does not exist.
    """
    if name.startswith("~"):
        return name.startswith("~/") or os.path.expanduser(name) != name or os.path.exists(name)
    return LOCAL.match(name) is not None or os.path.exists(name)


def public_name(name: str) -> str:
    """A model's or data set's name as records and cards may show it: of a local path only its last part."""
    if not is_local(name):
        return name
    if WINDOWS.match(name):
        return PureWindowsPath(name).name
    path = os.path.expanduser(name)
    last = os.path.basename(path.rstrip("/"))
    return last if last not in ("", ".", "..") else os.path.basename(os.path.realpath(path)) or name


def frechet_name(feature_extractor: Mapping[str, Any]) -> str:
    """What a Frechet distance in these features is called: FID only with the standard Inception network."""
    if feature_extractor["is_standard_inception"]:
        return "FID"
    return f"Frechet distance ({feature_extractor['name']})"


def toy_table(metrics: Mapping[str, Any]) -> str:
    """What a training on a 2-D set measured of 10,000 samples and of ``exp(-E(x, 0))``; empty where it is not there."""
    lines = [f"| {words} | {metrics[name]:.4g} |" for name, words in TOY_METRICS.items() if name in metrics]
    head = ["| of 10,000 samples, and of `exp(-E(x, 0))` on a grid | |", "|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def sample_table(record: Mapping[str, Any]) -> str:
    """Metrics of samples and their floor from ``evaluate.json``; empty for an empty record."""
    if not record:
        return ""
    protocol, metrics = record["protocol"], record["metrics"]
    extractor, reference, floor = (protocol[key] for key in ("feature_extractor", "reference", "floor"))
    lines = [
        f"{protocol['num_images']:,} samples against the {reference['num_images']:,} images of "
        f"`{public_name(reference['dataset'])}`, split `{reference['split']}`, in the features of {extractor['name']}, "
        f"{counted(protocol['num_seeds'], 'seed')} from {protocol['seed']} on"
        + (f"; the floor: {floor['num_images']:,} images of `{floor['split']}`." if floor else "."),
        "",
        "| | samples | floor |",
        "|---|---|---|",
    ]
    for name, values in metrics.items():
        label = frechet_name(extractor).split(" (")[0] if name == "frechet_distance" else name.replace("_", " ")
        lines.append(f"| {label} | {show(values['samples'], values['std_over_seeds'])} | {show(values['floor'])} |")
    kernel = metrics.get("kernel_distance", {})
    if min(kernel.get("samples") or 0.0, kernel.get("floor") or 0.0) < 0.0:
        lines += ["", "The kernel distance is an unbiased estimate: of a distance near 0 it can be below 0."]
    found = record["reconstruction"]
    if found:
        lines += ["", f"Reconstruction of {found['num_images']:,} images:", ""]
        lines += [f"| | inference model alone | after {found['num_steps']} steps of the z-chain |", "|---|---|---|"]
        lines += [
            f"| {name.upper()} | {show_error(value)} | {show_error(found['z_chain'][name])} |"
            for name, value in found["inference_model"].items()
        ]
    lines += ["", *(f"{limit[0].upper()}{limit[1:]}" for limit in record["limits"])] if record["limits"] else []
    return "\n".join(lines)


def show(value: float | None, std: float | None = None) -> str:
    """A figure in four digits, with its standard deviation over seeds where it has one; empty for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if std is None else f"{value:.4g} ± {std:.2g}"


def show_error(value: float | None) -> str:
    """A reconstruction's figure in four decimals; None is a PSNR of perfect reconstructions."""
    return "infinite" if value is None else f"{value:.4f}"


def show_interval(figure: Mapping[str, float] | float) -> str:
    """A metric and its interval in three decimals; a figure alone (the means of an older ``ood.json``) as it is."""
    if isinstance(figure, float):
        return f"{figure:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def ood_table(record: Mapping[str, Any]) -> str:
    """Each score's AUROC on every odd set, and the other metrics' means, of ``ood.json``; empty for an empty record."""
    if not record:
        return ""
    from hf_ebm.scoring.odd_images import ODD_IMAGES

    protocol, table = record["protocol"], record["metrics"]
    inside = protocol["in_distribution"]
    names = " | ".join(name.replace("_", " ") for name in table) + " |\n" + "|---" * (len(table) + 1) + "|"

    def row(head: str, odd_set: str, metric: str) -> str:
        return f"| {head} | " + " | ".join(show_interval(of_sets[odd_set][metric]) for of_sets in table.values()) + " |"

    odd_sets = [*next(iter(table.values()))]
    lines = [
        f"AUROC of {inside['num_images']:,} images of `{public_name(inside['dataset'])}`, split `{inside['split']}`, "
        f"against odd images; in brackets the interval ({protocol['intervals']}). Images: {protocol['preprocessing']}. "
        f"Seed {protocol['seed']}. Simple baselines: {', '.join(protocol['scores']['baselines']) or 'none'}.",
        "",
        f"| odd images | {names}",
        *(row(public_name(odd_set), odd_set, "auroc") for odd_set in odd_sets),
        "",
        "Other metrics, means over the odd images:",
        "",
        f"| mean | {names}",
        *(row(words, "mean", metric) for metric, words in OTHER_METRICS.items()),
    ]
    words = [f"`{name}`: {ODD_IMAGES[name].__doc__}" for name in odd_sets if name in ODD_IMAGES]
    lines += ["", f"Made of the same images: {' '.join(words)}"] if words else []
    return "\n".join(lines)
