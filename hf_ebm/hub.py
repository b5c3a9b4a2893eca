"""Model cards: a Jinja template of `hf_ebm.model_cards`, filled with what a run folder knows, and nothing else."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_ebm.card_tables import frechet_name, ood_table, public_name, sample_table

TEMPLATES = Path(__file__).parent / "model_cards"


def hardware_name() -> str:
    """The machine in words: its GPU, or its CPU and the number of threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} CPU threads"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluation_results(
    metrics: dict[str, Any], dataset: str, evaluation: dict[str, Any], ood: dict[str, Any]
) -> list[EvalResult]:
    """Metrics of a run (``metrics.json``) in the Hub's model-index form.

    Those of `evaluation` (``evaluate.json``) and `ood` (``ood.json``) stand in for the same ones of `metrics`.
    """
    results = []
    frechet = None if evaluation else metrics.get("frechet_distance")
    if evaluation:
        reference = evaluation["protocol"]["reference"]
        for name, values in evaluation["metrics"].items():
            if name.endswith("_std"):
                continue
            results.append(
                EvalResult(
                    task_type="unconditional-image-generation",
                    dataset_type=public_name(reference["dataset"]),
                    dataset_name=public_name(reference["dataset"]),
                    dataset_split=reference["split"],
                    metric_type=name,
                    metric_name=frechet_name(evaluation["protocol"]["feature_extractor"])
                    if name == "frechet_distance"
                    else name.replace("_", " "),
                    metric_value=values["samples"],
                )
            )
    if frechet:
        results.append(
            EvalResult(
                task_type="unconditional-image-generation",
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type="frechet_distance",
                metric_name=f"Frechet distance ({frechet['feature_extractor']})",
                metric_value=frechet["samples"],
            )
        )
    auroc = metrics.get("auroc", {})
    if ood:
        rows = ood["metrics"][ood["protocol"]["scores"]["of_the_model"][0]]
        auroc = {public_name(name): row["auroc"]["value"] for name, row in rows.items() if name != "mean"}
    for name, value in auroc.items():
        results.append(
            EvalResult(
                task_type="out-of-distribution-detection",
                dataset_type=dataset,
                dataset_name=f"{dataset} against {name}",
                metric_type="auroc",
                metric_name=f"AUROC against {name}",
                metric_value=value,
            )
        )
    return results


def write_card(folder: Path, template: str, title: str) -> Path:
    """Write ``README.md`` of a run folder from its settings, its summary, and the metrics that lie there.

    They are in ``metrics.json``, ``evaluate.json`` (of ``hf-ebm evaluate``) and ``ood.json`` (of ``hf-ebm eval-ood``).

    Args:
        folder: The run folder; ``settings.yaml`` is read if it is there.
        template: Name of a template, for example ``"ddaebm.md"``.
        title: Heading of the card and name in the model index.
    """
    settings_file = folder / "settings.yaml"
    settings = yaml.safe_load(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    metrics = read_json(folder / "metrics.json")
    dataset = settings.get("dataset", "unknown data set")
    evaluation, ood = read_json(folder / "evaluate.json"), read_json(folder / "ood.json")
    results = evaluation_results(metrics, dataset, evaluation, ood)
    data = ModelCardData(
        license="apache-2.0",
        library_name="hf-ebm",
        pipeline_tag="unconditional-image-generation",
        tags=["energy-based-model", "out-of-distribution-detection", "diffusers"],
        datasets=[dataset] if "/" in dataset and not Path(dataset).exists() else None,
        model_name=title,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / template),
        title=title,
        settings=settings,
        metrics=metrics,
        sample_table=sample_table(evaluation),
        ood_table=ood_table(ood),
        summary=read_json(folder / "train_summary.json"),
        pictures=[path.name for path in sorted(folder.glob("*.png"))],
    )
    path = folder / "README.md"
    card.save(path)
    return path
