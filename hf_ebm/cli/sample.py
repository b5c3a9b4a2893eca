"""``hf-ebm sample``: generate samples and save them as a grid."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_ebm.cli.images import check_image_format
from hf_ebm.cli.options import add_device_option, add_model_option, add_overwrite_option, add_seed_option, check_new
from hf_ebm.pipelines.loading import load_image_generator
from hf_ebm.utils.files import check_writable, path_option, whole_file


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "sample",
        help="generate samples and save them as a grid",
        description="Generate samples and save them as one grid.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    add_model_option(parser)
    add_device_option(parser)
    parser.add_argument("--num-images", type=int, default=16, help="number of samples (default: %(default)s)")
    parser.add_argument(
        "--num-inference-steps",
        type=int,
        help="denoising steps, or updates of the Langevin chain on images (0 = only the generator); default: as in "
        "training",
    )
    parser.add_argument(
        "--class",
        dest="class_label",
        help="number or name of the class to sample, of a model trained with classes; default: all, by their frequency",
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 = no guidance (default: %(default)s)")
    add_seed_option(parser, "the random numbers")
    parser.add_argument(
        "--output", type=path_option, default=Path("samples.png"), help="image file of the grid (default: %(default)s)"
    )
    add_overwrite_option(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write a grid of samples."""
    if options.num_images < 1:
        raise ValueError(f"--num-images must be >= 1, got {options.num_images}.")
    check_image_format(options.output)
    check_writable("--output", options.output)
    check_new("--output", [options.output], options.overwrite)
    import torch

    from hf_ebm.evaluation.plots import save_grid
    from hf_ebm.utils.torch_utils import find_device

    device = find_device(options.device)
    pipeline = load_image_generator(options.model).to(device)
    generator = torch.Generator().manual_seed(options.seed)
    by_class: dict[str, Any] = {}
    if options.class_label is not None or options.guidance_scale != 1.0:
        names = getattr(pipeline, "class_names", [])
        if not names or not hasattr(pipeline, "check_guidance"):
            raise ValueError(f"--class and --guidance-scale: --model {options.model} was trained without classes.")
        label = options.class_label
        label = int(label) if label is not None and label not in names and label.isdecimal() else label
        by_class = {"class_labels": label, "guidance_scale": options.guidance_scale}
    images = pipeline(options.num_images, options.num_inference_steps, generator=generator, **by_class).images
    columns = max(c for c in range(1, int(options.num_images**0.5) + 1) if options.num_images % c == 0)
    with whole_file(options.output) as file:
        save_grid(images, file, options.num_images // columns)
    asked = {name: getattr(options, name) for name in ("num_images", "num_inference_steps", "seed")}
    written = {"model": options.model, "output": str(options.output), **asked}
    print(json.dumps(written) if options.json else f"wrote {options.output}")
