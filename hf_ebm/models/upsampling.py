"""Upsampling by two, nearest or bilinear, that `torch.compile` differentiates as eager PyTorch does.

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

UPSAMPLE_MODES = ("nearest", "bilinear")


def double_size(x: Tensor, mode: str = "nearest") -> Tensor:
    """Images `x` of shape (B, C, H, W) at twice their size, shape (B, C, 2H, 2W).

    Args:
        x: Shape (B, C, H, W).
        mode: ``"nearest"``: every pixel four times; ``"bilinear"``: interpolated, corners on corners
            (``align_corners=True``).
    """
    if torch.compiler.is_compiling():
        if mode == "bilinear":
            return double_matrix(x.shape[-2], x) @ x @ double_matrix(x.shape[-1], x).mT
        batch_size, channels, height, width = x.shape
        repeated = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return repeated.reshape(batch_size, channels, 2 * height, 2 * width)
    corners = True if mode == "bilinear" else None
    if torch.is_autocast_enabled(x.device.type):  # which would make float32 of `x`
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=corners)
    return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=corners)


def double_matrix(size: int, like: Tensor) -> Tensor:
    """Linear interpolation of `size` places to twice as many, ends on ends: shape (2 size, size), device of `like`."""
    places = torch.arange(2 * size, device=like.device) * ((size - 1) / (2 * size - 1))
    weights = 1.0 - (places[:, None] - torch.arange(size, device=like.device)).abs()
    return weights.clamp(min=0.0).to(like.dtype)


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
