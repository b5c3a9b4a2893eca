"""How near reconstructions come to their images, by torchmetrics, each measure a mean over images.

mse    mean squared error per pixel, on the scale of [-1, 1]
psnr   10 log10(peak^2 / mse) in decibels, the peak being the whole range
ssim   structural similarity, 11x11 Gaussian window of sigma 1.5 (Wang et al. 2004), on [0, 1]
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SIZE = 6  # the window is reflected at the border by five pixels


def reconstruction_metrics(images: Tensor, recon: Tensor) -> dict[str, Tensor]:
    """``{"mse", "psnr", "ssim"}`` of each image, shape (N,); without ``ssim`` for images under 6 pixels.

    Args:
        images: In [-1, 1], shape (N, C, H, W).
        recon: Reconstructions, the same shape and range.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    found = {
        "mse": ((images - recon) ** 2).flatten(1).mean(dim=1),
        "psnr": peak_signal_noise_ratio(recon, images, data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="none"),
    }
    if min(images.shape[-2:]) >= MIN_SIZE:
        unit_range = ((x.cpu().double().clamp(-1.0, 1.0) + 1.0) / 2.0 for x in (recon, images))
        found["ssim"] = structural_similarity_index_measure(*unit_range, data_range=1.0, reduction="none")
    return {name: torch.as_tensor(values).reshape(-1).float().to(images.device) for name, values in found.items()}
