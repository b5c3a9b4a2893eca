"""``hf-ebm score``: energies of image files, or the scores of a whole data set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_ebm.commands.models import load_pipeline
from hf_ebm.scoring.run_settings import add_options, settings_of


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "score",
        help="print the energy of images, low = likely; or score a whole data set into Parquet files",
        description="Image files: prints their energies. A data set: writes its scores as Parquet files into a folder; "
        "the same command again goes on where a killed one stopped.",
        epilog="examples: hf-ebm score --model outputs/ddaebm-digits one.png two.png; "
        "hf-ebm score --model outputs/ddaebm-digits --dataset digits --split test --output outputs/scores",
    )
    parser.add_argument("images", nargs="*", type=Path, help="image files of the model's size, or with --resize")
    add_options(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print a JSON object {file: energy}, or the summary")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print one energy per file, or score a data set."""
    if bool(options.images) == (options.dataset is not None):
        raise ValueError("give either image files or --dataset with --output.")
    if options.images:
        score_files(options)
        return
    if options.output is None:
        raise ValueError("--dataset needs --output FOLDER for the Parquet files.")
    from hf_ebm.scoring.run import run as run_scoring

    summary = run_scoring(settings_of(options))
    if options.json:
        print(json.dumps(summary))


def score_files(options: argparse.Namespace) -> None:
    """Print one energy per file."""
    import torch

    from hf_ebm.data import image_transform
    from hf_ebm.image_inputs import PIL_MODES
    from hf_ebm.pictures import convert_picture, open_picture

    pipeline = load_pipeline(options.model)
    num_channels, size = pipeline.sample_shape[0], pipeline.sample_shape[-1]
    pictures = []
    for path in options.images:
        try:
            picture = open_picture(path)
            if picture.mode != PIL_MODES.get(num_channels):
                print(f"note: {path} is converted from {picture.mode}, as the model takes it", file=sys.stderr)
            pictures.append(convert_picture(picture, num_channels))
        except ValueError as error:
            raise ValueError(f"image {path} {error}") from error
    if options.resize:
        energies = pipeline.score(torch.stack([image_transform(num_channels, size)(i) for i in pictures])).energies
    else:
        energies = pipeline.score(pictures).energies
    if options.json:
        print(json.dumps(dict(zip(map(str, options.images), energies.tolist(), strict=True))))
        return
    for path, energy in zip(options.images, energies.tolist(), strict=True):
        print(f"{energy:14.7g}  {path}")
