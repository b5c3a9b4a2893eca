"""Networks on images that lie channels last in memory, as the pipelines and scores give them, against plain ones.

    python benchmarks/layout.py
    OMP_NUM_THREADS=1 python benchmarks/layout.py --batch-size 64

DDAEBM's energy and generator without gradients, and the gradient of Dual-MCMC Teaching's energy, each on the same batch
in both layouts: the published networks of CIFAR-10 at a quarter of their width, random weights, which lie as PyTorch
makes them. On a CPU alone: on a GPU nothing is laid out anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import set_seed
from timing import alternate, make_parser, parse, ratio, report
from torch import Tensor

from hf_ebm.langevin import energy_grad
from hf_ebm.memory_format import channels_last_on_cpu
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

DDAEBM, DUAL_MCMC = {"unet": {"base_channels": 32}}, {"energy": {"block_out_channels": [128, 128, 128, 128]}}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: x, "channels last": channels_last_on_cpu}


def make_calls(batch_size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed, by name: functions of a batch of images."""
    generator_model, energy_model, _ = build_ddaebm_models(ddaebm_model_settings("cifar10", overrides=DDAEBM))
    chain_energy_model = build_dual_mcmc_models(dual_mcmc_model_settings("cifar10", overrides=DUAL_MCMC))[1]
    for model in (generator_model, energy_model, chain_energy_model):
        model.eval().requires_grad_(False)
    z = torch.randn(batch_size, generator_model.config.latent_dim)
    return {
        "DDAEBM energy": torch.no_grad()(lambda x: energy_model(x, 0).energy),
        "DDAEBM generator": torch.no_grad()(lambda x: generator_model(x, 0, z).sample),
        "Dual-MCMC energy gradient": lambda x: energy_grad(lambda x: chain_energy_model(x).energy, x),
    }


def main() -> None:
    """Check that the layouts agree, time, report."""
    arguments = parse(make_parser("Networks on channels-last images against plain ones.", {"cifar10": 16}, repeats=20))
    if arguments.device != "cpu":
        raise SystemExit("error: --device must be cpu: on a GPU nothing is laid out anew.")
    set_seed(arguments.seed)
    calls = make_calls(arguments.batch_size)
    x = torch.rand(arguments.batch_size, 3, 32, 32) * 2 - 1
    sides: dict[str, Callable[[], Any]] = {}
    for name, call in calls.items():
        torch.testing.assert_close(call(channels_last_on_cpu(x)), call(x), rtol=1e-3, atol=1e-4)
        for layout, lay_out in LAYOUTS.items():
            sides[f"{name}, {layout}"] = lambda call=call, lay_out=lay_out: call(lay_out(x))
    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, torch.device("cpu"))
    results: dict[str, Any] = {}
    for name in calls:
        pair = [f"{name}, {layout}" for layout in LAYOUTS]
        results[f"{name}: channels last times as fast as plain"] = ratio(wall, *pair)
    report(
        f"layout, {arguments.preset} preset, on cpu", arguments, wall, cpu, results | {"batch": arguments.batch_size}
    )


if __name__ == "__main__":
    main()
