"""``hf-ebm eval-ood``: how well a model's scores find odd images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "eval-ood",
        help="how well a model's scores find odd images, beside simple baselines",
        epilog="example: hf-ebm eval-ood --model outputs/ddaebm-digits --id digits --ood noise,inverted,mixed",
    )
    parser.add_argument("--model", required=True, help="a run folder or a Hub id")
    parser.add_argument("--id", required=True, help="in-distribution data set: digits, a Hub id, or a folder")
    parser.add_argument("--ood", help="odd sets, comma-separated: embedded ones or data sets; default: all embedded")
    parser.add_argument("--scores", default="all", help="comma-separated; default: all that the model allows")
    parser.add_argument("--image-column", help="of the data sets; default: their only image column")
    parser.add_argument("--max-images", type=int, default=1000, help="of each set (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("ood"), help="folder for ood.json and roc.png")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the table of AUROCs; write ``ood.json`` with all metrics and the protocol, and ``roc.png``."""
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.scoring import ood_evaluation as evaluation
    from hf_ebm.scoring.odd_images import ODD_IMAGES
    from hf_ebm.scoring.plots import plot_roc

    pipeline = EnergyScoringPipeline.from_pretrained(options.model, load_reconstruction=True)
    pipeline.set_progress_bar_config(disable=True)
    shape = pipeline.sample_shape
    if len(shape) != 3:
        raise ValueError(f"--model {options.model} scores vectors; eval-ood takes models of images.")

    scores = pipeline.available_scores if options.scores == "all" else options.scores.split(",")
    unknown = sorted(set(scores) - set(pipeline.available_scores))
    if unknown:
        raise ValueError(f"--scores: this model allows {pipeline.available_scores}, got {unknown}.")

    def load(name: str, split: str) -> Any:
        return evaluation.load_images(name, shape, split, options.image_column, options.max_images, options.seed)

    train, test = load(options.id, "train"), load(options.id, "test")
    names = list(ODD_IMAGES) if options.ood is None else options.ood.split(",")
    odd_sets = evaluation.make_odd_sets(test, [name for name in names if name in ODD_IMAGES], options.seed)
    odd_sets |= {name: load(name, "test") for name in names if name not in ODD_IMAGES}
    pipeline.calibrate(train, seed=options.seed)  # the statistics that some scores need; no threshold is used
    scorers: dict[str, Any] = {score: lambda x, score=score: pipeline(x, score=score).scores for score in scores}
    if not options.no_baselines:
        scorers |= evaluation.fit_baselines(train, options.seed)
    table, found = evaluation.evaluate_ood(scorers, test, odd_sets, options.resamples, options.seed)
    protocol = {
        "model": options.model,
        "in_distribution": f"{options.id}, split test, {len(test)} images",
        "odd_sets": {name: f"{len(images)} images" for name, images in odd_sets.items()},
        "statistics_and_baselines": f"{options.id}, split train, {len(train)} images",
        "preprocessing": f"converted, cropped square, resized to {shape[-1]}x{shape[-1]}, scaled to [-1, 1]",
        "intervals": f"95 %, percentile bootstrap over both sets, {options.resamples} resamples",
        "seed": options.seed,
    }
    record = json.dumps({"protocol": protocol, "metrics": table}, indent=2)
    options.output.mkdir(parents=True, exist_ok=True)
    temporary = options.output / "ood.tmp"  # a reader never sees half a file
    temporary.write_text(record, encoding="utf-8")
    temporary.replace(options.output / "ood.json")
    plot_roc(found, options.output / "roc.png")
    print(record if options.json else evaluation.format_table(table))
    if not options.json:
        print(f"wrote {options.output}/ood.json (all metrics with 95 % intervals, the protocol) and roc.png")
