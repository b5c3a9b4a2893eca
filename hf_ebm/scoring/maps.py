"""Heat maps: how unusual each pixel of an image is, larger = more unusual.

    map(x)_p = sum_q k(p - q) mean_k |v_kq(x) - m_kq| / s_kq

The v_k(x) are signed values of each pixel, with mean m and standard deviation s over in-distribution images
(`PixelMoments`), and k(p - q) is a Gaussian of one pixel. A value is unusual on either side. Which values there are
depends on the components:

    terms            v = x - U(x, t), for each noise level t and channel, of energies E(x, t) = 1/2 ||x - U(x, t)||^2:
                     1/2 v^2 summed over channels are the per-pixel terms of the energy. Needs the energy only.
    reconstruction   v = w (x - x'), for each channel, where x' is the model's reconstruction of x, and
                     w = mean_t |grad_x E(x, t)|, smoothed by k and divided by its mean over the image.

The signs are kept until after the standardisation, because |v - m| localises pasted patches better than v^2 does, and
|grad E| and its smoothing because both vary between pixels more than the images do. `benchmarks/heat_maps.py` compares
the maps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ebm.langevin import energy_grad
from hf_ebm.models.energy import EnergyModel, energy_of
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.utils.torch_utils import channels_last_on_cpu, execution_device, send

MAP_KINDS = ("reconstruction", "terms")  # the better one first
MAX_MAP_REFERENCE = 500  # images whose mean and standard deviation standardise the maps
OWN_VARIANCE = 0.1  # share of a pixel's own variance in s^2, the rest is the mean over pixels


def smooth(maps: Tensor) -> Tensor:
    """A Gaussian blur of one pixel, edges continued, shape (B, H, W)."""
    kernel = torch.exp(-0.5 * torch.arange(-3.0, 4.0, device=maps.device).square()).to(maps.dtype)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 7, 1)), kernel.view(1, 1, 1, 7))[:, 0]


@dataclass(frozen=True)
class PixelMoments:
    """Mean and standard deviation of the values of each pixel over in-distribution images, shape (K, H, W)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor) -> PixelMoments:
        """Those of N >= 2 images, shape (N, K, H, W).

        Raises:
            ValueError: If there are fewer, a value is not finite, or one of the K is the same for all images.
        """
        if len(values) < 2:
            raise ValueError(f"heat maps need at least 2 in-distribution images, got {len(values)}.")
        std = values.float().std(dim=0)
        if not values.isfinite().all() or not (std.flatten(1).amax(dim=1) > 0).all():
            raise ValueError("in-distribution images must give pixel values that are finite and not all equal.")
        return cls(values.float().mean(dim=0), std)

    def heat_maps(self, values: Tensor) -> Tensor:
        """The maps of images from their values (B, K, H, W), shape (B, H, W), float32, where `values` are."""
        mean, variance = self.mean.to(values.device), self.std.to(values.device).square()
        pooled = variance.mean(dim=(1, 2), keepdim=True)
        std = (OWN_VARIANCE * variance + (1.0 - OWN_VARIANCE) * pooled).sqrt()
        return smooth(((values.float() - mean) / std).abs().mean(dim=1))


@torch.no_grad()
def energy_term_values(energy_model: EnergyModel, x: Tensor) -> Tensor:
    """``x - U(x, t)`` of all noise levels, shape (B, T * C, H, W), float32, where the model is.

    Args:
        energy_model: An energy that has residuals.
        x: Images in the model's range, shape (B, C, H, W).
    """
    model = in_eval(energy_model)
    x = channels_last_on_cpu(send(x, execution_device(energy_model), energy_model.dtype))
    levels = range(getattr(energy_model.config, "num_timesteps", 1))
    return torch.cat([model(x, t, output_residuals=True).residuals.float() for t in levels], dim=1)


def reconstruction_values(energy_model: EnergyModel, x: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> Tensor:
    """The weighted difference of images and their reconstructions, shape (B, C, H, W), float32, where the model is.

    Args:
        energy_model: Any energy of images.
        x: Images in the model's range, shape (B, C, H, W).
        reconstruct: ``x -> x'``, in the same range.
    """
    frozen, device = eval_copy(energy_model), execution_device(energy_model)
    sent = channels_last_on_cpu(send(x, device, energy_model.dtype))
    weights = []
    for t in range(getattr(energy_model.config, "num_timesteps", 1)):
        grad = energy_grad(functools.partial(energy_of, frozen, timestep=t), sent)
        size = smooth(grad.float().abs().sum(dim=1)) + torch.finfo(torch.float32).tiny
        weights.append(size / size.mean(dim=(1, 2), keepdim=True))
    difference = x.to(device).float() - reconstruct(x).to(device).float()
    return torch.stack(weights).mean(dim=0)[:, None] * difference


def has_energy_terms(energy_model: Any) -> bool:
    """Whether the energy has the form ``1/2 ||x - U(x, t)||^2``, up to a term of the classes."""
    return getattr(energy_model, "has_residuals", False)
