"""What conditioning on labels or clusters buys: the figures of trained runs, and their tables.

    python benchmarks/conditioning.py evaluate --data fashion_mnist --model outputs/labels-0 outputs/none-0
    python benchmarks/conditioning.py tables outputs/conditioning.jsonl

For each run folder: the Frechet distance, precision and recall of samples, overall and by class; the distance of
samples to their nearest training image against that of held-out images; the share of samples of the class asked for,
with and without guidance, by the classifier whose features measure samples; accuracy and calibration error of p(y | x)
and of the same network trained as a plain classifier; the AUROC of the marginal energy. A line of JSON per run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_data import DATA, BenchmarkData
from image_classifier import ImageClassifier
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error
from tqdm.auto import tqdm

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.data.loading import draw_rows, load_named
from hf_ebm.evaluation.feature_extractors import FeatureStatistics, load_digit_classifier
from hf_ebm.evaluation.sample_metrics import auroc, frechet_distance_of_statistics, neighbourhood_metrics
from hf_ebm.evaluation.samples import RealImages
from hf_ebm.hub.model_card import SETTINGS
from hf_ebm.pipelines.loading import load_pipeline
from hf_ebm.training.config import read_yaml
from hf_ebm.utils.files import path_option

GUIDANCE_SCALES = (1.0, 1.5, 2.0)
BATCH = 500
NUM_GUIDED = 1000  # samples of each guidance scale


def labelled(images: RealImages, numbers: list[int], label_column: str) -> tuple[Tensor, Tensor]:
    """Some images of a split, (N, C, H, W), in [-1, 1], and their labels, (N,)."""
    is_digits = images.source["dataset"] == "digits"
    rows: Any = images.dataset
    every = load_digits(images.source["split"])[1] if is_digits else torch.tensor(rows.dataset[label_column])
    labels = every[numbers]
    return torch.stack([rows[number][0] for number in numbers]), labels


def draw(pipeline: Any, labels: Tensor | None, number: int, seed: int, guidance_scale: float = 1.0) -> Tensor:
    """Samples in [-1, 1], of the given labels, (N,), or of any."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, number, BATCH):
        size = min(BATCH, number - start)
        options: dict[str, Any] = {"batch_size": size}
        if labels is not None:
            options = {"class_labels": labels[start : start + size].tolist(), "guidance_scale": guidance_scale}
        parts.append(pipeline(generator=generator, output_type="latent", **options).images.clamp(-1.0, 1.0).cpu())
    return torch.cat(parts)


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """Root mean squared difference per pixel to the nearest training image, shape (N,)."""
    flat = training.flatten(1)
    distances = [torch.cdist(part.flatten(1), flat).min(dim=1).values for part in images.split(BATCH)]
    return torch.cat(distances) / flat.shape[1] ** 0.5


@torch.no_grad()
def class_probabilities(energy_model: Any, images: Tensor) -> Tensor:
    """``p(y | x)`` of clean images, shape (N, classes)."""
    return torch.cat([energy_model(part).logits.softmax(dim=1) for part in images.split(BATCH)])


