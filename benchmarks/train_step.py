"""Time the package's DDAEBM train step against a reference in fp32 without optimisations (`literal_ddaebm.py`).

    python benchmarks/train_step.py --preset digits
    python benchmarks/train_step.py --preset cifar10 --device cuda --batch-size 64 --mixed-precision bf16 --cuda-graph

Both sides include the EMA of generator and energy. Before the timing they run from equal weights
with equal random numbers and must agree: in fp32 every loss term and all updated and averaged
weights to rounding, in bf16 every loss term to 1 %. This check disables dropout (the sides call the
networks a different number of times) and randomises the energy's last layer, which is initialised
to zero. The timed networks are the preset's. The precision, layout and compile options apply to the
package's side only.

On CUDA the fp32 check runs without TF32. The timing uses torch's defaults, with TF32 convolutions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from literal_ddaebm import LiteralDDAEBM, draw
from timing import add_training_options, alternate, make_parser, parse, ratio, report, warmup_rounds
from torch import Tensor, nn

from hf_ebm.models.presets import build_ddaebm_models
from hf_ebm.training.cuda_graph import NUM_EAGER
from hf_ebm.training.train_ddaebm import METHOD, DDAEBMSettings, make_model_settings, make_train_state
from hf_ebm.training.trainer import make_emas, make_train_step, prepare_models

BATCH_SIZES = {"digits": 64, "cifar10": 8}
# of relative differences; "gradient": at the first step, "update", "average": after the last one
TOLERANCES = {
    "no": {"loss": 1e-4, "gradient": 1e-4, "update": 2e-2, "average": 2e-2},
    "bf16": {"loss": 1e-2},
}
SIDES = {"literal": "literal fp32 eager", "package": "hf_ebm train_step"}

Models = tuple[Any, Any, Any]


class Package:
    """The package's step with its optimizers for `models`, followed by the EMA."""

    def __init__(self, models: Models, settings: DDAEBMSettings, accelerator: Accelerator) -> None:
        self.models, self.settings = models, settings
        prepare_models(models, settings)
        self.state, _ = make_train_state(settings, accelerator, models, steps_per_epoch=1)
        self.emas = make_emas(models[:2], settings.ema_decay, accelerator.device)
        self.train_step = make_train_step(METHOD, settings, self.state)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """One iteration on clean images `x`; the terms of the losses."""
        terms = self.train_step(x, 0, self.state, self.settings)
        for ema, model in zip(self.emas, self.models[:2], strict=True):
            ema.step(model.parameters())
        return terms


def relative(got: Iterable[Tensor], want: Iterable[Tensor], start: Iterable[Tensor] | None = None) -> float:
    """``||got - want|| / ||want - start||`` over all tensors together; `start` None = 0."""
    want = list(want)
    start = [torch.zeros_like(tensor) for tensor in want] if start is None else start
    difference = sum((a - b).double().square().sum() for a, b in zip(got, want, strict=True))
    size = sum((a - b).double().square().sum() for a, b in zip(want, start, strict=True))
    return (difference / size).sqrt().item()


