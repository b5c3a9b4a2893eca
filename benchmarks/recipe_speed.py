"""Compare the training speed of changes to a recipe with the recipe's, in images per second.

    python benchmarks/recipe_speed.py ddaebm --config ddaebm_fashion_mnist.yaml --change compile=true
    python benchmarks/recipe_speed.py dual_mcmc --change "batch_size=32 channels_last=false" --change x_num_steps=20

A change is one or several ``key=value``. A round is ``--round-steps`` iterations, with the EMA, of
each variant in turn on random images; ``r1_interval`` must divide it. The quality of a variant is
not evaluated.
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from changes import SHIPPED, split_change
from timing import Spread, alternate, ratio, report

from hf_ebm.training import train_ddaebm, train_dual_mcmc
from hf_ebm.training.checkpointing import advance
from hf_ebm.training.config import load_settings
from hf_ebm.training.cuda_graph import NUM_EAGER
from hf_ebm.training.trainer import make_emas, make_train_step, prepare_models
from hf_ebm.utils.files import path_option

METHODS: dict[str, tuple[Any, Any, str]] = {
    "ddaebm": (train_ddaebm.METHOD, train_ddaebm.DDAEBMSettings, train_ddaebm.DEFAULT_CONFIG),
    "dual_mcmc": (train_dual_mcmc.METHOD, train_dual_mcmc.DualMCMCSettings, train_dual_mcmc.DEFAULT_CONFIG),
}


def make_side(method: Any, settings: Any, device: str, round_steps: int, seed: int) -> Callable[[], None]:
    """Make a function that runs `round_steps` iterations of `method` with `settings` on random images."""
    interval = getattr(settings, "r1_interval", 1)
    if round_steps % interval:
        raise SystemExit(f"error: --round-steps must be a multiple of r1_interval={interval}, got {round_steps}.")
    AcceleratorState._reset_state(reset_partial_state=True)  # the variant before may have had another precision
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=device == "cpu")
    set_seed(seed)
    models = method.build_models(method.make_model_settings(settings))
    models = tuple(model.to(accelerator.device) for model in models)
    prepare_models(models, settings)
    state, schedules = method.make_train_state(settings, accelerator, models, 1)
    averaged = models[: method.num_averaged] if settings.ema_decay is not None else ()
    emas = make_emas(averaged, settings.ema_decay, accelerator.device)
    steps = itertools.count()
    train_step = make_train_step(method, settings, state)

    def run() -> None:
        for _, step in zip(range(round_steps), steps, strict=False):
            one_step(step)

    def one_step(step: int) -> None:
        x = torch.rand(settings.batch_size, *models[0].sample_shape, device=accelerator.device) * 2 - 1
        if settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        train_step(x, step, state, settings)
        for schedule in schedules:
            advance(schedule)
        for ema, model in zip(emas, averaged, strict=True):
            ema.step(model.parameters())

    return run


def main() -> None:
    """Time all variants; report images per second and the ratio to the recipe's."""
    parser = argparse.ArgumentParser(description="Training images per second of a recipe and of changes to it.")
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--config", help="config of the recipe (default: the method's digits)")
    parser.add_argument("--change", action="append", default=[], help="key=value, several in quotes (repeatable)")
    parser.add_argument("--round-steps", type=int, default=4, help="iterations of a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed rounds before them (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=path_option, help="also write the results to this file")
    arguments = parser.parse_args()
    if min(arguments.round_steps, arguments.repeats) < 1 or arguments.warmup < 0:
        parser.error("--round-steps and --repeats must be >= 1, --warmup >= 0.")

    method, cls, default = METHODS[arguments.method]
    try:
        variants = {title: split_change(title) for title in (SHIPPED, *arguments.change)}
        settings = {
            name: load_settings(cls, default, ["--config", arguments.config or default, *change])
            for name, change in variants.items()
        }
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if len({values.mixed_precision for values in settings.values()} - {"no"}) > 1:
        raise SystemExit("error: of bf16 and fp16 only one can be timed at once: accelerate keeps one for a process.")
    sides: dict[str, Any] = dict.fromkeys(settings)  # in the report's order
    # accelerate keeps the precision of the last one made: "no", which asks for nothing, comes first
    for name, values in sorted(settings.items(), key=lambda item: item[1].mixed_precision != "no"):
        sides[name] = make_side(method, values, arguments.device, arguments.round_steps, arguments.seed)
    gc.collect()
    # with a graph each kind of step is recorded first; a round has at least one step of each
    warmup = max(arguments.warmup, NUM_EAGER + 1) if any(s.cuda_graph for s in settings.values()) else arguments.warmup
    wall, cpu = alternate(sides, arguments.repeats, warmup, torch.device(arguments.device))
    results: dict[str, Any] = {}
    for name, values in settings.items():
        images = values.batch_size * arguments.round_steps
        results[f"images/s, {name}"] = Spread.of([images / seconds for seconds in wall[name]])
        if name != SHIPPED:
            times = ratio(wall, SHIPPED, name)
            scale = values.batch_size / settings[SHIPPED].batch_size
            results[f"speed-up, {name}"] = Spread(*(part * scale for part in (times.median, times.low, times.high)))
    report(f"recipe {arguments.config or default} on {arguments.device}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
