"""Time the package's Dual-MCMC train step against a reference in fp32 without optimisations (`literal_dual_mcmc.py`).

    python benchmarks/dual_mcmc_step.py --preset digits
    python benchmarks/dual_mcmc_step.py --preset cifar10 --device cuda --batch-size 100 --mixed-precision bf16 \\
        --channels-last --cuda-graph

The chains are the published ones: 30 steps on images, twice, and 10 on latents. Before the timing
both sides take one step from equal weights with equal random numbers, with spectral norm's estimate
fixed along the chains. Their loss terms must agree to 1e-3 in fp32 and to 5 % in bf16. That step
has 3 updates on images and 1 on latents, since long chains amplify rounding. Its last term, the
revised samples' energy after the generator's update, may differ by 10 %: Adam's first update turns
gradients at rounding level into full steps.

"literal" is timed as published: every chain step updates spectral norm's estimate. "literal, no
power iteration" keeps it fixed.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from literal_dual_mcmc import LiteralDualMCMC
from timing import add_training_options, alternate, make_parser, parse, ratio, report, warmup_rounds
from torch import Tensor

from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models
from hf_ebm.training.cuda_graph import NUM_EAGER
from hf_ebm.training.train_dual_mcmc import METHOD, DualMCMCSettings, make_model_settings, make_train_state
from hf_ebm.training.trainer import make_train_step, prepare_models

BATCH_SIZES = {"digits": 64, "cifar10": 2}
TOLERANCES = {"no": 1e-3, "bf16": 5e-2}
SIDES = ("hf_ebm train_step", "literal fp32 eager", "literal, no power iteration in chains")


class Package:
    """The package's step with its optimizers for `models`."""

    def __init__(self, models: tuple[Any, Any, Any], settings: DualMCMCSettings, accelerator: Accelerator) -> None:
        self.settings = settings
        prepare_models(models, settings)
        self.state, _ = make_train_state(settings, accelerator, models, steps_per_epoch=1)
        self.train_step = make_train_step(METHOD, settings, self.state)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """One iteration on the batch `x`; the terms of the losses."""
        return self.train_step(x, 0, self.state, self.settings)


def agreement(models: Any, x: Tensor, settings: DualMCMCSettings, accelerator: Accelerator) -> dict[str, float]:
    """Relative differences of the loss terms of one step from equal weights on equal random numbers.

    Raises:
        SystemExit: If one is above its tolerance.
    """
    settings = dataclasses.replace(settings, x_num_steps=3, z_num_steps=1)
    num_steps = 1
    if settings.cuda_graph:  # the step to compare is the first one after the eager ones; no weight may move before it
        rates = dict.fromkeys((f"{name}_learning_rate" for name in ("generator", "energy", "inference")), 1e-30)
        settings, num_steps = dataclasses.replace(settings, **rates), NUM_EAGER + 1
    models = copy.deepcopy(models)
    models[1].train()
    with torch.no_grad():  # the literal side's energy update has two forwards, so two power iterations: converge first
        for _ in range(100):
            models[1](x[:1])
    sides = (
        Package(copy.deepcopy(models), settings, accelerator),
        LiteralDualMCMC(copy.deepcopy(models), settings, power_iteration_in_chain=False),
    )
    terms = []
    for side, number in zip(sides, (num_steps, 1), strict=True):
        for _ in range(number):
            torch.manual_seed(0)
            found_terms = side.step(x)
        terms.append(found_terms)
    got, want = terms
    scale = {name: value.abs() for name, value in want.items()}
    scale["energy_data"] = scale["energy_revised"] = torch.maximum(scale["energy_data"], scale["energy_revised"])
    found = {name: ((got[name] - want[name]).abs() / scale[name]).item() for name in want}
    print("agreement of one step from equal weights, relative differences of the loss terms:")
    print("\n".join(f"  {name}: {value:.2e}" for name, value in found.items()))
    limits = dict.fromkeys(found, TOLERANCES[settings.mixed_precision]) | {"energy_revised": 0.1}
    wrong = [name for name, value in found.items() if not value <= limits[name]]
    if wrong:
        raise SystemExit(f"error: the two sides do not agree: {', '.join(wrong)}. Nothing was timed.")
    return found


def main() -> None:
    """Check, time, report."""
    parser = make_parser("The package's Dual-MCMC train step against a literal one.", BATCH_SIZES, repeats=8)
    add_training_options(parser)
    arguments = parse(parser)
    settings = DualMCMCSettings(
        preset=arguments.preset,
        batch_size=arguments.batch_size,
        mixed_precision=arguments.mixed_precision,
        channels_last=arguments.channels_last,
        compile=arguments.compile,
        cuda_graph=arguments.cuda_graph,
    )
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=arguments.device == "cpu")
    device = accelerator.device
    set_seed(arguments.seed)
    models = tuple(model.to(device) for model in build_dual_mcmc_models(make_model_settings(settings)))
    x = torch.rand(arguments.batch_size, *models[0].sample_shape, device=device) * 2 - 1
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = agreement(models, x, settings, accelerator)

    literal = LiteralDualMCMC(copy.deepcopy(models), settings)
    no_iteration = LiteralDualMCMC(copy.deepcopy(models), settings, power_iteration_in_chain=False)
    package = Package(models, settings, accelerator)
    x_package = x.contiguous(memory_format=torch.channels_last) if settings.channels_last else x
    sides = {
        SIDES[0]: lambda: package.step(x_package),
        SIDES[1]: lambda: literal.step(x),
        SIDES[2]: lambda: no_iteration.step(x),
    }
    wall, cpu = alternate(sides, arguments.repeats, warmup_rounds(arguments), device)
    results: dict[str, Any] = {"speed-up (wall clock)": ratio(wall, SIDES[1], SIDES[0])}
    results["speed-up over the literal one without power iteration"] = ratio(wall, SIDES[2], SIDES[0])
    if device.type == "cpu":
        results["speed-up (CPU seconds)"] = ratio(cpu, SIDES[1], SIDES[0])
    options = {"precision": settings.mixed_precision, "channels_last": settings.channels_last}
    results |= {"batch": arguments.batch_size, **options, "compile": settings.compile}
    results |= {"cuda_graph": settings.cuda_graph}
    results |= {"agreement": found}
    report(f"Dual-MCMC train step, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
