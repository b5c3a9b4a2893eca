"""The settings of a scoring run, and their options on the command line; nothing heavy is imported."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from hf_ebm.commands.options import path_option, path_text
from hf_ebm.counting import check_count
from hf_ebm.run_padding import add_padding_option, find_padding

ON_ERROR = ("skip", "stop")
SCORE_NAMES = ("energy", "gradient_norm", "multiscale", "typicality", "complexity", "reconstruction", "combined")


def default_num_workers() -> int:
    """Two processes that open images, or one where this process may use one core alone."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return min(2, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)


@dataclass(frozen=True)
class ScoringSettings:
    """What `hf_ebm.scoring.run` is asked to do.

    Attributes:
        model: A run folder or a Hub id.
        dataset: ``"digits"``, a Hub id, or a folder of parquet files or images.
        output: The folder to fill, see `hf_ebm.scoring.shards`; one that is not complete is gone on with.
        split: Of the data set.
        config_name: Of a Hub data set.
        revision: Of a Hub data set.
        image_column: Column of the images; None = the only one.
        id_column: Column of the ids; None = the paths of an image folder, else the row numbers.
        score: A name of `hf_ebm.scoring.scores.SCORES`.
        batch_size: Images per forward pass and process.
        shard_size: Rows per Parquet file; the most that a kill loses, and what is kept in memory.
        num_workers: Processes that open images, for each process that scores.
        resize: Whether images are converted, cropped square and resized; else one that does not fit has no score.
        padding: Black pixels on each side of images, as in training.
        on_error: ``"skip"`` lists unreadable images and goes on; ``"stop"`` ends the run at the first.
        device: Where the model runs, as torch names it; None = what accelerate finds.
        require_calibration: Whether a model without a calibration is refused, so that ``is_ood`` is never null.
    """

    model: str
    dataset: str
    output: Path
    split: str = "train"
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    score: str = "energy"
    batch_size: int = 256
    shard_size: int = 10_000
    num_workers: int = field(default_factory=default_num_workers)
    resize: bool = False
    padding: int = 0
    on_error: str = "skip"
    device: str | None = None
    require_calibration: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("num_workers", 0), ("padding", 0)):
            check_count(name, getattr(self, name), least)
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {ON_ERROR}, got {self.on_error!r}.")


def add_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options of a run; `required`: whether a data set must be given."""
    parser.add_argument("--model", required=True, type=path_text, help="a run folder or a Hub id")
    parser.add_argument(
        "--dataset",
        required=required,
        type=path_text,
        help="digits, or a Hub id or a folder of parquet files or images, name[:config][@split]",
    )
    parser.add_argument(
        "--output", required=required, type=path_option, help="folder for the Parquet shards of a data set"
    )
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
        default="energy",
        help="larger = more out of distribution (default: %(default)s); multiscale needs a model with noise levels, "
        "reconstruction and combined one with its generator, all but energy, gradient_norm and reconstruction a "
        "calibrated one",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows per Parquet file (default: %(default)s)")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=default_num_workers(),
        help="processes that open images (default: %(default)s, which is 2 or this process's cores if they are fewer)",
    )
    parser.add_argument("--resize", action="store_true", help="convert, crop square and resize to the model's size")
    add_padding_option(parser)
    parser.add_argument("--on-error", choices=ON_ERROR, default="skip", help="unreadable images (default: %(default)s)")
    parser.add_argument(
        "--device",
        help="where the model runs: cpu, cuda, cuda:1, mps, ...; default: cpu for files, for a data set what "
        "accelerate finds",
    )
    parser.add_argument("--require-calibration", action="store_true", help="refuse a model that was not calibrated")


def settings_of(options: argparse.Namespace) -> ScoringSettings:
    """The settings that the options say; the padding is looked up where they say none.

    The data set's name, ``name[:config][@split]``, may hold its configuration and split.

    Raises:
        ValueError: If one is out of its range, or the name and an option differ.
    """
    from hf_ebm.dataset_names import DatasetName  # with torch

    values = {field.name: getattr(options, field.name) for field in fields(ScoringSettings)}
    named = DatasetName.parse(options.dataset)
    if named.config and options.config_name not in (None, named.config):
        raise ValueError(f"--config-name {options.config_name} and --dataset {options.dataset} differ; give one.")
    values |= {"dataset": named.name, "config_name": named.config or options.config_name}
    values |= {"split": named.choose_split(options.split, ScoringSettings.split)}
    return ScoringSettings(**{**values, "padding": find_padding(options.model, options.padding)})


def refuse_dataset_options(options: argparse.Namespace) -> None:
    """Raise a `ValueError` for the first option that single files have no use for."""
    for name in ("output", "split", "config_name", "revision", "image_column", "id_column"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for a data set (--dataset), and image files were given; leave it out. "
                "What is printed of files goes elsewhere by > FILE, as JSON with --json."
            )
