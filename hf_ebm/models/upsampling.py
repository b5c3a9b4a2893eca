"""Nearest-neighbour upsampling by two that `torch.compile` differentiates as eager PyTorch does.

Inductor (PyTorch 2.13, CPU) turns `torch.nn.functional.interpolate` into an indexed read whose gradient is an indexed
write. Inside a `UNet2DModel` that gradient arrives as zeros: everything below stops learning, without an error. A
lone residual block before the upsampling is differentiated correctly; `tests/models/test_upsampling.py` has a case that
is not.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F


def double_size(x: Tensor) -> Tensor:
    """Images `x` of shape (B, C, H, W) with every pixel four times, shape (B, C, 2H, 2W)."""
    if torch.compiler.is_compiling():
        batch_size, channels, height, width = x.shape
        repeated = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return repeated.reshape(batch_size, channels, 2 * height, 2 * width)
    if torch.is_autocast_enabled(x.device.type):  # copies are exact in any type, and autocast would make float32
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Upsample(nn.Module):
    """diffusers' `Upsample2D` for sizes that double: the same weights by the same name, and gradients when compiled.

    It also keeps the memory format, where `Upsample2D` makes batches of 64 and more contiguous.

    Args:
        conv: The convolution after the doubling.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: Tensor, output_size: int | None = None) -> Tensor:
        """From (B, C, H, W) to (B, D, 2H, 2W); `output_size` is None in a `UNet2DModel` whose levels halve evenly."""
        return self.conv(double_size(hidden_states))


def use_upsample(unet: UNet2DModel) -> UNet2DModel:
    """Put `Upsample` in the place of the U-Net's own upsamplers; returns the same `unet`."""
    for block in unet.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(Upsample(upsampler.conv) for upsampler in block.upsamplers)
    return unet
