"""The objective of denoising score matching (Vincent 2011): the energy's gradient predicts the noise.

x_noisy = x + sigma eps, eps ~ N(0, I)        minimised where -grad E is the score of the noised data
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def denoising_score_matching(
    energy_fn: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, noise_std: float
) -> Tensor:
    """``1/2 mean ||sigma grad E(x + sigma eps) - eps||^2``: sum over dimensions, mean over the batch.

    Args:
        energy_fn: ``x -> E(x)``, shape (B,).
        x: Data, shape (B, D).
        noise: eps, shape (B, D).
        noise_std: sigma > 0.
    """
    x_noisy = (x + noise_std * noise).requires_grad_(True)
    (grad,) = torch.autograd.grad(energy_fn(x_noisy).sum(), x_noisy, create_graph=True)
    return 0.5 * (noise_std * grad - noise).square().flatten(1).sum(dim=1).mean()
