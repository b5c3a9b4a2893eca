"""``hf-ebm score``: energies of images, or the scores of a whole data set."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from hf_ebm.commands.models import check_images
from hf_ebm.run_padding import find_padding
from hf_ebm.scoring.run_settings import add_options, settings_of


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
        score_files(options)
        return
    if options.output is None:
        raise ValueError("--dataset needs --output FOLDER for the Parquet files.")
    from hf_ebm.json_text import to_json
    from hf_ebm.scoring.run import run as run_scoring

    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        summary = run_scoring(settings_of(options))
    if options.json:
        print(to_json(summary))


def score_files(options: argparse.Namespace) -> None:
    """Print the energy of each file, and its score and verdict where there is more to say."""
    check_images(options.images)
    from hf_ebm.devices import find_device
    from hf_ebm.json_text import to_json
    from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline
    from hf_ebm.scoring.calibration import how_to_calibrate
    from hf_ebm.scoring.scores import SCORES

    needs_reconstruction = "reconstruction_error" in SCORES[options.score].measures
    device = find_device(options.device or "cpu")
    pipeline = EnergyScoringPipeline.from_pretrained(options.model, load_reconstruction=needs_reconstruction)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if options.require_calibration and pipeline.calibration is None:
        raise ValueError(
            f"model {options.model} was not calibrated, so nothing is called odd: {how_to_calibrate(options.model)}."
        )
    padding = find_padding(options.model, options.padding)
    try:
        found = pipeline(
            options.images,
            score=options.score,
            batch_size=options.batch_size,
            resize=options.resize,
            padding=padding,
        )
    except ValueError as error:
        hint = "; --resize converts and resizes pictures" if "does not fit" in str(error) else ""
        raise ValueError(f"{error}{hint}") from error
    count = len(options.images)
    rows = [
        {"energy": energy, "score": score, "p_value": p_value, "is_ood": is_ood}
        for energy, score, p_value, is_ood in zip(
            found.energies.tolist(),
            found.scores.tolist(),
            [None] * count if found.p_values is None else found.p_values.tolist(),
            [None] * count if found.is_ood is None else found.is_ood.tolist(),
            strict=True,
        )
    ]
    if options.json:
        print(to_json(dict(zip(options.images, rows, strict=True))))
        return
    has_other_score, has_verdict = options.score != "energy", pipeline.calibration is not None
    if has_other_score or has_verdict:
        other = f"  {options.score:>20}" if has_other_score else ""
        print(f"{'energy':>14}{other}  {'p_value':>8}  {'is_ood':>6}  file")
    for image, row in zip(options.images, rows, strict=True):
        cells = f"{row['energy']:14.7g}"
        if has_other_score:
            cells += f"  {row['score']:20.7g}"
        if has_other_score or has_verdict:
            verdict = "-" if row["is_ood"] is None else "yes" if row["is_ood"] else "no"
            p_value = "-" if row["p_value"] is None else f"{row['p_value']:.4f}"
            cells += f"  {p_value:>8}  {verdict:>6}"
        print(f"{cells}  {image}")
