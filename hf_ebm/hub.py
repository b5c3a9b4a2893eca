"""Model cards: a Jinja template of `hf_ebm.model_cards`, filled with what a run folder knows, and nothing else.

How to write one is in ``model_cards/guide.md``.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from hf_ebm.card_tables import frechet_name, is_local, ood_table, public_name, sample_table, toy_table
from hf_ebm.counting import counted, duration
from hf_ebm.licenses import check_license
from hf_ebm.pull import INDEX, SETTINGS
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.scoring.score_words import SCORE_WORDS
from hf_ebm.toy_data import TOY_NAMES
from hf_ebm.whole_files import whole_file

CARD, SUMMARY = "README.md", "train_summary.json"
PICTURES = (  # that runs and commands draw of a model, by the names that cards show them under
    "samples.png",
    "ood.png",
    "roc.png",
    "histograms.png",
    "chains.png",
    "reconstructions.png",
)
TEMPLATES = Path(__file__).parent / "model_cards"
TEMPLATE_OF = {  # a pipeline's class -> the template of its card
    "DDAEBMPipeline": "ddaebm.md",
    "DualMCMCPipeline": "dual_mcmc.md",
    "EnergyScoringPipeline": "energy_scoring.md",
}
GENERATED = "<!-- Written by hf-ebm, which will write it anew. Delete this line to keep what you change. -->"
MAX_FILE_NAME = 255  # of most file systems: what is longer is a text
PART = r"/[^\s/\"'`<>|,;:*()\[\]{}]+"
# an absolute path inside a longer text: not a URL's, and not the slash of "images/s"
PATH_IN_TEXT = re.compile(rf"(?<![\w./~-])(?:file://)?(?:~[\w.-]*(?:{PART})+|(?:{PART}){{2,}})/?")
HOMES = re.compile(r"/(?:home|Users)/|/root/")
PRIVATE_SETTINGS = (
    "output_dir",
    "overwrite_output_dir",
    "resume",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
    "push_every_checkpoint",
)


class Missing(StrictUndefined):
    """A value that a template does not find: ``{% if %}`` may ask for it, printing it is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def hardware_name(num_processes: int = 1) -> str:
    """The machine in words: its GPU, or its CPU and the number of threads torch uses, in each of the processes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {counted(torch.get_num_threads(), 'CPU thread')}{' each' if num_processes > 1 else ''}"


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
                dataset_name=dataset,  # one for all: the Hub's form merges the results of a data set
                metric_type="auroc",
                metric_name=f"AUROC against {name}",
                metric_value=value,
            )
        )
    return results


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run, or an empty mapping where they are not known.

    Raises:
        ValueError: If the file is no YAML mapping.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} must hold 'key: value' lines, got {type(settings).__name__}.")
    return settings


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what concerns this machine alone; of a folder or file only its name."""
    return public_values({name: value for name, value in settings.items() if name not in PRIVATE_SETTINGS})


def public_values(value: Any) -> Any:
    """JSON or YAML values with only the last part of all local paths in them; keys that become equal are numbered.

    A path may be the whole of a key or value, or stand inside a longer text.
    """
    if isinstance(value, dict):
        public: dict[Any, Any] = {}
        for key, part in value.items():
            name = first = public_values(key)
            number = 1
            while name in public:
                number += 1
                name = f"{first} ({number})"
            public[name] = public_values(part)
        return public
    if isinstance(value, list | tuple):
        return type(value)(public_values(part) for part in value)
    if not isinstance(value, str) or not ("/" in value or "\\" in value):
        return value
    # a line longer than any file name is prose, whose paths are rewritten one by one
    is_name = "\n" not in value and max(map(len, value.split("/"))) <= MAX_FILE_NAME
    return public_name(value) if is_name and is_local(value) else PATH_IN_TEXT.sub(last_part, value)


def last_part(match: re.Match[str]) -> str:
    """The last part of a path that `PATH_IN_TEXT` found; "~5/s" is no path, as no user has that name."""
    path = match[0].removeprefix("file://")
    return match[0] if path.startswith("~") and not is_local(path) else public_name(path)


def public_card(text: str, folder: Path) -> str:
    """A card's text with only the last part of paths in home folders, the working folder and the run folder."""
    here = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve())} - {"/"}

    def last_part_if_private(match: re.Match[str]) -> str:
        path = os.path.expanduser(match[0].removeprefix("file://"))
        is_private = HOMES.match(path) or any(path == place or path.startswith(f"{place}/") for place in here)
        return last_part(match) if is_private else match[0]

    return PATH_IN_TEXT.sub(last_part_if_private, text)


