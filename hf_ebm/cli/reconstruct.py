"""``hf-ebm reconstruct``: reconstruct images from their latents."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_ebm.cli.images import check_image_format, check_images, open_named, png_names
from hf_ebm.cli.options import add_device_option, add_model_option, add_overwrite_option, add_seed_option, check_new
from hf_ebm.pipelines.loading import load_image_generator
from hf_ebm.utils.files import check_writable, path_option, path_text, whole_file


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "reconstruct",
        help="reconstruct images from their inferred and revised latents",
        description="Infer the latents of images, revise them by Langevin steps, and decode them.",
        epilog="example: hf-ebm reconstruct --model outputs/dual-mcmc-digits digit.png --output again.png",
    )
    add_model_option(parser)
    parser.add_argument("images", nargs="+", type=path_text, help="image files or URLs, prepared as in training")
    add_device_option(parser)
    parser.add_argument("--num-inference-steps", type=int, help="steps of the z-chain; default: as in training")
    add_seed_option(parser, "the latents")
    parser.add_argument(
        "--output",
        type=path_option,
        default=Path("reconstructions.png"),
        help="an image file (rows: originals, reconstructions from inferred latents, from revised latents), or a "
        "folder for one file per reconstruction (default: %(default)s)",
    )
    add_overwrite_option(parser)
    parser.add_argument("--json", action="store_true", help="print the errors of each image as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the image or the folder; print each image's errors before and after the z-chain."""
    as_folder = options.output.suffix == ""
    if not as_folder:
        check_image_format(options.output)
    check_writable("--output", options.output, is_folder=as_folder)
    file_names = png_names(options.images, options.output) if as_folder else []
    outputs = [options.output / name for name in file_names] if as_folder else [options.output]
    check_new("--output", outputs, options.overwrite)
    check_images(options.images)
    import torch

    from hf_ebm.data.image_processor import to_unit_range
    from hf_ebm.evaluation.plots import save_grid
    from hf_ebm.evaluation.sample_metrics import reconstruction_metrics
    from hf_ebm.utils.files import finite_or_none, to_json
    from hf_ebm.utils.torch_utils import find_device

    device = find_device(options.device)
    pipeline = load_image_generator(options.model).to(device)
    if not hasattr(pipeline, "reconstruct"):
        raise ValueError(
            f"--model {options.model} holds a {type(pipeline).__name__}, which does not reconstruct images; use one of "
            "whose tasks, listed by hf-ebm info, is reconstruct."
        )
    opened = [open_named(image) for image in options.images]
    images = pipeline.load_images(opened)
    report_changes(options.images, opened, pipeline.image_processor)
    inferred, revised = (
        pipeline.reconstruct(
            to_unit_range(images), steps, generator=torch.Generator().manual_seed(options.seed), output_type="latent"
        )
        .images.clamp(-1.0, 1.0)
        .cpu()
        for steps in (0, options.num_inference_steps)
    )
    found = [reconstruction_metrics(images, recon) for recon in (inferred, revised)]
    errors = {
        image: {
            name: {
                "inference_model": finite_or_none(found[0][name][index].item()),
                "z_chain": finite_or_none(found[1][name][index].item()),
            }
            for name in found[0]
        }
        for index, image in enumerate(options.images)
    }
    if as_folder:
        with contextlib.ExitStack() as files:  # all of them or none
            for name, image in zip(file_names, pipeline.post_process(revised, "pil"), strict=True):
                image.save(files.enter_context(whole_file(options.output / name)))
    else:
        rows = [image for x in (images, inferred, revised) for image in pipeline.post_process(x, "pil")]
        with whole_file(options.output) as file:
            save_grid(rows, file, len(images))
    if options.json:
        print(to_json({"output": str(options.output), "seed": options.seed, "errors": errors}, indent=2))
        return
    print("mean squared error per pixel, on the scale of [-1, 1]\n      inferred       revised  image")
    for name, values in errors.items():
        print(f"{values['mse']['inference_model']:14.6f}{values['mse']['z_chain']:14.6f}  {name}")
    rows_shown = "" if as_folder else ": rows are originals, reconstructions from inferred and from revised latents"
    print(f"wrote {options.output}{rows_shown}")


def report_changes(names: Sequence[str], images: Sequence[Any], image_processor: Any) -> None:
    """Report conversions of images on stderr: one line per kind of conversion."""
    changed: dict[str, list[str]] = {}
    for name, image in zip(names, images, strict=True):
        changes = image_processor.describe_changes(image.size, image.mode, image.has_transparency_data)
        changed.setdefault(changes, []).append(name)
    for changes, those in changed.items():
        if changes:
            print(f"{', '.join(those)}: {changes}, to fit the model", file=sys.stderr)
