"""Options shared by several commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from hf_ebm.utils.files import path_text
from hf_ebm.utils.validation import MAX_NUMPY_SEED, MAX_SEED, check_seed

SCORE_NAMES = (
    "energy",
    "gradient_norm",
    "multiscale",
    "typicality",
    "complexity",
    "reconstruction",
    "combined",
    "density_fast",
    "density",
    "density_full",
    "encoder",
    "density_encoder",
)
CARD_REFRESHED = "updated {}/README.md (the model card)"


def add_model_option(parser: argparse.ArgumentParser, hub: bool = True) -> None:
    """``--model``; `hub`: whether a Hub id is allowed."""
    parser.add_argument("--model", required=True, type=path_text, help="a run folder" + " or a Hub id" * hub)


def add_encoder_option(parser: argparse.ArgumentParser, use: str) -> None:
    """``--encoder``, for the scores with an image encoder."""
    parser.add_argument(
        "--encoder",
        type=path_text,
        metavar="ID_OR_FOLDER",
        help=f"transformers vision model with its image processor, {use}",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``, which `hf_ebm.utils.torch_utils.find_device` reads."""
    parser.add_argument(
        "--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps, ... (default: %(default)s)"
    )


def add_seed_option(parser: argparse.ArgumentParser, seeded: str, largest: int = MAX_SEED) -> None:
    """``--seed`` of what is `seeded`, up to the `largest` that all random number generators of the command take."""

    def seed(text: str) -> int:
        try:
            return check_seed("the seed", int(text) if text.lstrip("+-").isdecimal() else text, largest)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser.add_argument("--seed", type=seed, default=0, help=f"seed of {seeded} (default: %(default)s)")


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, which `check_new` reads."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def check_new(argument: str, paths: Iterable[Path], overwrite: bool) -> None:
    """Raise a `ValueError` for the first path, named by the option `argument`, that exists, unless `overwrite`."""
    for path in paths:
        if not overwrite and os.path.lexists(path):
            raise ValueError(f"{argument}: {path} exists; add --overwrite to replace it, or choose another.")


def add_comparison_options(parser: argparse.ArgumentParser, hub: bool = True) -> None:
    """Add the options shared by calibrate, eval-ood, evaluate and likelihood."""
    add_model_option(parser, hub)
    add_device_option(parser)
    parser.add_argument("--image-column", help="of the data sets; default: their only image column")
    add_seed_option(parser, "all random numbers", MAX_NUMPY_SEED)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
