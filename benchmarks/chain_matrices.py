"""A chain on a small energy of Dual-MCMC Teaching by its matrices against the same chain by its convolutions.

    python benchmarks/chain_matrices.py --channels-last
    python benchmarks/chain_matrices.py --channels-last --mixed-precision bf16

Each side is a chain of 30 gradients from its start, in which spectral norm's weights, and on one side the matrices, are
made once. The other side is the same network told that it is not small. On a CPU alone: a GPU has no such matrices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from accelerate.utils import set_seed
from timing import alternate, make_parser, parse, ratio, report
from torch import Tensor

from hf_ebm.langevin import energy_grad
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings

NUM_STEPS = 30
SIDES = ("by matrices", "by convolutions")


def main() -> None:
    """Check that the two sides agree, time, report."""
    arguments = parse(make_parser("A small energy's chain by matrices against convolutions.", {"digits": 64}, 40))
    if arguments.device != "cpu":
        raise SystemExit("error: --device must be cpu: a GPU has no such matrices.")
    set_seed(arguments.seed)
    energy_model = build_dual_mcmc_models(dual_mcmc_model_settings(arguments.preset))[1].eval()
    memory_format = torch.channels_last if arguments.channels_last else torch.contiguous_format
    energy_model.to(memory_format=memory_format)
    by_convolutions = copy.deepcopy(energy_model)
    by_convolutions.small = False
    x = torch.rand(arguments.batch_size, *energy_model.sample_shape) * 2 - 1
    bf16 = arguments.mixed_precision == "bf16"

    def chain(model: torch.nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            state = x
            with model.chain(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                for _step in range(NUM_STEPS):
                    state = state - energy_grad(lambda x: model(x).energy, state)
            return state

        return run

    sides = dict(zip(SIDES, (chain(energy_model), chain(by_convolutions)), strict=True))
    moved = [run() - x for run in sides.values()]
    difference = ((moved[0] - moved[1]).norm() / moved[1].norm()).item()
    if difference > (0.1 if bf16 else 1e-4):
        raise SystemExit(f"error: the two chains differ by {difference:.1e} of their way. Nothing was timed.")
    wall, cpu = alternate(sides, arguments.repeats, arguments.warmup, torch.device("cpu"))
    results = {
        "speed-up (wall clock)": ratio(wall, SIDES[1], SIDES[0]),
        "speed-up (CPU seconds)": ratio(cpu, SIDES[1], SIDES[0]),
        "difference of where the chains went": f"{difference:.1e}",
        "batch": arguments.batch_size,
        "gradients": NUM_STEPS,
        "precision": arguments.mixed_precision,
    }
    report(f"chain on a small energy, {arguments.preset} preset, on cpu", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
