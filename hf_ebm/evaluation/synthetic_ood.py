"""Odd images made from given ones: out of distribution by construction, with nothing to download.

Each function maps images in [-1, 1], shape (B, C, H, W), to odd images of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rotated(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turned by 90 degrees."""
    return images.rot90(1, dims=(-2, -1))


def inverted(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Black for white."""
    return -images


def shuffled(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each image's pixels in an order of its own: the histogram stays, the shape goes."""
    batch_size, channels, height, width = images.shape
    order = torch.rand(batch_size, height * width, generator=generator).argsort(dim=1)
    flat = images.flatten(2)
    return flat.gather(2, order[:, None, :].expand_as(flat)).reshape(batch_size, channels, height, width)


def shuffled_patches(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A 4x4 grid of patches in an order of each image's own: textures stay, the shape goes."""
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
    """Each pixel the mean of its 3x3 neighbourhood, twice."""
    for _ in range(2):
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        images = torch.nn.functional.avg_pool2d(padded, kernel_size=3, stride=1)
    return images


def noise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Every pixel uniform in [-1, 1]."""
    return torch.rand(images.shape, generator=generator) * 2.0 - 1.0


def constant(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One value in [-1, 1] per image."""
    values = torch.rand(images.shape[0], 1, 1, 1, generator=generator) * 2.0 - 1.0
    return values.expand(images.shape).clone()


def mixed(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The mean of an image and of another one."""
    return 0.5 * (images + images[torch.randperm(images.shape[0], generator=generator)])


ODD_IMAGES: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    function.__name__: function
    for function in (rotated, inverted, shuffled, shuffled_patches, blurred, mixed, constant, noise)
}