def judge_classes(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and expected calibration error, 15 bins."""
    error = multiclass_calibration_error(probabilities, labels, num_classes=probabilities.shape[1], n_bins=15)
    return {
        "accuracy": (probabilities.argmax(dim=1) == labels).float().mean().item(),
        "calibration_error": error.item(),
    }


def train_plain_classifier(energy_model: Any, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> nn.Module:
    """The energy's network trained from new weights by the cross entropy of clean images only.

    Batches, steps and learning rate are those of the energy's run, with a cosine schedule.
    """
    torch.manual_seed(settings["seed"])
    model = type(energy_model)(energy_model.config).train()
    optimizer = torch.optim.Adam(model.parameters(), settings["energy_learning_rate"])
    steps = settings["max_steps"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(settings["seed"])
    for _ in tqdm(range(steps), desc="plain classifier", leave=False):
        rows = torch.randint(len(images), (settings["batch_size"],), generator=generator)
        loss = F.cross_entropy(model(images[rows]).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def evaluate_run(
    folder: Path,
    data: BenchmarkData,
    classifier: Callable[[Tensor], Tensor],
    ood_sets: dict[str, Tensor],
    num_images: int,
    num_seeds: int,
    label_column: str,
    with_plain_classifier: bool,
) -> dict[str, Any]:
    """The figures of one run, see the module."""
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    settings = read_yaml(folder / SETTINGS)
    energy_model = pipeline.energy_model
    clusters = bool(getattr(energy_model.config, "pseudo_label_centres", None))
    has_labels = bool(getattr(energy_model.config, "num_classes", 0)) and not clusters
    number = data.num_samples(num_images)
    num_test, num_train = len(data.held_out.dataset), len(data.training.dataset)
    test, test_labels = labelled(data.held_out, draw_rows(num_test, num_images, 0), label_column)
    train, train_labels = labelled(data.training, draw_rows(num_train, 10 * num_images, 0), label_column)
    condition = "labels" if has_labels else f"{settings['pseudo_labels']} clusters" if clusters else "none"
    record: dict[str, Any] = {
        "model": folder.name,
        "method": pipeline.method_name,
        "condition": condition,
        "seed": settings["seed"],
        "max_steps": settings["max_steps"],
        "batch_size": settings["batch_size"],
        "num_samples": number,
    }

    def statistics(images: Tensor) -> FeatureStatistics:
        return FeatureStatistics.of(images.split(BATCH), data.extractor)

    def compare(real: FeatureStatistics, images: Tensor) -> dict[str, float]:
        found = statistics(images)
        metrics = neighbourhood_metrics(real.features, found.features)
        return {
            "frechet_distance": frechet_distance_of_statistics(real, found),
            "precision": metrics["precision"],
            "recall": metrics["recall"],
        }

    held_out = data.statistics(data.held_out, min(num_images, num_test))
    asked = train_labels[torch.arange(number) % len(train_labels)] if has_labels else None
    samples = [draw(pipeline, asked, number, seed) for seed in range(num_seeds)]
    of_seeds = [compare(held_out, images) for images in samples]
    record["samples"] = {name: sum(one[name] for one in of_seeds) / num_seeds for name in of_seeds[0]}
    record["real_vs_real"] = compare(held_out, train[:number])
    distances, real_distances = nearest_distances(samples[0], train), nearest_distances(test, train)
    record["nearest_training_image"] = {
        "samples": distances.mean().item(),
        "held_out": real_distances.mean().item(),
        "share_below_1_percent_of_held_out": (distances < real_distances.quantile(0.01)).float().mean().item(),
    }
    if has_labels:
        assert asked is not None
        classes = range(energy_model.config.num_classes)
        of_classes = [statistics(test[test_labels == y]) for y in classes]
        record["by_class"] = [compare(of_classes[y], samples[0][asked == y]) for y in classes]
        record["real_vs_real_by_class"] = [
            compare(of_classes[y], train[train_labels == y][: int((asked == y).sum())]) for y in classes
        ]
        few = min(number, NUM_GUIDED)
        record["samples_of_their_class"] = {}
        for scale in GUIDANCE_SCALES if settings["label_dropout"] else GUIDANCE_SCALES[:1]:
            images = samples[0][:few] if scale == 1.0 else draw(pipeline, asked[:few], few, 0, scale)
            with torch.no_grad():
                share = (classifier(images).argmax(dim=1) == asked[:few]).float().mean().item()
            distance = frechet_distance_of_statistics(held_out, statistics(images))
            record["samples_of_their_class"][str(scale)] = {"share": share, "frechet_distance": distance}
        with torch.no_grad():
            has_logits = energy_model(test[:1]).logits is not None
        if has_logits:
            record["p_of_class"] = judge_classes(class_probabilities(energy_model, test), test_labels)
            if with_plain_classifier:
                plain = train_plain_classifier(energy_model, train, train_labels, settings)
                record["plain_classifier"] = judge_classes(class_probabilities(plain, test), test_labels)
    record["auroc"] = data.ood_aurocs(pipeline, min(1000, num_test))

    def energies(images: Tensor) -> Tensor:
        return torch.cat([pipeline.score(to_unit_range(part)).energies for part in images.split(BATCH)])

    inside = energies(data.held_out_images(min(1000, num_test)))
    record["auroc"] |= {name: auroc(inside, energies(images)) for name, images in ood_sets.items()}
    return record


def show_tables(path: Path) -> None:
    """Markdown tables of the records of a file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records.sort(key=lambda one: (one["method"], one["condition"], one["seed"]))
    print(
        "| method | conditioned on | seed | FD (real vs real) | precision | recall | nearest training image, samples "
        "/ held-out | of their class at guidance 1 / 1.5 / 2 | accuracy of p(y \\| x) (plain) | calibration error "
        "(plain) | mean AUROC |\n|" + "---|" * 11
    )
    for one in records:
        near, guided, plain = one["nearest_training_image"], one.get("samples_of_their_class", {}), {}
        shares = " / ".join(f"{found['share']:.3f}" for found in guided.values())
        plain = one.get("plain_classifier", {})
        judged = [
            f"{one['p_of_class'][name]:.3f}" + (f" ({plain[name]:.3f})" if plain else "") if "p_of_class" in one else ""
            for name in ("accuracy", "calibration_error")
        ]
        samples = one["samples"]
        cells = [
            *(one[name] for name in ("method", "condition", "seed")),
            f"{samples['frechet_distance']:.2f} ({one['real_vs_real']['frechet_distance']:.2f})",
            *(f"{samples[name]:.3f}" for name in ("precision", "recall")),
            f"{near['samples']:.3f} / {near['held_out']:.3f}",
            shares,
            *judged,
            f"{sum(one['auroc'].values()) / len(one['auroc']):.4f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\nBy class: FD (real vs real), precision, recall\n")
    for one in records:
        for y, (found, real) in enumerate(
            zip(one.get("by_class", []), one.get("real_vs_real_by_class", []), strict=True)
        ):
            print(
                f"| {one['method']} | seed {one['seed']} | class {y} | {found['frechet_distance']:.1f} "
                f"({real['frechet_distance']:.1f}) | {found['precision']:.3f} | {found['recall']:.3f} |"
            )


def main() -> None:
    """Evaluate runs, or print the tables of what was evaluated."""
    parser = argparse.ArgumentParser(description="What conditioning on labels or clusters buys.")
    commands = parser.add_subparsers(dest="command", required=True)
    evaluate = commands.add_parser("evaluate", help="evaluate run folders")
    evaluate.add_argument("--model", type=path_option, nargs="+", required=True, help="run folders")
    evaluate.add_argument("--data", choices=sorted(DATA), required=True)
    evaluate.add_argument("--dataset", help="folder or Hub id of the data (default: the recipe's)")
    evaluate.add_argument("--ood", nargs="*", default=[], help="other data sets whose energies are compared")
    evaluate.add_argument(
        "--features", type=path_option, help="folder of the classifier (default: outputs/quality-DATA)"
    )
    evaluate.add_argument("--label-column", default="label")
    evaluate.add_argument("--num-images", type=int, default=2000, help="samples, at most (default: %(default)s)")
    evaluate.add_argument("--num-seeds", type=int, default=1, help="sets of samples (default: %(default)s)")
    evaluate.add_argument("--plain-classifier", action="store_true", help="train the network as a classifier, too")
    evaluate.add_argument("--output", type=path_option, default=Path("outputs/conditioning.jsonl"))
    tables = commands.add_parser("tables", help="print the tables")
    tables.add_argument("input", type=path_option)
    options = parser.parse_args()
    if options.command == "tables":
        show_tables(options.input)
        return
    chosen, folder = DATA[options.data], options.features or Path(f"outputs/quality-{options.data}")
    data = BenchmarkData.open(chosen, options.dataset, folder, "cpu")
    classifier: nn.Module = load_digit_classifier()
    if chosen.classifier is not None:
        classifier = ImageClassifier(chosen.sample_shape[0])
        classifier.load_state_dict(load_file(folder / "classifier" / "classifier.safetensors"))
        classifier.eval()
    ood_sets = {}
    for name in options.ood:
        processor = EBMImageProcessor(chosen.sample_shape[-1], chosen.sample_shape[0], chosen.padding)
        rows, _ = load_named(name, chosen.sample_shape, "test", None, processor)
        ood_sets[Path(name).name] = torch.stack([rows[number][0] for number in draw_rows(len(rows), 1000, 0)])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for model in options.model:
        record = evaluate_run(
            model,
            data,
            classifier,
            ood_sets,
            options.num_images,
            options.num_seeds,
            options.label_column,
            options.plain_classifier,
        )
        with options.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
