"""Paths between two latents: along the line, or along the great circle.

Latents are ``N(0, I)``: almost all of them have about the same norm ``sqrt(Z)``, and the middle of a line between two
is far shorter, which a generator has never seen. The great circle keeps the norm. Source: White 2016, "Sampling
Generative Networks".
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_path(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``(1 - t) a + t b``, shape (B, F, Z).

    Args:
        a: Starts, shape (B, Z).
        b: Ends, shape (B, Z).
        t: Positions in [0, 1], shape (F,).
    """
    t = t[:, None]
    return (1.0 - t) * a[:, None] + t * b[:, None]


def spherical_path(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``[sin((1 - t) w) a + sin(t w) b] / sin w``, w the angle between a and b, shape (B, F, Z).

    Both ends are exact. Where a and b point the same way or opposite ways there is no such circle: the line is taken.

    Args:
        a: Starts, shape (B, Z).
        b: Ends, shape (B, Z).
        t: Positions in [0, 1], shape (F,).
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    omega = cosine.clamp(-1.0, 1.0).arccos()[:, None, None]
    t = t[:, None]
    weight_a = ((1.0 - t) * omega).sin() / omega.sin()
    weight_b = (t * omega).sin() / omega.sin()
    on_circle = weight_a * a[:, None] + weight_b * b[:, None]
    return torch.where(omega.sin() > 1e-3, on_circle, linear_path(a, b, t[:, 0]))


PATHS = {"spherical": spherical_path, "linear": linear_path}
