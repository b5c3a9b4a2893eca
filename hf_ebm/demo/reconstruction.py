"""Reconstruct an image, and interpolate between two, with a model of Dual-MCMC Teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.limits import MAX_CHAIN_STEPS, MAX_FRAMES, MAX_SEED, check_whole_number
from hf_ebm.demo.uploads import read_upload


@dataclass(frozen=True)
class Reconstruction:
    """An image and its two reconstructions; images in [0, 1], shape (1, C, S, S)."""

    original: Tensor  # the image as the model takes it
    inferred: Tensor  # from the inferred latents
    revised: Tensor  # after the z-chain
    errors: Tensor  # mean squared error per pixel at the start and after each update of the z-chain, (num_steps + 1,)


def reconstruct(model: DemoModel, x: Tensor, num_steps: Any, seed: Any) -> Reconstruction:
    """Reconstruct `x`, shape (1, C, S, S), from inferred latents and after `num_steps` z-chain updates of them."""
    num_steps = check_whole_number("The number of steps", num_steps, 0, MAX_CHAIN_STEPS)
    generator = torch.Generator().manual_seed(check_whole_number("The seed", seed, 0, MAX_SEED))
    inferred = model.pipeline.reconstruct(x, 0, sample_latents=False, output_type="pt").images
    revised = model.pipeline.reconstruct(
        x, num_steps, sample_latents=False, generator=generator, output_type="pt", output_squared_errors=True
    )
    return Reconstruction(x, inferred.cpu(), revised.images.cpu(), revised.squared_errors[:, 0].float().cpu())


def interpolate(
    model: DemoModel, path_a: str | None, seed_a: Any, path_b: str | None, seed_b: Any, num_frames: Any
) -> tuple[Tensor, Tensor]:
    """Return frames on the latent path between two images and their energies, (F, C, S, S) and (F,).

    Each end is the image in a file, or without one a sample from the seed.
    """
    num_frames = check_whole_number("The number of frames", num_frames, 2, MAX_FRAMES)
    ends = [load_end(model, path_a, seed_a, "first"), load_end(model, path_b, seed_b, "second")]
    generator = torch.Generator().manual_seed(0)  # of the z-chain's noise
    frames = model.pipeline.interpolate(
        *ends, num_frames=num_frames, sample_latents=False, generator=generator, output_type="pt"
    ).images
    return frames.cpu(), model.pipeline.score(frames).energies


def load_end(model: DemoModel, path: str | None, seed: Any, which: str) -> Tensor:
    """Return one end: an image (1, C, S, S), or latents (1, Z) from the seed."""
    if path:
        return read_upload(path, model.pipeline.image_processor, f"{which} image").x
    seed = check_whole_number(f"The {which} seed", seed, 0, MAX_SEED)
    return model.pipeline.draw_latents(1, torch.Generator().manual_seed(seed))
