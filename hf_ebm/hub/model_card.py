"""Model cards: Jinja templates of `hf_ebm.model_cards`, filled with what a run folder contains.

The tables come from ``metrics.json``, ``evaluate.json`` and ``ood.json``. Licence ids are those of the Hub's list.
Local paths are reduced to their last part. ``model_cards/guide.md`` explains how to write a template.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from hf_ebm import EXPORTS
from hf_ebm.hub.download import INDEX, SETTINGS
from hf_ebm.utils.files import whole_file
from hf_ebm.utils.validation import counted, did_you_mean, duration

WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
LOCAL = re.compile(rf"/|\.{{1,2}}(?:/|$)|\.\w[^\s/]*/|{WINDOWS.pattern}")  # how a local path starts, apart from "~"
OOD_METRICS = {  # of `hf_ebm.evaluation.ood`
    "auroc": "AUROC",
    "aupr_out": "AUPR, OOD positive",
    "aupr_in": "AUPR, in-distribution positive",
    "fpr95": "FPR at 95 % TPR",
}

TOY_METRICS = {  # of `hf_ebm.evaluation.toy_metrics` and `hf_ebm.evaluation.toy_metrics`
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
    """Metrics that training on 2-D data computed of 10,000 samples and of ``exp(-E(x, 0))``; empty if missing."""
    lines = [f"| {words} | {metrics[name]:.4g} |" for name, words in TOY_METRICS.items() if name in metrics]
    head = ["| of 10,000 samples, and of `exp(-E(x, 0))` on a grid | |", "|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def sample_table(record: Mapping[str, Any]) -> str:
    """Metrics of samples beside real-vs-real distances from ``evaluate.json``; empty for an empty record."""
    if not record:
        return ""
    protocol, metrics = record["protocol"], record["metrics"]
    extractor, reference, floor = (protocol[key] for key in ("feature_extractor", "reference", "floor"))
    lines = [
        f"{protocol['num_images']:,} samples against the {reference['num_images']:,} images of "
        f"`{public_name(reference['dataset'])}`, split `{reference['split']}`, in the features of {extractor['name']}, "
        f"{counted(protocol['num_seeds'], 'seed')} from {protocol['seed']} on"
        + (f"; real vs real: {floor['num_images']:,} images of `{floor['split']}`." if floor else "."),
        "",
        "| | samples | real vs real |",
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
        lines += [f"| | inference model only | after {found['num_steps']} steps of the z-chain |", "|---|---|---|"]
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
    """A metric and its interval in three decimals; a number without interval (older ``ood.json``) unchanged."""
    if isinstance(figure, float):
        return f"{figure:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def ood_table(record: Mapping[str, Any]) -> str:
    """A row for each score: AUROC on every OOD set, and all metrics' means; empty for an empty record of ``ood.json``.

    Only the means have intervals, or the table would be too wide.
    """
    if not record:
        return ""
    protocol, table = record["protocol"], record["metrics"]
    inside = protocol["in_distribution"]
    ood_sets = [*next(iter(table.values()))]

    def rows(heads: Iterable[str], cells: Callable[[Any], list[str]]) -> list[str]:
        lines = [["score", *heads], *([name.replace("_", " "), *cells(of_sets)] for name, of_sets in table.items())]
        head, *others = (f"| {' | '.join(line)} |" for line in lines)
        return [head, "|---" * len(lines[0]) + "|", *others]

    lines = [
        f"AUROC of {inside['num_images']:,} images of `{public_name(inside['dataset'])}`, split `{inside['split']}`, "
        f"against OOD images. Images: {protocol['preprocessing']}. Seed {protocol['seed']}. "
        f"Simple baselines: {', '.join(protocol['scores']['baselines']) or 'none'}.",
        "",
        *rows(
            map(public_name, ood_sets),
            lambda of_sets: [show_interval(of_sets[name]["auroc"]).split()[0] for name in ood_sets],
        ),
        "",
        f"Means over the OOD sets, in brackets the interval ({protocol['intervals']}); of each set they are in "
        "`ood.json`. FPR at 95 % TPR, lower is better, is the share of in-distribution images flagged where 95 % of "
        "the OOD images are.",
        "",
        *rows(OOD_METRICS.values(), lambda of_sets: [show_interval(of_sets["mean"][name]) for name in OOD_METRICS]),
    ]
    descriptions = protocol.get("descriptions", {})
    words = [f"`{name}`: {descriptions[name]}" for name in ood_sets if name in descriptions]
    lines += ["", f"Synthetic OOD sets, made from the same images: {' '.join(words)}"] if words else []
    return "\n".join(lines)


LIST = "https://huggingface.co/docs/hub/repositories-licenses"
OTHER = "other"  # any licence that is not in the Hub's list; the card then gives its name
IDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
odbl odc-by ofl-1.1 open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(IDS.split())


def check_license(argument: str, license_id: str | None, license_name: str | None) -> None:
    """Raise a `ValueError` unless a licence is None, an id of the Hub's list, or ``"other"`` with a name.

    Args:
        argument: How the caller calls the id, for the message: ``"license"`` or ``"--license"``.
        license_id: The id.
        license_name: The name of a licence that is not in the list.
    """
    name_argument = f"{argument}{'-name' if argument.startswith('--') else '_name'}"
    if license_id is not None and license_id not in LICENSES:
        near = did_you_mean(license_id, LICENSES, f"the list is at {LIST}.")
        raise ValueError(
            f"{argument} must be a licence id of the Hub such as mit or cc-by-nc-4.0, or other with {name_argument}, "
            f"got {license_id!r}; {near}"
        )
    if (license_id == OTHER) != bool(license_name):
        raise ValueError(f"{name_argument} is needed for {argument} other, and only for it; got {license_id!r}.")


CARD, SUMMARY, CALIBRATION = "README.md", "train_summary.json", "calibration.json"
CONVERSION = "conversion.json"  # of what checkpoint a converted pipeline is
IMAGE_FILES = (  # written by runs and commands, and shown by cards
    "samples.png",
    "ood.png",
    "roc.png",
    "histograms.png",
    "chains.png",
    "reconstructions.png",
)
VALIDATION_PLOT = "validation.png"
TEMPLATES = Path(__file__).parents[1] / "model_cards"
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
)


class Missing(StrictUndefined):
    """A value that a template does not find: ``{% if %}`` may ask for it, printing it is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


