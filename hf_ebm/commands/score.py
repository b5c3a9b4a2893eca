"""``hf-ebm score``: energies of image files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_ebm.commands.models import load_pipeline


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "score",
        help="print the energy of images, low = likely",
        epilog="example: hf-ebm score --model outputs/ddaebm-digits one.png two.png",
    )
    parser.add_argument("--model", required=True, help="a run folder or a Hub id")
    parser.add_argument("images", nargs="+", type=Path, help="image files of the model's size")
    parser.add_argument("--json", action="store_true", help="print a JSON object {file: energy}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print one energy per file."""
    import PIL.Image

    from hf_ebm.image_inputs import PIL_MODES

    pipeline = load_pipeline(options.model)
    mode = PIL_MODES.get(pipeline.sample_shape[0])
    opened = [PIL.Image.open(path) for path in options.images]
    for path, image in zip(options.images, opened, strict=True):
        if image.mode != mode:
            print(f"note: {path} is converted from {image.mode} to {mode}, as the model takes", file=sys.stderr)
    images = [image.convert(mode) for image in opened]
    energies = pipeline.score(images).energies.tolist()
    if options.json:
        print(json.dumps({str(path): energy for path, energy in zip(options.images, energies, strict=True)}))
        return
    for path, energy in zip(options.images, energies, strict=True):
        print(f"{energy:14.7g}  {path}")
