"""The residual energy on a few pixels as matrix products, for a chain that takes many gradients with the same weights.

At 4x4 places and below a 3x3 convolution reaches every place from nearly every other: its whole matrix is hardly larger
than what the convolution multiplies by, and smaller with an average over 2x2 places behind it (64 pairs of places where
the convolution has 144 and a second pass). Making the matrices costs a third of one gradient on 64 images.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_VALUES = 2**18  # of one matrix: 64 to 64 channels from 4x4 to 2x2 places; larger ones leave the processor's cache


@functools.lru_cache(maxsize=64)
def taps(size: int, kernel_size: int, average: bool) -> Tensor:
    """What each place gives to each other one through each value of a kernel, shape (places, places, K * K).

    With `average` the places of the result are 2x2 places averaged.
    """
    one_place = torch.eye(size**2, device="cpu").view(-1, 1, size, size)
    patches = F.unfold(one_place, kernel_size, padding=kernel_size // 2).view(-1, kernel_size**2, size, size)
    if average:
        patches = F.avg_pool2d(patches, 2)
    return patches.flatten(2).transpose(1, 2)


def convolution_matrix(weight: Tensor, size: int, average: bool = False) -> Tensor:
    """The matrix M for which ``x @ M`` is a convolution that keeps the size, and the average over 2x2 places behind it.

    Args:
        weight: Shape (out, in, K, K), K odd, on the CPU.
        size: Height and width of the images, even with `average`.
        average: Whether the result is averaged.

    Returns:
        Shape (size * size * in, places * out), for images flattened place by place: (B, H, W, C) -> (B, H * W * C).
    """
    num_out, num_in, kernel_size, _ = weight.shape
    by_tap = weight.permute(2, 3, 1, 0).reshape(kernel_size**2, num_in * num_out)
    matrix = taps(size, kernel_size, average).to(weight.dtype) @ by_tap  # (places, places, in * out)
    return matrix.unflatten(2, (num_in, num_out)).transpose(1, 2).reshape(size**2 * num_in, -1)


def has_small_matrices(energy_model: Any) -> bool:
    """Whether no matrix of a `ResNetEnergyModel` has more than `MAX_VALUES` values."""
    size = energy_model.config.image_size // energy_model.config.patch_size
    for block in energy_model.blocks:
        num_places = (size**2, size**2 // 4 if block.downsample else size**2)
        for conv, places in zip((block.conv1, block.conv2), num_places, strict=True):
            if conv.in_channels * conv.out_channels * size**2 * places > MAX_VALUES:
                return False
        size = size // 2 if block.downsample else size
    return True


class MatrixEnergy:
    """``E(x)`` of a `ResNetEnergyModel` as its weights are now, equal to rounding.

    Args:
        energy_model: The network, on the CPU.
        dtype: Of the matrices.
    """

    def __init__(self, energy_model: Any, dtype: torch.dtype) -> None:
        config = energy_model.config
        # where the network finds each pixel: a place's patch is its channels
        pixels = torch.arange(config.num_channels * config.image_size**2, device="cpu")
        pixels = pixels.view(1, config.num_channels, config.image_size, config.image_size)
        order = F.pixel_unshuffle(pixels, config.patch_size).permute(0, 2, 3, 1).flatten().argsort()
        size = config.image_size // config.patch_size
        self.blocks: list[tuple[Tensor, ...]] = []
        with torch.autocast("cpu", enabled=False):
            for block in energy_model.blocks:
                matrices = [convolution_matrix(block.conv1.weight, size)]
                averaged = [conv for conv in (block.conv2, block.shortcut) if conv is not None]
                matrices += [convolution_matrix(conv.weight, size, block.downsample) for conv in averaged]
                if not self.blocks:
                    beside = matrices[2] if block.shortcut is not None else torch.eye(len(order), device="cpu")
                    matrices = [matrices[0][order], matrices[1], beside[order]]
                self.blocks.append(tuple(matrix.to(dtype) for matrix in matrices))
                size = size // 2 if block.downsample else size
            self.head = (energy_model.head.weight.T / size**2).repeat(size**2, 1).to(dtype)
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Energies of images `x`, shape (B, C, H, W) -> (B,), float32 at least."""
        hidden = x.flatten(1)
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(self.dtype)
        for number, (first, second, *shortcut) in enumerate(self.blocks):
            inner = F.relu((hidden if number == 0 else F.relu(hidden)) @ first)
            beside = hidden @ shortcut[0] if shortcut else hidden
            hidden = torch.addmm(beside, inner, second)
        energy = (F.relu(hidden) @ self.head).squeeze(1)
        return energy.to(torch.promote_types(energy.dtype, torch.float32))
