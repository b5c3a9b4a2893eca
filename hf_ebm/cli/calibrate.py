"""``hf-ebm calibrate``: fit OOD thresholds on held-out images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from hf_ebm.cli.options import CARD_REFRESHED, SCORE_NAMES, add_comparison_options, add_encoder_option
from hf_ebm.pipelines.loading import load_scorer, model_folder
from hf_ebm.utils.files import check_writable, path_text

MAX_IMAGES = 10_000  # all in memory at once


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "calibrate",
        help="fit OOD thresholds on held-out images",
        description="Fit the statistics and thresholds of all scores that the model allows, and write them into\n"
        "the run folder as calibration.json, which score, the demo and the model card read. Scores with\n"
        "fitted statistics (multiscale, typicality, complexity, combined) fit them on a random half of\n"
        "the images and calibrate on the other half. The density scores compare with training images\n"
        "where the model was trained on another split of the data set, else with that half.",
        epilog="example: hf-ebm calibrate --model outputs/ddaebm-digits --dataset digits --target-fpr 0.05",
    )
    add_comparison_options(parser, hub=False)
    parser.add_argument(
        "--dataset",
        required=True,
        type=path_text,
        help="images that the model was not trained on: digits, or a Hub id or a folder, name[:config][@split]",
    )
    parser.add_argument("--split", help="of the data set, where --dataset names none (default: test)")
    parser.add_argument(
        "--score", choices=SCORE_NAMES, help="score whose threshold is printed (default: density, else energy)"
    )
    add_encoder_option(parser, "for the scores encoder and density_encoder; default: none, without these scores")
    parser.add_argument(
        "--target-fpr",
        type=float,
        default=0.05,
        help="false positive rate: the share of images like the training data to flag as OOD (default: %(default)s)",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=MAX_IMAGES,
        help="maximum number of images, selected with the seed (default: %(default)s)",
    )
    parser.add_argument(
        "--other-data",
        action="store_true",
        help="allow images of another size or mode from a data set that the model was not trained on",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write ``calibration.json`` into the run folder; print the threshold."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise ValueError(f"--model must be a run folder, where the calibration is written, got {options.model!r}.")
    model_folder(options.model)
    if options.num_images < 1:
        raise ValueError(f"--num-images must be >= 1, got {options.num_images}.")
    check_writable("--model", folder, is_folder=True)
    if not 0.0 < options.target_fpr < 1.0:
        raise ValueError(f"--target-fpr must be between 0 and 1, got {options.target_fpr}.")

    import torch

    from hf_ebm.data.image_processor import to_unit_range
    from hf_ebm.data.loading import DatasetName, describe_change, draw_rows, load_named
    from hf_ebm.data.splits import share_rows, split_sizes
    from hf_ebm.hub.model_card import refresh_card
    from hf_ebm.scoring.calibration import FILE_NAME, MAX_BANK, MAX_DENSITY_REFERENCE
    from hf_ebm.utils.files import to_json
    from hf_ebm.utils.logging import DELAY
    from hf_ebm.utils.torch_utils import find_device

    named = DatasetName.parse(options.dataset)
    split, device = named.choose_split(options.split, "test"), find_device(options.device)
    pipeline = load_scorer(folder, load_reconstruction="auto", image_encoder=options.encoder).to(device)
    pipeline.set_progress_bar_config(leave=False, delay=DELAY, disable=None, unit="batch")
    shape = pipeline.sample_shape
    if len(shape) != 3:
        raise ValueError(f"--model {options.model} scores vectors; use pipe.calibrate(held_out) from Python.")
    if options.score is not None and options.score not in pipeline.available_scores:
        raise ValueError(f"--score: this model allows {pipeline.available_scores}, got {options.score!r}.")
    dataset: Any
    dataset, source = load_named(named, shape, split, options.image_column, pipeline.image_processor)
    trained_split = find_trained_split(source, folder)
    trained_on = None if trained_split is None else share_rows(trained_split, source["split"], split_sizes(dataset))
    if trained_on:
        print(
            f"note: split {source['split']} of {source['dataset']} has images that the model was trained on (split "
            f"{trained_split}), whose energies are lower than those of other images, so that too many others are "
            "flagged as OOD; give a held-out split as name@split.",
            file=sys.stderr,
        )
    if change := describe_change(dataset):
        if trained_split is None and not options.other_data:
            raise ValueError(
                f"--dataset {options.dataset}: {change}, and the model was trained on another data set. To "
                "calibrate on it anyway, add --other-data; nothing was written."
            )
        print(f"note: {change}.", file=sys.stderr)
    rows = draw_rows(len(dataset), options.num_images, options.seed)
    images = to_unit_range(torch.stack([dataset[row][0] for row in rows]))

    reference, of_reference = None, None
    if trained_split is not None and not trained_on:  # the density scores compare with images that were trained on
        training: Any
        training, reference_source = load_named(
            dataclasses.replace(named, split=trained_split),
            shape,
            trained_split,
            options.image_column,
            pipeline.image_processor,
        )
        limit = MAX_DENSITY_REFERENCE if options.encoder is None else MAX_BANK
        rows = draw_rows(len(training), limit, options.seed)
        reference = to_unit_range(torch.stack([training[row][0] for row in rows]))
        of_reference = f"{reference_source['dataset']}, split {reference_source['split']}"
    calibration = pipeline.calibrate(images, options.target_fpr, seed=options.seed, reference=reference)
    shown = f"{source['dataset']}, split {source['split']}"
    calibration = dataclasses.replace(calibration, trained_on=trained_on, dataset=shown, reference_dataset=of_reference)
    score = calibration.default_score if options.score is None else options.score
    calibration.check_has(score)
    calibration.save(folder)
    refreshed = refresh_card(folder)
    num_flagged = int(pipeline(images, score=score).is_ood.sum())
    threshold = calibration.threshold(score)
    if options.json:
        record = {
            "model": options.model,
            **source,
            "num_images": len(images),
            "target_fpr": options.target_fpr,
            "score": score,
            "threshold": threshold,
            "flagged": num_flagged,
            "num_fitted": len(images) - calibration.num_calibrated(score),
            "num_calibrated": calibration.num_calibrated(score),
            "expected_fpr": calibration.expected_fpr(score),
            "calibrated_scores": sorted(calibration.reference),
            "encoder": calibration.encoder,
        }
        print(to_json(record, indent=2))
        return
    others = "other training images" if trained_on else "other in-distribution images"
    print(f"{score} above {threshold:.6g} is flagged as OOD: {num_flagged} of the {len(images)} images of {shown}")
    print(f"expected for {others}: {100 * calibration.expected_fpr(score):.3g} %, the average over calibration sets")
    if calibration.num_calibrated(score) < len(images):
        print(
            f"(a random {calibration.num_fitted} of the images fitted its statistics, the other "
            f"{calibration.num_calibrated(score)} calibrated it)"
        )
    print(f"wrote {folder / FILE_NAME} (thresholds of {', '.join(sorted(calibration.reference))})")
    if refreshed:
        print(CARD_REFRESHED.format(folder))


def find_trained_split(source: dict[str, Any], folder: Path) -> str | None:
    """Return the split that a run was trained on, by its settings; None for another data set."""
    from hf_ebm.hub.model_card import public_name, read_settings

    settings = read_settings(folder)
    if public_name(settings.get("dataset", "")) != source["dataset"]:
        return None
    configs = {settings.get("dataset_config"), source.get("config")} - {None}  # None = the default one
    return settings.get("dataset_split", "train") if len(configs) < 2 else None
