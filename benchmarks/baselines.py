"""Shared code of the baselines: config folder, batched sampling, sample grids.

A baseline is a training script like those of ``training/``: a frozen dataclass of settings, a
`train_step`, a `METHOD`. Its run folder is loaded by its own ``sample_run`` and has no model card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from hf_ebm.evaluation.plots import save_grid
from hf_ebm.training.run_folder import sample_path

CONFIGS = Path(__file__).parent / "configs"
Sampler = Callable[[Path, int, int, int, str, "int | None"], Iterator[Tensor]]
Sample = Callable[[int, torch.Generator], Tensor]  # (number, generator) -> images in [-1, 1], (number, C, H, W)


def check_parts(models: dict[str, dict], allowed: tuple[str, ...]) -> None:
    """Raise a `ValueError` if the setting `models` changes a network that the baseline does not have."""
    unknown = sorted(set(models) - set(allowed))
    if unknown:
        raise ValueError(f"models must map some of {allowed} to their settings, got {unknown}.")


def sample_batches(sample: Sample, number: int, batch_size: int, seed: int, device: str) -> Iterator[Tensor]:
    """`number` images in batches of at most `batch_size`, clamped to [-1, 1], on the CPU, all from one `seed`."""
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, number, batch_size):
        yield sample(min(batch_size, number - start), generator).clamp(-1.0, 1.0).float().cpu()


def sampler_of(pipeline_class: Any) -> Sampler:
    """``(run folder, number, batch size, seed, device, steps) -> batches`` by one of the package's pipelines."""

    def sample_run(
        folder: Path, number: int, batch_size: int, seed: int, device: str, steps: int | None
    ) -> Iterator[Tensor]:
        pipeline = pipeline_class.from_pretrained(folder).to(device)
        pipeline.set_progress_bar_config(disable=True)

        def sample(number: int, generator: torch.Generator) -> Tensor:
            return pipeline(number, num_inference_steps=steps, generator=generator, output_type="latent").images

        return sample_batches(sample, number, batch_size, seed, device)

    return sample_run


@torch.no_grad()
def save_grid_of(sample: Sample, folder: Path, step: int, number: int, device: torch.device) -> Path:
    """Save an image grid of `number` samples from fixed noise."""
    path = sample_path(folder, step)
    images = next(sample_batches(sample, number, number, 0, str(device)))
    save_grid(VaeImageProcessor(vae_scale_factor=1).postprocess(images, "pil"), path)
    return path
