"""``hf-ebm sample``: a picture of samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_ebm.commands.models import load_pipeline


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "sample",
        help="draw images into one picture",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    parser.add_argument("--model", required=True, help="a run folder or a Hub id")
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
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