@functools.cache
def template_environment() -> Environment:
    """Return the environment of the card templates, which keeps them compiled."""
    return Environment(loader=FileSystemLoader(TEMPLATES), undefined=Missing)


def hardware_name(num_processes: int = 1) -> str:
    """Describe the machine: its GPU, or its CPU and the number of torch threads, of each process."""
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
    metrics: dict[str, Any],
    dataset: str,
    evaluation: dict[str, Any],
    ood: dict[str, Any],
    generation: str = "unconditional-image-generation",
) -> list[EvalResult]:
    """Metrics of a run (``metrics.json``) in the Hub's model-index form; those of samples have the task `generation`.

    Those of `evaluation` (``evaluate.json``) and `ood` (``ood.json``) stand in for the same ones of `metrics`.
    """

    def result(task: str, data: str, metric: str, name: str, value: float, split: str | None = None) -> EvalResult:
        return EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,  # one for all OOD sets: the Hub's form merges the results of a data set
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )

    results = []
    if evaluation:
        reference, extractor = (evaluation["protocol"][key] for key in ("reference", "feature_extractor"))
        for name, values in evaluation["metrics"].items():
            if not name.endswith("_std"):
                shown = frechet_name(extractor) if name == "frechet_distance" else name.replace("_", " ")
                data = public_name(reference["dataset"])
                results.append(result(generation, data, name, shown, values["samples"], reference["split"]))
    elif frechet := metrics.get("frechet_distance"):
        shown = f"Frechet distance ({frechet['feature_extractor']})"
        results.append(result(generation, dataset, "frechet_distance", shown, frechet["samples"]))
    if found := metrics.get("classification"):
        results.append(result("image-classification", dataset, "accuracy", "accuracy of p(y | x)", found["accuracy"]))
    auroc = metrics.get("auroc", {})
    if ood:
        rows = ood["metrics"][ood["protocol"]["scores"]["of_the_model"][0]]
        auroc = {public_name(name): row["auroc"]["value"] for name, row in rows.items() if name != "mean"}
    task = "out-of-distribution-detection"
    return results + [result(task, dataset, "auroc", f"AUROC against {name}", value) for name, value in auroc.items()]


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
    """Settings without those of this machine; of a folder or file only its name."""
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


