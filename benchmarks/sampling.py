"""Compare images per second of `DDAEBMPipeline` (T = 4) with diffusers' DDPM and DDIM with a U-Net of the same size.

    python benchmarks/sampling.py --preset digits
    python benchmarks/sampling.py --preset cifar10 --device cuda --mixed-precision bf16 --channels-last --compile

The U-Net is the generator's own (`hf_ebm.models.unet.build_unet`) without the latent's embedding;
DDPM and DDIM take 10 and 50 of 1000 steps. The weights are random: only the speed is compared, not
the quality of the samples. Every pipeline returns arrays (``output_type="np"``), with its progress
bar off. bf16 is autocast around all of them: with bf16 weights diffusers' own pipelines end in bf16
states, for which numpy has no type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from timing import Spread, alternate, make_parser, parse, ratio, report
from torch import nn

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.models.unet import build_unet

BATCH_SIZES = {"digits": 64, "cifar10": 4}
NUM_STEPS = (10, 50)
OURS = "DDAEBM, 4 steps"


def same_size_unet(generator_model: Any) -> nn.Module:
    """The generator's U-Net without the latent, for DDPM and DDIM."""
    config = generator_model.config
    return build_unet(config, config.embedding_dim or 4 * config.base_channels, None)


def main() -> None:
    """Build the three pipelines, time, report."""
    arguments = parse(make_parser("Images per second of DDAEBM, DDPM and DDIM.", BATCH_SIZES, repeats=5))
    set_seed(arguments.seed)
    generator_model, _, _ = build_ddaebm_models(ddaebm_model_settings(arguments.preset))
    unet = same_size_unet(generator_model)
    for model in (generator_model, unet):
        model.eval()
        if arguments.channels_last:
            model.to(memory_format=torch.channels_last)
        if arguments.compile:
            model.compile()
    pipes = {
        "DDAEBM": DDAEBMPipeline(generator_model, DDAEBMScheduler()),
        "DDPM": DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)),
        "DDIM": DDIMPipeline(unet, DDIMScheduler(num_train_timesteps=1000)),
    }
    for pipe in pipes.values():
        pipe.to(arguments.device)
        pipe.set_progress_bar_config(disable=True)

    def run(name: str, **kwargs: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.mixed_precision == "bf16"):
                return pipes[name](batch_size=arguments.batch_size, output_type="np", **kwargs)

        return call

    sides = {OURS: run("DDAEBM")}
    for steps in NUM_STEPS:
        for name in ("DDPM", "DDIM"):
            sides[f"{name}, {steps} steps"] = run(name, num_inference_steps=steps)
    device = torch.device(arguments.device)
    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, device)
    rates = {name: Spread.of([arguments.batch_size / seconds for seconds in wall[name]]) for name in sides}
    results: dict[str, Any] = {f"images per second, {name}": rate for name, rate in rates.items()}
    for name in list(sides)[1:]:
        results[f"times faster than {name}"] = ratio(wall, name, OURS)
    sizes = {"generator": generator_model, "U-Net of DDPM and DDIM": unet}
    for name, model in sizes.items():
        results[f"parameters, {name}"] = sum(parameter.numel() for parameter in model.parameters())
    results |= {"batch": arguments.batch_size, "precision": arguments.mixed_precision}
    results |= {"channels_last": arguments.channels_last, "compile": arguments.compile, "weights": "random: speed only"}
    report(f"sampling speed, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