def knows_its_run(folder: Path) -> bool:
    """Whether a pipeline folder has more to tell than its pipeline: a run's settings, summary or metrics, or a card."""
    return any((folder / name).is_file() for name in (SETTINGS, SUMMARY, "metrics.json", CARD))


def render_card(
    folder: Path, repo_id: str | None = None, license: str | None = None, license_name: str | None = None
) -> ModelCard:
    """The card of a pipeline folder from what lies in it; what is not known is left out.

    A ``README.md`` without the line `GENERATED` is somebody's own: of it the metrics are refreshed and nothing else.

    Args:
        folder: A pipeline folder, with the run's ``settings.yaml``, ``train_summary.json``, ``metrics.json``, ... if
            they are there.
        repo_id: Where it will be on the Hub; None = the code in the card loads the folder it is in.
        license: Licence id of the weights (`hf_ebm.licenses`); None = that of the run's settings, and with none there
            the card states none.
        license_name: The licence's name, where `license` is ``"other"``.

    Raises:
        ValueError: If the template needs a value that is missing; it names both. If there is no template of the class,
            or the licence is not in the Hub's list.
    """
    settings = public_settings(read_settings(folder))
    if license is not None:
        settings |= {"license": license, "license_name": license_name}
    check_license("license", settings.get("license"), settings.get("license_name"))
    metrics, evaluation, ood, summary = (
        public_values(read_json(folder / name)) for name in ("metrics.json", "evaluate.json", "ood.json", SUMMARY)
    )
    results = evaluation_results(metrics, settings.get("dataset", "unknown"), evaluation, ood)
    title = (repo_id or folder.resolve().name).split("/")[-1]
    own = folder / CARD
    if own.is_file() and GENERATED not in own.read_text(encoding="utf-8"):
        card = ModelCard.load(own)
        if results:
            card.data.model_name, card.data.eval_results = card.data.model_name or title, results
        if license is not None:
            card.data.license, card.data.license_name = license, license_name
        return card
    index = read_json(folder / INDEX)
    dataset = settings.get("dataset", "")
    data = ModelCardData(
        license=settings.get("license"),
        license_name=settings.get("license_name"),
        library_name="hf-ebm",
        pipeline_tag="unconditional-image-generation",
        tags=["energy-based-model", "out-of-distribution-detection", "diffusers"],
        datasets=[dataset] if "/" in dataset else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    class_name = index.get("_class_name")
    if class_name not in TEMPLATE_OF:
        raise ValueError(
            f"{folder} holds a {class_name}; there are cards of {', '.join(TEMPLATE_OF)} only. Save it as one of them."
        )
    template = TEMPLATE_OF[class_name]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=Missing)
    try:
        text = environment.get_template(template).render(
            card_data=data.to_yaml(),
            generated=GENERATED,
            title=title,
            repo_id=repo_id or ".",
            index=index,
            scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
            settings=settings,
            unused=("license", "license_name", *(() if dataset in TOY_NAMES else ("num_toy_samples",))),
            license=settings.get("license_name") or settings.get("license"),
            metrics=metrics,
            counted=counted,
            duration=duration,
            score_words=SCORE_WORDS,
            toy=dataset in TOY_NAMES,
            toy_table=toy_table(metrics),
            sample_table=sample_table(evaluation),
            reconstruction_measured=bool(evaluation.get("reconstruction")),
            ood_table=ood_table(ood),
            summary=summary,
            calibration=Calibration.load(folder),
            pictures=[name for name in PICTURES if (folder / name).is_file()],
        )
    except UndefinedError as error:
        raise ValueError(f"model card template {template}: {error}; the folder {folder} lacks it.") from error
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text) + "\n")  # what was left out leaves no gap


def write_card(folder: Path, repo_id: str | None = None) -> Path:
    """Write ``README.md`` of a pipeline folder, see `render_card`, whole or not at all."""
    with whole_file(folder / CARD) as temporary:
        temporary.write_text(str(render_card(folder, repo_id)), encoding="utf-8")
    return folder / CARD


def refresh_card(folder: Path) -> bool:
    """Write the card of a pipeline folder anew if there is one that is ours; whether there was."""
    card = folder / CARD
    ours = (folder / INDEX).is_file() and card.is_file() and GENERATED in card.read_text(encoding="utf-8")
    if ours:
        write_card(folder)
    return ours
