"""``hf-ebm``: train, sample, score and describe from a shell. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = ("ddaebm", "dual_mcmc")


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="hf-ebm",
        description="Energy-based generative models: train, sample, score.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="start `accelerate launch` on a training script",
        epilog="example: hf-ebm train ddaebm --config ddaebm_digits.yaml max_steps=100",
    )
    train.add_argument("method", choices=METHODS)
    train.add_argument("arguments", nargs=argparse.REMAINDER, help="--config FILE key=value ..., for the script")

    sample = commands.add_parser(
        "sample",
        help="draw images into one picture",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    sample.add_argument("--model", required=True, help="a run folder or a Hub id")
    sample.add_argument("--num-images", type=int, default=16)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--output", type=Path, default=Path("samples.png"))

    score = commands.add_parser(
        "score",
        help="print the energy of images, low = likely",
        epilog="example: hf-ebm score --model outputs/ddaebm-digits one.png two.png",
    )
    score.add_argument("--model", required=True, help="a run folder or a Hub id")
    score.add_argument("images", nargs="+", type=Path, help="image files of the model's size")
    score.add_argument("--json", action="store_true", help="print a JSON object {file: energy}")

    evaluate = commands.add_parser(
        "eval-ood",
        help="how well a model's scores find odd images, beside simple baselines",
        epilog="example: hf-ebm eval-ood --model outputs/ddaebm-digits --id digits --ood noise,inverted,mixed",
    )
    evaluate.add_argument("--model", required=True, help="a run folder or a Hub id")
    evaluate.add_argument("--id", required=True, help="in-distribution data set: digits, a Hub id, or a folder")
    evaluate.add_argument("--ood", help="odd sets, comma-separated: embedded ones or data sets; default: all embedded")
    evaluate.add_argument("--scores", default="all", help="comma-separated; default: all that the model allows")
    evaluate.add_argument("--image-column", help="of the data sets; default: their only image column")
    evaluate.add_argument("--max-images", type=int, default=1000, help="of each set (default: %(default)s)")
    evaluate.add_argument("--resamples", type=int, default=200, help="of the bootstrap (default: %(default)s)")
    evaluate.add_argument("--no-baselines", action="store_true")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--output", type=Path, default=Path("ood"), help="folder for ood.json and roc.png")
    evaluate.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the caller ends it with one line and exit code 2."""
    options = make_parser().parse_args(arguments)
    try:
        runners = {"train": run_train, "sample": run_sample, "score": run_score, "eval-ood": run_eval_ood}
        runners[options.command](options)
    except (ValueError, OSError) as error:
        print(f"hf-ebm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def run_train(options: argparse.Namespace) -> None:
    """Replace this process by `accelerate launch` on the method's script."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if not Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"), "accelerate").is_dir():
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # else it warns
    os.execv(sys.executable, [*launcher, "-m", f"hf_ebm.training.train_{options.method}", *options.arguments])


def load_pipeline(model: str) -> Any:
    """The pipeline in a run folder or Hub repository, whichever of ours it is."""
    import hf_ebm
    from hf_ebm.pipelines.pipeline_base import EBMPipeline

    folder = Path(model) if Path(model).is_dir() else Path(EBMPipeline.download(model))
    name = json.loads((folder / EBMPipeline.config_name).read_text(encoding="utf-8"))["_class_name"]
    if name not in hf_ebm.__all__:
        raise ValueError(f"--model {model} holds a {name}, which is no pipeline of hf-ebm.")
    return getattr(hf_ebm, name).from_pretrained(folder)


def run_sample(options: argparse.Namespace) -> None:
    """Write a grid of samples."""
    if options.num_images < 1:
        raise ValueError(f"--num-images must be >= 1, got {options.num_images}.")
    import PIL.Image
    import torch

    from hf_ebm.training.loop import save_grid

    if options.output.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--output must end in .png or another picture format, got {options.output.name!r}.")
    pipeline = load_pipeline(options.model)
    if len(pipeline.sample_shape) != 3:
        raise ValueError(f"--model {options.model} makes vectors, not images; sample it from Python.")
    images = pipeline(options.num_images, generator=torch.Generator().manual_seed(options.seed)).images
    columns = max(c for c in range(1, int(options.num_images**0.5) + 1) if options.num_images % c == 0)
    save_grid(images, options.output, options.num_images // columns, scale=max(1, 64 // images[0].width))
    print(f"wrote {options.output}")


def run_score(options: argparse.Namespace) -> None:
    """Print one energy per file."""
    import PIL.Image

    from hf_ebm.image_inputs import PIL_MODES

    pipeline = load_pipeline(options.model)
    mode = PIL_MODES.get(pipeline.sample_shape[0])
    opened = [PIL.Image.open(path) for path in options.images]
    for path, image in zip(options.images, opened, strict=True):
        if image.mode != mode:
            print(f"note: {path} is converted from {image.mode} to {mode}, as the model takes", file=sys.stderr)
    images = [image.convert(mode) for image in opened]
    energies = pipeline.score(images).energies.tolist()
    if options.json:
        print(json.dumps({str(path): energy for path, energy in zip(options.images, energies, strict=True)}))
        return
    for path, energy in zip(options.images, energies, strict=True):
        print(f"{energy:14.7g}  {path}")


def run_eval_ood(options: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    main()