def card_templates() -> dict[str, str]:
    """The template of each exported pipeline's card: ``<method>.md`` where its module is ``pipeline_<method>``."""
    start = "hf_ebm.pipelines.pipeline_"
    return {name: f"{module.removeprefix(start)}.md" for name, module in EXPORTS.items() if module.startswith(start)}


def read_classes(folder: Path) -> dict[str, Any]:
    """The classes of a pipeline's models, from their configs; empty for an unconditional one.

    Returns:
        ``number``; ``names``, empty for clusters of the training images; ``are_clusters``; ``has_scores``, whether the
        energy depends on the class.
    """
    generator, energy = (read_json(folder / name / "config.json") for name in ("generator_model", "energy_model"))
    number = generator.get("num_classes") or energy.get("num_classes") or 0
    if not number:
        return {}
    return {
        "number": number,
        "names": generator.get("class_names") or [],
        "are_clusters": energy.get("pseudo_label_centres") is not None,
        "has_scores": bool(energy.get("num_classes")) and energy.get("class_scores", True),
    }


def knows_its_run(folder: Path) -> bool:
    """Whether a pipeline folder has more than its pipeline: a run's settings, summary or metrics, or a card."""
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
        license: Licence id of the weights; None = that of the run's settings. Without one the card states none.
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
    classes = read_classes(folder)
    generation = "class-conditional-image-generation" if classes else "unconditional-image-generation"
    results = evaluation_results(metrics, settings.get("dataset", "unknown"), evaluation, ood, generation)
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
    is_of_vectors = len(summary.get("sample_shape", ())) == 1
    data = ModelCardData(
        license=settings.get("license"),
        license_name=settings.get("license_name"),
        library_name="hf-ebm",
        pipeline_tag=None if classes else generation,  # the Hub has no task of class-conditional generation
        tags=["energy-based-model", "out-of-distribution-detection", "diffusers", *([generation] if classes else [])],
        datasets=[dataset] if "/" in dataset else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    class_name, templates = str(index.get("_class_name")), card_templates()
    if class_name not in templates:
        raise ValueError(
            f"{folder} holds a {class_name}; there are cards of {', '.join(templates)} only. Save it as one of them."
        )
    template = templates[class_name]
    compiled = template_environment().get_template(template)
    try:
        text = compiled.render(
            card_data=data.to_yaml(),
            generated=GENERATED,
            title=title,
            repo_id=repo_id or ".",
            index=index,
            scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
            settings=settings,
            unused=("license", "license_name", *(() if is_of_vectors else ("num_toy_samples",))),
            license=settings.get("license_name") or settings.get("license"),
            metrics=metrics,
            classes=classes,
            counted=counted,
            duration=duration,
            toy=is_of_vectors,
            toy_table=toy_table(metrics),
            sample_table=sample_table(evaluation),
            reconstruction_evaluated=bool(evaluation.get("reconstruction")),
            ood_table=ood_table(ood),
            summary=summary,
            calibration=read_json(folder / CALIBRATION),
            conversion=public_values(read_json(folder / CONVERSION)),
            image_files=[name for name in (*IMAGE_FILES, VALIDATION_PLOT) if (folder / name).is_file()],
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
