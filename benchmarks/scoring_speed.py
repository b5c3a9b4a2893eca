"""Compare images per second of `EnergyScoringPipeline` with the bare energy forward on the same tensors.

    python benchmarks/scoring_speed.py --preset digits
    python benchmarks/scoring_speed.py --preset cifar10 --batch-size 64 --num-workers 2
    python benchmarks/scoring_speed.py --preset cifar10 --full --device cuda --batch-size 256 --num-workers 8

The bare side is ``energy_model(x, 0).energy`` over the batches in eval mode, without gradients,
with the tensors on the model's device and the energies on the CPU. The pipeline is timed on the
same tensors, and on a data set of PNGs of the same images, opened with and without workers. A ratio
of 1 is the bare speed. The workers use other cores where available. "cifar10" is the published
network at a quarter of its width, unless --full. Random weights.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import datasets
import PIL.Image
import torch
from accelerate.utils import set_seed
from timing import Spread, alternate, make_parser, parse, ratio, report
from torch import Tensor

from hf_ebm import DDAEBMScheduler, EnergyScoringPipeline
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

BATCH_SIZES = {"digits": 256, "cifar10": 64}
NUM_IMAGES = {"digits": 8192, "cifar10": 256}
SMALL = {"digits": None, "cifar10": {"unet": {"base_channels": 32}}}
BARE, TENSORS = "bare forward", "pipeline, tensors"


def png_dataset(pixels: Tensor) -> datasets.Dataset:
    """Make a data set of PNGs from images, uint8 (N, C, H, W)."""
    files = []
    for image in pixels.permute(0, 2, 3, 1).squeeze(-1).numpy():
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "png")
        files.append({"bytes": file.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())


def main() -> None:
    """Build, check that the sides agree, time, report."""
    parser = make_parser("EnergyScoringPipeline against the bare energy forward.", BATCH_SIZES, repeats=10)
    parser.add_argument("--num-images", type=int, help="number of images (default: digits 8192, cifar10 256)")
    parser.add_argument("--num-workers", type=int, default=1, help="workers that open PNGs (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="cifar10: the published width")
    arguments = parse(parser)
    set_seed(arguments.seed)
    overrides = None if arguments.full else SMALL[arguments.preset]
    _, energy_model, _ = build_ddaebm_models(ddaebm_model_settings(arguments.preset, overrides=overrides))
    device = torch.device(arguments.device)
    pipeline = EnergyScoringPipeline(energy_model.eval(), DDAEBMScheduler()).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.channels_last:
        energy_model.to(memory_format=torch.channels_last)
    if arguments.compile:
        energy_model.compile()
    number, size = arguments.num_images or NUM_IMAGES[arguments.preset], arguments.batch_size
    pixels = torch.randint(0, 256, (number, *pipeline.sample_shape), dtype=torch.uint8)
    x, pictures = pixels.float() / 255.0, png_dataset(pixels)
    on_device = (x * 2.0 - 1.0).to(device)

    def autocast(run: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.mixed_precision == "bf16"):
                return run()

        return call

    @torch.no_grad()
    def bare() -> Tensor:
        return torch.cat([energy_model(part, 0).energy.float() for part in on_device.split(size)]).cpu()

    pngs = {f"pipeline, PNGs, {n} workers": n for n in (0, arguments.num_workers)}
    sides = {
        BARE: autocast(bare),
        TENSORS: autocast(lambda: pipeline(x, batch_size=size).energies),
    }
    for name, workers in pngs.items():
        sides[name] = autocast(lambda n=workers: pipeline(pictures, batch_size=size, num_workers=n).energies)
    expected = sides[BARE]()
    for name, run in sides.items():
        torch.testing.assert_close(run(), expected, rtol=1e-2, atol=1e-2, msg=f"{name} gives other energies.")

    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, device)
    results: dict[str, Any] = {}
    for name in list(sides)[1:]:
        results[f"share of the bare speed, {name} (wall clock)"] = ratio(wall, BARE, name)
    if device.type == "cpu":  # independent of other programs on the machine
        results |= {f"share, {name} (CPU seconds)": ratio(cpu, BARE, name) for name in list(sides)[1:]}
    for name in sides:
        results[f"images per second, {name}"] = Spread.of([number / seconds for seconds in wall[name]])
    results |= {"parameters": sum(parameter.numel() for parameter in energy_model.parameters()), "images": number}
    results |= {"batch": size, "precision": arguments.mixed_precision, "weights": "random: speed only"}
    report(f"scoring speed, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
