"""Synthetic OOD sets: transformations of in-distribution images, without a download.

Each function maps images in [-1, 1], shape (B, C, H, W), to OOD images of the same shape and range.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rotated(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images rotated by 90 degrees."""
    return images.rot90(1, dims=(-2, -1))


def inverted(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images with negated pixel values."""
    return -images


def shuffled(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pixels in random order, one per image: the histogram stays, the shape is lost."""
    batch_size, channels, height, width = images.shape
    order = torch.rand(batch_size, height * width, generator=generator).argsort(dim=1)
    flat = images.flatten(2)
    return flat.gather(2, order[:, None, :].expand_as(flat)).reshape(batch_size, channels, height, width)


def shuffled_patches(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A 4x4 grid of patches in random order, one per image: textures stay, the shape is lost."""
    batch_size, channels, height, width = images.shape
    if height % 4 or width % 4:
        raise ValueError(f"shuffled_patches needs a height and width divisible by 4, got {height}x{width}.")
    patches = (
        images.reshape(batch_size, channels, 4, height // 4, 4, width // 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    )
    order = torch.rand(batch_size, 16, generator=generator).argsort(dim=1)
    patches = patches[torch.arange(batch_size)[:, None], order].unflatten(1, (4, 4))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def blurred(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A 3x3 box blur, applied twice."""
    for _ in range(2):
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = torch.nn.functional.avg_pool2d(padded, kernel_size=3, stride=1)
    return images


def noise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [-1, 1]."""
    return torch.rand(images.shape, generator=generator) * 2.0 - 1.0


def constant(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Constant images, uniform in [-1, 1]."""
    values = torch.rand(images.shape[0], 1, 1, 1, generator=generator) * 2.0 - 1.0
    return values.expand(images.shape).clone()


def mixed(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The mean of two images."""
    return 0.5 * (images + images[torch.randperm(images.shape[0], generator=generator)])


SYNTHETIC_OOD: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    function.__name__: function
    for function in (rotated, inverted, shuffled, shuffled_patches, blurred, mixed, constant, noise)
}
