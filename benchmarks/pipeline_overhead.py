"""Time `DDAEBMPipeline` against the bare generator calls it needs.

    python benchmarks/pipeline_overhead.py --preset digits
    python benchmarks/pipeline_overhead.py --preset cifar10 --device cuda --mixed-precision bf16 --compile

The bare side repeats the T generator calls of one recorded pipeline run, on the recorded states,
timesteps and latents, in eval mode without gradients. The pipeline also samples noise and the
posterior and makes images; its progress bar is off. Random weights.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import set_seed
from timing import alternate, make_parser, parse, ratio, report
from torch import Tensor

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

BATCH_SIZES = {"digits": 256, "cifar10": 4}
SIDES = {"pipeline": "DDAEBMPipeline", "bare": "T generator calls"}


def record_calls(pipe: DDAEBMPipeline, batch_size: int) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Record the arguments and the output of every generator call of one pipeline run."""
    calls: list[tuple[tuple[Any, ...], Tensor]] = []
    hook = pipe.generator_model.register_forward_hook(
        lambda module, inputs, output: calls.append((inputs, output[0].clone()))
    )
    pipe(batch_size=batch_size, output_type="pt")
    hook.remove()
    return calls


def main() -> None:
    """Record, check that the bare calls reproduce the pipeline's, time and report."""
    parser = make_parser("DDAEBMPipeline against the bare network calls.", BATCH_SIZES, repeats=20)
    parser.add_argument("--output-type", choices=("pil", "np", "pt"), default="pil")
    arguments = parse(parser)
    set_seed(arguments.seed)
    generator_model, _, _ = build_ddaebm_models(ddaebm_model_settings(arguments.preset))
    dtype = torch.bfloat16 if arguments.mixed_precision == "bf16" else torch.float32
    pipe = DDAEBMPipeline(generator_model.to(dtype), DDAEBMScheduler()).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    if arguments.channels_last:
        generator_model.to(memory_format=torch.channels_last)
    calls = record_calls(pipe, arguments.batch_size)

    @torch.no_grad()
    def bare() -> list[Tensor]:
        return [generator_model(*inputs, return_dict=False)[0] for inputs, _ in calls]

    different = [step for step, (got, (_, want)) in enumerate(zip(bare(), calls, strict=True)) if not got.equal(want)]
    if different:
        raise SystemExit(f"error: the bare calls {different} do not reproduce the pipeline's. Nothing was timed.")
    if arguments.compile:
        generator_model.compile()

    sides = {
        SIDES["pipeline"]: lambda: pipe(batch_size=arguments.batch_size, output_type=arguments.output_type),
        SIDES["bare"]: bare,
    }
    device = torch.device(arguments.device)
    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, device)
    results = {"pipeline / bare (wall clock)": ratio(wall, SIDES["pipeline"], SIDES["bare"])}
    if device.type == "cpu":
        results["pipeline / bare (CPU seconds)"] = ratio(cpu, SIDES["pipeline"], SIDES["bare"])
    results |= {"batch": arguments.batch_size, "calls": len(calls), "output_type": arguments.output_type}
    results |= {"dtype": str(dtype), "channels_last": arguments.channels_last, "compile": arguments.compile}
    report(f"pipeline overhead, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