def first_moments(optimizer: Any) -> list[Tensor]:
    """Adam's running mean of the gradients; with ``beta_1 = 0`` it is the last gradient itself."""
    return [optimizer.state[parameter]["exp_avg"] for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def weight_differences(literal: LiteralDDAEBM, package: Package, start: Models) -> dict[str, float]:
    """Differences of the two sides' changes of weights and averages since `start`, relative to the change."""
    literal_models = (literal.generator, literal.energy, literal.inference)
    found = {}
    for index, name in enumerate(("generator", "energy", "inference")):
        before = list(start[index].parameters())
        found[f"update {name}"] = relative(
            package.models[index].parameters(), literal_models[index].parameters(), before
        )
        if index < 2:
            averaged = literal.averages[index][1].parameters()
            found[f"average {name}"] = relative(package.emas[index].shadow_params, averaged, before)
    return found


def agreement(
    start: Models, x: Tensor, settings: DDAEBMSettings, accelerator: Accelerator, num_steps: int
) -> dict[str, float]:
    """Run both sides for `num_steps` from equal weights and return their largest relative differences.

    Adam divides each gradient by its own size, so the few gradients that are all rounding (the keys' bias in attention
    has no effect) become full steps of random sign: the gradients agree much closer than the updates, in which a wrong
    formula would give differences near 1.

    Raises:
        SystemExit: If a difference is above its tolerance.
    """
    start = copy.deepcopy(start)
    for model in start:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    nn.init.normal_(start[1].unet.conv_out.weight, std=0.02)
    literal = LiteralDDAEBM(copy.deepcopy(start), settings)
    package = Package(copy.deepcopy(start), settings, accelerator)
    x_package = x.contiguous(memory_format=torch.channels_last) if settings.channels_last else x

    worst: dict[str, float] = {}
    for index in range(num_steps):
        torch.manual_seed(index)
        want = literal.step(x, draw(x_package, settings.num_timesteps, start[0].config.latent_dim))
        torch.manual_seed(index)
        got = package.step(x_package)
        for name, value in want.items():
            worst[f"loss {name}"] = max(worst.get(f"loss {name}", 0.0), relative([got[name]], [value]))
        if index == 0:
            for name in ("energy", "generator"):
                optimizers = [getattr(side, f"{name}_optimizer") for side in (package.state, literal)]
                worst[f"gradient {name}"] = relative(*map(first_moments, optimizers))
    worst |= weight_differences(literal, package, start)
    accelerator.free_memory()

    print(f"agreement over {num_steps} steps from equal weights, batch {len(x)}, largest relative differences:")
    print("\n".join(f"  {name}: {value:.2e}" for name, value in worst.items()))
    limits = TOLERANCES[settings.mixed_precision]
    wrong = [name for name, value in worst.items() if not value <= limits.get(name.split()[0], math.inf)]
    if wrong:
        raise SystemExit(f"error: the two sides do not agree: {', '.join(wrong)}. Nothing was timed.")
    return worst


def main() -> None:
    """Check, time, report."""
    parser = make_parser("The package's train step against a literal one.", BATCH_SIZES, repeats=10)
    add_training_options(parser)
    parser.add_argument(
        "--check-steps", type=int, help="steps of the agreement check (default: 3, with --cuda-graph 5)"
    )
    parser.add_argument(
        "--check-batch-size",
        type=int,
        help="batch size of the agreement check (default: 4; with --compile the timed one)",
    )
    arguments = parse(parser)
    settings = DDAEBMSettings(
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
    models = tuple(model.to(device) for model in build_ddaebm_models(make_model_settings(settings)))
    x = torch.rand(arguments.batch_size, *models[0].sample_shape, device=device) * 2 - 1

    # another batch size would make torch.compile generate code for dynamic shapes
    num_checked = arguments.check_batch_size or (arguments.batch_size if arguments.compile else 4)
    x_check = torch.rand(num_checked, *models[0].sample_shape, device=device) * 2 - 1
    num_steps = arguments.check_steps or (NUM_EAGER + 2 if settings.cuda_graph else 3)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = agreement(models, x_check, settings, accelerator, num_steps)

    literal = LiteralDDAEBM(copy.deepcopy(models), settings)
    package = Package(models, settings, accelerator)
    x_package = x.contiguous(memory_format=torch.channels_last) if settings.channels_last else x
    latent_dim = models[0].config.latent_dim
    sides = {
        SIDES["literal"]: lambda: literal.step(x, draw(x, settings.num_timesteps, latent_dim)),
        SIDES["package"]: lambda: package.step(x_package),
    }
    wall, cpu = alternate(sides, arguments.repeats, warmup_rounds(arguments), device)
    results = {"speed-up (wall clock)": ratio(wall, SIDES["literal"], SIDES["package"])}
    if device.type == "cpu":
        results["speed-up (CPU seconds)"] = ratio(cpu, SIDES["literal"], SIDES["package"])
    options = {"precision": settings.mixed_precision, "channels_last": settings.channels_last}
    results |= {"batch": arguments.batch_size, **options, "compile": settings.compile}
    results |= {"cuda_graph": settings.cuda_graph}
    results |= {"agreement": found}
    report(f"train step, {arguments.preset} preset, on {device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
