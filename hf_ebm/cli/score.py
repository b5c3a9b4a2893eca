"""``hf-ebm score``: energies of images, or the scores of a whole data set."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_ebm.cli.images import check_images
from hf_ebm.data.padding import find_padding
from hf_ebm.evaluation.bulk_scoring import add_options, refuse_dataset_options, settings_of
from hf_ebm.utils.files import path_text

if TYPE_CHECKING:
    from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput
    from hf_ebm.scoring.inputs import Batch


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "score",
        help="print the energy and score of images, low = likely; or score a whole data set into Parquet files",
        description="Image files: prints their energies and paths; with another --score than the energy, or a model "
        "that was calibrated, energy, that score, p-value, whether it is out of distribution, path. A data set: writes "
        "its scores as Parquet files into a folder; the same command again goes on where a killed one stopped.",
        epilog="examples: hf-ebm score --model outputs/ddaebm-digits one.png two.png; "
        "hf-ebm score --model outputs/ddaebm-digits --dataset digits --split test --output outputs/scores",
    )
    parser.add_argument(
        "images",
        nargs="*",
        type=path_text,
        help="image files or URLs, of the model's size (with or without its padding), or with --resize",
    )
    add_options(parser, required=False)
    parser.add_argument(
        "--json",
        action="store_true",
        help='print a JSON object {file: {"energy", "score", "p_value", "is_ood"}}, the last two null without a '
        "calibration; for a data set the summary",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print one line per file, or score a data set."""
    if bool(options.images) == (options.dataset is not None):
        raise ValueError("give either image files or --dataset with --output.")
    if options.images:
        refuse_dataset_options(options)
        score_files(options)
        return
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
    from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline
    from hf_ebm.scoring.calibration import how_to_calibrate
    from hf_ebm.scoring.scores import SCORES
    from hf_ebm.scoring.statistics import measure_batches
    from hf_ebm.utils.files import to_json
    from hf_ebm.utils.logging import passing_bar
    from hf_ebm.utils.torch_utils import find_device

    needs_reconstruction = "reconstruction_error" in SCORES[options.score].measures
    device = find_device(options.device or "cpu")
    pipeline = EnergyScoringPipeline.from_pretrained(options.model, load_reconstruction=needs_reconstruction)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if options.require_calibration and pipeline.calibration is None:
        raise ValueError(
            f"model {options.model} was not calibrated, so nothing is called odd: {how_to_calibrate(options.model)}."
        )
    pipeline.check_score(options.score)
    files, rows, unreadable = [], [], []
    measure = pipeline.make_measure(pipeline.needed(options.score))
    batches = batches_of(options, pipeline.sample_shape)
    shown = passing_bar(unit="batch")(batches, total=math.ceil(len(options.images) / options.batch_size))
    for batch, measures in measure_batches(shown, lambda batch: measure(batch.x) if batch.ids else {}):
        for bad in batch.unreadable:
            hint = "; --resize converts and resizes pictures" if bad.resizable else ""
            unreadable.append((options.images[bad.row], f"{bad.reason}{hint}"))
        if unreadable and (options.on_error == "stop" or len(unreadable) == len(options.images)):
            raise ValueError("image {} {}".format(*unreadable[0]))
        if batch.ids:
            names = [options.images[place] for place in batch.ids]
            files += names
            rows += rows_of(pipeline.judge(measures, options.score, names))
    if pipeline.calibration is None and not options.json:
        how = how_to_calibrate(options.model)
        print(f"hf-ebm: no p-values and verdicts without a calibration: {how}", file=sys.stderr)
    for name, reason in unreadable:
        print(f"hf-ebm: skipped: image {name} {reason}", file=sys.stderr)
    if options.json:
        errors = {name: {"error": reason} for name, reason in unreadable}
        print(to_json({**dict(zip(files, rows, strict=True)), **errors}))
        return
    has_other_score = options.score != "energy"
    shows_verdict = has_other_score or pipeline.calibration is not None
    other = f"  {options.score:>20}" if has_other_score else ""
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


def batches_of(options: argparse.Namespace, sample_shape: tuple[int, ...]) -> Iterator[Batch]:
    """The files as batches for a model of that size."""
    from hf_ebm.scoring.inputs import ListRows, prepared_batches, spans_of

    if options.batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {options.batch_size}.")
    rows, padding = ListRows(options.images), find_padding(options.model, options.padding)
    spans = spans_of(0, len(rows), options.batch_size)
    return prepared_batches(rows, spans, sample_shape, options.resize, num_workers=0, padding=padding)


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
