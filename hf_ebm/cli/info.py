"""``hf-ebm info``: describe the model in a run folder or Hub repository."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_ebm.cli.options import add_model_option
from hf_ebm.pipelines.loading import load_pipeline, model_folder
from hf_ebm.utils.validation import counted, duration

EVALUATIONS = ("metrics.json", "evaluate.json", "ood.json")


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "info",
        help="describe a model: method, components, sizes, sampler, calibration, training",
        description="Describe a model: method, components, sizes, sampler, calibration, training.",
        epilog="example: hf-ebm info --model outputs/ddaebm-digits",
    )
    add_model_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the description."""
    from hf_ebm.utils.files import to_json

    folder = model_folder(options.model, extra_files=("*.json",))
    found = {"model": options.model, **describe(load_pipeline(str(folder)), folder)}
    print(to_json(found, indent=2) if options.json else format_text(found))


def describe(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Describe a pipeline and the other files of its folder."""
    from torch import nn

    from hf_ebm.scoring.calibration import Calibration

    networks: dict[str, Any] = {}
    samplers: dict[str, Any] = {}
    for name, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            networks[name] = {
                "class": type(component).__name__,
                "parameters": sum(parameter.numel() for parameter in component.parameters()),
                "bytes": sum(path.stat().st_size for path in (folder / name).glob("*.safetensors")),
            }
        elif name.endswith("scheduler") and component is not None:
            settings = {key: value for key, value in dict(component.config).items() if not key.startswith("_")}
            samplers[name] = {"class": type(component).__name__, "settings": settings}
    calibration = Calibration.load(folder)
    summary = folder / "train_summary.json"
    return {
        "method": pipeline.method_name,
        "pipeline": type(pipeline).__name__,
        "sample_shape": list(pipeline.sample_shape),
        "tasks": list(pipeline.tasks),
        "preparation": None if pipeline.image_processor is None else pipeline.image_processor.describe(),
        "networks": networks,
        "samplers": samplers,
        "calibration": calibration
        and {
            "target_fpr": calibration.target_fpr,
            "num_samples": calibration.num_samples,
            "dataset": calibration.dataset,
            "scores": sorted(calibration.reference),
        },
        "training": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        "evaluations": [name for name in EVALUATIONS if (folder / name).is_file()],
    }


def format_text(found: dict[str, Any]) -> str:
    """Format the description as text."""
    shape = "x".join(map(str, found["sample_shape"]))
    lines = [f"{found['model']}: {found['method']} ({found['pipeline']}), samples of shape {shape}"]
    lines.append(f"  tasks: {', '.join(found['tasks'])}")
    if found["preparation"]:
        lines.append(f"  images are {found['preparation']}")
    for name, part in found["networks"].items():
        size = f"{part['parameters']:>12,} parameters {part['bytes'] / 1e6:>8.1f} MB"
        lines.append(f"  {name:<18}{part['class']:<24}{size}")
    for name, part in found["samplers"].items():
        settings = ", ".join(f"{key}={value}" for key, value in part["settings"].items())
        lines.append(f"  {name:<18}{part['class']}({settings})")
    calibration, training = found["calibration"], found["training"]
    lines.append(
        f"  calibrated on {calibration['num_samples']} samples"
        f"{' of ' + calibration['dataset'] if calibration['dataset'] else ''}, target_fpr={calibration['target_fpr']}"
        if calibration
        else "  not calibrated"
    )
    if training:
        lines.append(
            f"  trained for {training['steps']:,} steps on {training['num_images']:,} samples in "
            f"{duration(training['seconds'])} ({training['hardware']}, "
            f"{counted(training['num_processes'], 'process', 'processes')})"
        )
    if found["evaluations"]:
        lines.append(f"  evaluations: {', '.join(found['evaluations'])}")
    return "\n".join(lines)
