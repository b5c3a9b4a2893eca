"""Time Langevin steps of the scheduler and the pipeline against bare gradient calls.

    python benchmarks/langevin_overhead.py --preset digits
    python benchmarks/langevin_overhead.py --preset cifar10 --device cuda --mixed-precision bf16

The bare side computes as many gradients of the same energy, with its normalised weights computed
once, and subtracts each from the state. The pipeline also samples latents, generates, adds noise,
checks the chain for divergence and makes images; its progress bar is off. The time of its steps is
the pipeline's time minus that of the same pipeline without a chain, ``num_inference_steps=0``, in
the same round. Random weights.
"""

from __future__ import annotations

import torch
from accelerate.utils import set_seed
from timing import alternate, make_parser, parse, ratio, report

from hf_ebm import DualMCMCPipeline, LangevinScheduler
from hf_ebm.langevin import run_chain
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings

BATCH_SIZES = {"digits": 256, "cifar10": 2}
SIDES = {
    "pipeline": "DualMCMCPipeline",
    "no chain": "DualMCMCPipeline, no chain",
    "chain": "run_chain with LangevinScheduler",
    "bare": "gradients of the energy",
}
STEPS = "DualMCMCPipeline's steps alone"


def main() -> None:
    """Time, report."""
    parser = make_parser("Langevin steps through the pipeline against bare gradients.", BATCH_SIZES, repeats=20)
    parser.add_argument("--steps", type=int, default=30, help="updates of the chain (default: %(default)s)")
    arguments = parse(parser)
    set_seed(arguments.seed)
    models = build_dual_mcmc_models(dual_mcmc_model_settings(arguments.preset))
    dtype = torch.bfloat16 if arguments.mixed_precision == "bf16" else torch.float32
    generator_model, energy_model = (model.to(dtype) for model in models[:2])
    pipe = DualMCMCPipeline(generator_model, LangevinScheduler(arguments.steps, 0.5, 0.001), energy_model)
    pipe.to(arguments.device).set_progress_bar_config(disable=True)
    energy_model.eval()
    device = torch.device(arguments.device)
    start = pipe(arguments.batch_size, num_inference_steps=0, output_type="latent").images

    def bare() -> torch.Tensor:
        x = start
        with energy_model.chain():
            for _step in range(arguments.steps):
                x = x.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(energy_model(x.to(dtype)).energy.sum(), x)
                x = x - 0.125 * gradient
        return x

    def chain() -> torch.Tensor:
        with energy_model.chain():
            return run_chain(pipe.scheduler, lambda x: energy_model(x.to(dtype)).energy, start, arguments.steps).sample

    sides = {
        SIDES["pipeline"]: lambda: pipe(arguments.batch_size),
        SIDES["no chain"]: lambda: pipe(arguments.batch_size, num_inference_steps=0),
        SIDES["chain"]: chain,
        SIDES["bare"]: bare,
    }
    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, device)
    for times in (wall, cpu):
        both = zip(times[SIDES["pipeline"]], times[SIDES["no chain"]], strict=True)
        times[STEPS] = [whole - without for whole, without in both]
    names = (SIDES["pipeline"], STEPS, SIDES["chain"])
    results = {f"{name} / bare (wall clock)": ratio(wall, name, SIDES["bare"]) for name in names}
    if device.type == "cpu":
        results |= {f"{name} / bare (CPU seconds)": ratio(cpu, name, SIDES["bare"]) for name in names[:2]}
    rates = sorted(arguments.steps * arguments.batch_size / seconds for seconds in wall[SIDES["pipeline"]])
    results |= {"image updates per second (pipeline, median)": round(rates[len(rates) // 2], 1)}
    results |= {"batch": arguments.batch_size, "steps": arguments.steps, "dtype": str(dtype)}
    report(f"Langevin overhead, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
