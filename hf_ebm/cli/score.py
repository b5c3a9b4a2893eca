"""``hf-ebm score``: energies of images, or the scores of a whole data set."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_ebm.cli.images import check_images, png_names
from hf_ebm.cli.options import SCORE_NAMES, add_encoder_option, add_model_option, add_overwrite_option, check_new
from hf_ebm.pipelines.loading import load_scorer
from hf_ebm.utils.files import check_writable, path_option, path_text
from hf_ebm.utils.validation import counted

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from hf_ebm.evaluation.bulk_scoring import ScoringSettings
    from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput
    from hf_ebm.scoring.inputs import Batch


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "score",
        help="score image files, or a whole data set into Parquet files; low energy = likely",
        description="Image files: print the energy and path of each. With a --score other than the energy, or a\n"
        "calibrated model: energy, that score, p-value, whether it is out-of-distribution, path.\n"
        "A data set: write its scores as Parquet files into a folder; the same command resumes a run\n"
        "that was interrupted.",
        epilog="examples:\n"
        "  hf-ebm score --model outputs/ddaebm-digits one.png two.png\n"
        "  hf-ebm score --model outputs/ddaebm-digits --dataset digits --split test --output outputs/scores",
    )
    parser.add_argument(
        "images",
        nargs="*",
        type=path_text,
        help="image files or URLs, prepared as in training",
    )
    add_model_option(parser)
    parser.add_argument(
        "--dataset",
        type=path_text,
        help="digits, or a Hub id or a folder of Parquet files or images, name[:config][@split]",
    )
    parser.add_argument("--output", type=path_option, help="folder for the Parquet shards of a data set")
    parser.add_argument(
        "--split",
        help="of the data set, where --dataset names none (default: train, the only split of a folder of images unless "
        "all its folders have names of splits; evaluate and eval-ood: test)",
    )
    parser.add_argument("--config-name", help="of a Hub data set; default: its only one")
    parser.add_argument("--revision", help="of a Hub data set; default: its newest")
    parser.add_argument("--image-column", help="of the data set; default: its only image column")
    parser.add_argument("--id-column", help="of the data set; default: the paths of an image folder, else row numbers")
    parser.add_argument(
        "--score",
        choices=SCORE_NAMES,
        help="larger = more out of distribution (default: density of a calibrated model, else energy); multiscale "
        "needs a model with noise levels, "
        "reconstruction and combined one with its generator, all but energy, gradient_norm and reconstruction a "
        "calibrated one",
    )
    parser.add_argument(
        "--maps",
        metavar="FOLDER",
        type=path_option,
        help="write a PNG file per image file into this folder: the image beside a heat map of its unusual pixels; "
        "needs a calibrated model",
    )
    add_overwrite_option(parser)
    add_encoder_option(parser, "where a score needs one that is not on the Hub; default: that of the calibration")
    parser.add_argument("--batch-size", type=int, default=256, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows per Parquet file (default: %(default)s)")
    parser.add_argument(
        "--num-workers", type=int, help="processes that decode images of a data set; default: 2, with one core 1"
    )
    parser.add_argument(
        "--on-error", choices=("skip", "stop"), default="skip", help="unreadable images (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        help="where the model runs: cpu, cuda, cuda:1, mps, ...; default: cpu for files, for a data set accelerate's",
    )
    parser.add_argument("--require-calibration", action="store_true", help="refuse a model that was not calibrated")
    parser.add_argument(
        "--json",
        action="store_true",
        help='print a JSON object {file: {"energy", "score", "p_value", "is_ood"}}, the last two null without a '
        "calibration; for a data set the summary",
    )
    parser.set_defaults(run=run)


def settings_of(options: argparse.Namespace) -> ScoringSettings:
    """The settings of a scoring run over a data set."""
    from dataclasses import fields

    from hf_ebm.evaluation.bulk_scoring import ScoringSettings

    given = {field.name: getattr(options, field.name) for field in fields(ScoringSettings)}
    return ScoringSettings(**{name: value for name, value in given.items() if value is not None})


def refuse_dataset_options(options: argparse.Namespace) -> None:
    """Raise a `ValueError` for the first option that applies to data sets only."""
    for name in ("output", "split", "config_name", "revision", "image_column", "id_column"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for a data set (--dataset), and image files were given; leave it out. "
                "Results of files are printed: redirect them with > FILE, as JSON with --json."
            )


def run(options: argparse.Namespace) -> None:
    """Print one line per file, or score a data set."""
    if bool(options.images) == (options.dataset is not None):
        raise ValueError("give either image files or --dataset with --output.")
    if options.images:
        refuse_dataset_options(options)
        score_files(options)
        return
    if options.maps is not None or options.overwrite:
        name = "--overwrite" if options.maps is None else "--maps"
        raise ValueError(f"{name} is for image files, and a data set was given (--dataset); leave it out.")
    if options.output is None:
        raise ValueError("--dataset needs --output FOLDER for the Parquet files.")
    from hf_ebm.evaluation.bulk_scoring import run as run_scoring
    from hf_ebm.utils.files import to_json

    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        summary = run_scoring(settings_of(options))
    if options.json:
        print(to_json(summary))


def score_files(options: argparse.Namespace) -> None:
    """Print the energy of each file, and its score and verdict where there is more to say."""
    check_images(options.images)
    names_of_maps: list[str] = []
    if options.maps is not None:
        check_writable("--maps", options.maps, is_folder=True)
        names_of_maps = png_names(options.images, options.maps)
        check_new("--maps", [options.maps / name for name in names_of_maps], options.overwrite)
    from hf_ebm.scoring.calibration import how_to_calibrate
    from hf_ebm.scoring.scores import SCORES
    from hf_ebm.scoring.statistics import statistics_of_batches
    from hf_ebm.utils.files import to_json
    from hf_ebm.utils.logging import passing_bar
    from hf_ebm.utils.torch_utils import find_device

    asked = options.score
    needs_reconstruction = asked is not None and SCORES[asked].needs_reconstruction
    device = find_device(options.device or "cpu")
    if_it_exists = "auto" if options.maps is not None else False
    pipeline = load_scorer(
        options.model, load_reconstruction=needs_reconstruction or if_it_exists, image_encoder=options.encoder
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if options.require_calibration and pipeline.calibration is None:
        raise ValueError(
            f"model {options.model} was not calibrated, so no image can be flagged as OOD: "
            f"{how_to_calibrate(options.model)}."
        )
    score = pipeline.default_score if asked is None else asked
    pipeline.check_score(score)
    files, rows, unreadable = [], [], []
    kind = pipeline.choose_maps(options.maps is not None)
    compute = pipeline.make_statistics_function(pipeline.needed(score) | ({f"{kind}_map"} if kind else set()))
    batches = batches_of(options, pipeline)
    shown = passing_bar(unit="batch")(batches, total=math.ceil(len(options.images) / options.batch_size))
    for batch, statistics in statistics_of_batches(shown, lambda batch: compute(batch.x) if batch.ids else {}):
        for bad in batch.unreadable:
            unreadable.append((options.images[bad.row], bad.reason))
        if unreadable and (options.on_error == "stop" or len(unreadable) == len(options.images)):
            raise ValueError("image {} {}".format(*unreadable[0]))
        if batch.ids:
            names = [options.images[place] for place in batch.ids]
            files += names
            rows += rows_of(pipeline.judge(statistics, score, names))
            if kind:
                file_names = [names_of_maps[place] for place in batch.ids]
                write_maps(batch.x, statistics[f"{kind}_map"], options.maps, file_names)
    if pipeline.calibration is None and not options.json:
        how = how_to_calibrate(options.model)
        print(f"hf-ebm: no p-values and verdicts without a calibration: {how}", file=sys.stderr)
    for name, reason in unreadable:
        print(f"hf-ebm: skipped: image {name} {reason}", file=sys.stderr)
    if kind:
        print(f"hf-ebm: wrote {counted(len(files), 'heat map')} into {options.maps}", file=sys.stderr)
    if options.json:
        errors = {name: {"error": reason} for name, reason in unreadable}
        print(to_json({**dict(zip(files, rows, strict=True)), **errors}))
        return
    has_other_score = score != "energy"
    shows_verdict = has_other_score or pipeline.calibration is not None
    other = f"  {score:>20}" if has_other_score else ""
    verdicts = f"  {'p_value':>8}  {'is_ood':>6}" if shows_verdict else ""
    print(f"{'energy':>14}{other}{verdicts}  file")
    for image, row in zip(files, rows, strict=True):
        cells = f"{row['energy']:14.7g}"
        if has_other_score:
            cells += f"  {row['score']:20.7g}"
        if shows_verdict:
            verdict = "-" if row["is_ood"] is None else "yes" if row["is_ood"] else "no"
            p_value = "-" if row["p_value"] is None else f"{row['p_value']:.4f}"
            cells += f"  {p_value:>8}  {verdict:>6}"
        print(f"{cells}  {image}")


def write_maps(x: Tensor, maps: Tensor, folder: Path, file_names: list[str]) -> None:
    """Write each image in the model's range, (B, C, H, W), beside its heat map, (B, H, W), as a PNG file."""
    from hf_ebm.data.image_processor import to_unit_range
    from hf_ebm.evaluation.plots import heat_map_figure, save
    from hf_ebm.utils.files import whole_file

    for image, heat_map, name in zip(to_unit_range(x), maps, file_names, strict=True):
        with whole_file(folder / name) as file:
            save(heat_map_figure(image, heat_map), file)


def batches_of(options: argparse.Namespace, pipeline: Any) -> Iterator[Batch]:
    """The files as batches for the pipeline's energy."""
    from hf_ebm.scoring.inputs import ListRows, prepared_batches, spans_of

    if options.batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {options.batch_size}.")
    rows = ListRows(options.images)
    spans = spans_of(0, len(rows), options.batch_size)
    return prepared_batches(rows, spans, pipeline.sample_shape, pipeline.image_processor, num_workers=0)


def rows_of(found: EnergyScoringOutput) -> list[dict[str, Any]]:
    """A dictionary for each image; without a calibration, p-value and verdict are None."""
    absent = [None] * len(found.energies)
    columns = {
        "energy": found.energies.tolist(),
        "score": found.scores.tolist(),
        "p_value": absent if found.p_values is None else found.p_values.tolist(),
        "is_ood": absent if found.is_ood is None else found.is_ood.tolist(),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
