"""``hf-ebm evaluate``: evaluate a model's samples and reconstructions against held-out images."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from hf_ebm.cli.options import CARD_REFRESHED, add_comparison_options
from hf_ebm.pipelines.loading import load_image_generator
from hf_ebm.utils.files import check_writable, path_option, path_text, whole_file


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate samples and reconstructions against held-out images",
        description="Compare a model's samples with held-out images, and its reconstructions with their originals.",
        epilog="example: hf-ebm evaluate --model outputs/ddaebm-digits --dataset digits --output outputs/ddaebm-digits",
    )
    add_comparison_options(parser)
    parser.add_argument(
        "--dataset", required=True, type=path_text, help="digits, or a Hub id or a folder, name[:config][@split]"
    )
    parser.add_argument(
        "--split",
        help="split to compare samples with, where --dataset names none (default: test)",
    )
    parser.add_argument("--num-images", type=int, help="samples; default: as many as the other split, at most 10,000")
    parser.add_argument(
        "--num-seeds", type=int, default=1, help="sets of samples, for the spread over seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--feature-extractor",
        type=path_text,
        help="digits, inception, or the id or path of a transformers model (timm/... needs timm); default: digits for "
        "the digits, else inception",
    )
    parser.add_argument("--num-inference-steps", type=int, help="steps of the sampler; default: as in training")
    parser.add_argument("--num-reconstruction-steps", type=int, help="steps of the z-chain; default: as in training")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="image-decoding processes (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=path_option,
        default=Path("evaluation"),
        help="folder for evaluate.json; the card of a run folder is updated with it (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the metrics next to the real-vs-real distances; write ``evaluate.json`` with them and the protocol.

    Progress goes to stderr.
    """
    from hf_ebm.data.loading import DatasetName, load_named
    from hf_ebm.evaluation.feature_extractors import load_extractor
    from hf_ebm.evaluation.samples import evaluate_samples
    from hf_ebm.hub.model_card import sample_table
    from hf_ebm.utils.logging import passing_bar
    from hf_ebm.utils.torch_utils import find_device

    check_writable("--output", options.output, is_folder=True)
    started = time.perf_counter()
    named = DatasetName.parse(options.dataset)
    split = named.choose_split(options.split, "test")
    default_extractor = "digits" if named.name == "digits" else "inception"
    device = find_device(options.device)
    pipeline = load_image_generator(options.model).to(device)
    try:
        extractor = load_extractor(options.feature_extractor or default_extractor, device)
    except ImportError:  # report a missing data set first: its name selects the extractor
        load_named(named, pipeline.sample_shape, split, options.image_column, pipeline.image_processor)
        raise
    record = evaluate_samples(
        pipeline,
        options.dataset,
        extractor,
        split=split,
        image_column=options.image_column,
        num_images=options.num_images,
        num_seeds=options.num_seeds,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        num_inference_steps=options.num_inference_steps,
        num_reconstruction_steps=options.num_reconstruction_steps,
        seed=options.seed,
        progress_bar=passing_bar(unit="batch"),
    )
    record["seconds"] = round(time.perf_counter() - started, 1)
    text, refreshed = write_record(record, options.model, options.output)
    print(text if options.json else sample_table(record))
    if not options.json:
        print(f"wrote {options.output}/evaluate.json (these figures and the protocol)")
        if refreshed:
            print(CARD_REFRESHED.format(options.output))


def write_record(record: dict[str, Any], model: str, folder: Path) -> tuple[str, bool]:
    """Write ``evaluate.json`` into `folder`; return its text, and whether a model card was updated."""
    from hf_ebm.hub.model_card import public_name, refresh_card
    from hf_ebm.utils.files import to_json

    record["protocol"] = {"model": public_name(model), **record["protocol"]}
    text = to_json(record, indent=2)
    with whole_file(folder / "evaluate.json") as file:
        file.write_text(text, encoding="utf-8")
    return text, refresh_card(folder)
