"""2-D sets to draw from: ``25gaussians``, ``pinwheel``, ``swissroll``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_ebm.utils.validation import check_count

TOY_NAMES = ("25gaussians", "pinwheel", "swissroll")
TOY_MODE_SPACING = 2.0 / 2.828  # 25 Gaussians: distance of neighbouring modes ...
TOY_MODE_STD = 0.05 / 2.828  # ... and the standard deviation of each


def sample_toy(name: str, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from a 2-D set of about unit scale, shape (num_samples, 2), float32.

    ``"25gaussians"``: modes on a 5x5 grid at multiples of 2/2.828, each of standard deviation 0.05/2.828 (the set of
    Gulrajani et al. 2017). ``"pinwheel"``: five spiral arms (Johnson et al. 2016). ``"swissroll"``: one spiral.

    Args:
        name: Which set.
        num_samples: How many points, >= 1.
        generator: CPU random number generator; None = torch's global one.

    Raises:
        ValueError: If the name is unknown or `num_samples` is not positive.
    """
    check_count("num_samples", num_samples, 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if name == "25gaussians":
        cell = torch.randint(25, (num_samples,), generator=generator)
        centre = torch.stack([cell // 5 - 2, cell % 5 - 2], dim=1) * TOY_MODE_SPACING
        return centre + TOY_MODE_STD * normal(num_samples, 2)
    if name == "pinwheel":
        arm = torch.randint(5, (num_samples,), generator=generator)
        radius = 1.0 + 0.3 * normal(num_samples)
        tangent = 0.1 * normal(num_samples)
        angle = 2.0 * math.pi * arm / 5 + 0.25 * radius.exp()
        return torch.stack(
            [radius * angle.cos() - tangent * angle.sin(), radius * angle.sin() + tangent * angle.cos()], dim=1
        )
    if name == "swissroll":
        angle = 1.5 * math.pi * (1.0 + 2.0 * torch.rand(num_samples, generator=generator))
        roll = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) + 0.4 * normal(num_samples, 2)
        return roll / 7.5
    raise ValueError(f"name must be one of {TOY_NAMES}, got {name!r}.")
