"""Generate images, with intermediate samples of a few of them and the energies of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.limits import MAX_CHAIN_STEPS, MAX_IMAGES, MAX_SEED, check_whole_number

NUM_WATCHED = 3  # samples whose states are kept


@dataclass(frozen=True)
class Generation:
    """Samples with the sampler's trajectory."""

    images: Tensor  # in [0, 1], shape (N, C, S, S)
    states: Tensor  # of the first samples, at each point of the trajectory, in the models' range, (K, M, C, S, S)
    energies: Tensor  # ``E(x, 0)`` of every sample at these points, low = likely, shape (K, N)
    point_names: list[str]  # of the K points
    acceptance_rate: float | None = None  # share of accepted proposals, for samplers with proposals


def samplers_of(model: DemoModel) -> dict[str, Any]:
    """The schedulers that `model` can be sampled with, by the name on the page; the first is its own."""
    return model.pipeline.samplers


def with_sampler(model: DemoModel, sampler: str) -> Any:
    """The pipeline with the named sampler; the model's own stays as it is."""
    scheduler = samplers_of(model)[sampler].from_config(model.pipeline.scheduler.config)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def step_limits(model: DemoModel, sampler: str) -> tuple[int, int, int]:
    """Smallest, default and largest number of steps of a sampler."""
    low, default, high = with_sampler(model, sampler).step_range
    high = MAX_CHAIN_STEPS if high is None else high
    return low, min(default, high), high


def generate(
    model: DemoModel, num_images: Any, sampler: Any, num_steps: Any, seed: Any, class_name: Any = None
) -> Generation:
    """Generate images with the named sampler, of one class or, with None, of all."""
    num_images = check_whole_number("The number of images", num_images, 1, MAX_IMAGES)
    seed = check_whole_number("The seed", seed, 0, MAX_SEED)
    if sampler not in list(samplers_of(model)):
        raise ValueError(f"The sampler must be one of {list(samplers_of(model))}, got {sampler!r}.")
    if class_name is not None and class_name not in model.pipeline.class_names:
        raise ValueError(f"The class must be one of {model.pipeline.class_names}, got {class_name!r}.")
    low, _, high = step_limits(model, sampler)
    num_steps = check_whole_number("The number of steps", num_steps, low, high)
    pipeline = with_sampler(model, sampler)
    by_class = {} if class_name is None else {"class_labels": class_name}
    found = pipeline.trajectory(num_images, num_steps, torch.Generator().manual_seed(seed), NUM_WATCHED, **by_class)
    images = to_unit_range(found.samples.float().cpu())
    return Generation(images, found.states, found.energies, found.points, found.acceptance_rate)
