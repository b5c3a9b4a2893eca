"""A box as the support of a density, and coordinates v on all of R^D in which it has no walls.

    x = low + (high - low) Phi(v),        Phi the standard normal's distribution function

An energy is held by nothing where it was never trained: one of ReLU layers without biases is positively homogeneous,
``E(a x) = a E(x)``, so where it is negative ``exp(-E)`` grows without end; one of sines is bounded. Neither has a
finite integral over R^D. Over a box both have, and pixels live in one: the density of a model is

    p(x) = exp(-E(x) / T) / Z  in the box, 0 outside,        Z = integral over the box of exp(-E(x) / T)

In v the same integral is that of ``exp(-(E(x(v)) - T log |dx/dv|) / T)`` (substitution), and the box's uniform density
is a standard normal, a good place for an annealing walk to start near.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_ebm.counting import check_count

EDGE = 1e-6  # points nearer to a wall, as a share of the width, are moved off it: the wall itself is at infinity


@dataclass(frozen=True)
class Box:
    """``[low, high]`` in every dimension.

    Attributes:
        low: Lower end of every dimension.
        high: Upper end, > `low`.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low and high must be finite, low below high, got {self.low!r} and {self.high!r}.")

    @classmethod
    def of_levels(cls, num_levels: int) -> Box:
        """The bins of all levels ``2 y / (L - 1) - 1`` together: [-1, 1] and half a bin, ``1 / (L - 1)``, around it."""
        check_count("num_levels", num_levels, 2)
        half = 1.0 / (num_levels - 1)
        return cls(-1.0 - half, 1.0 + half)

    def to_box(self, v: Tensor) -> Tensor:
        """``x = low + (high - low) Phi(v)``, shape of `v`."""
        return self.low + (self.high - self.low) * torch.special.ndtr(v)

    def from_box(self, x: Tensor) -> Tensor:
        """``v = Phi^-1((x - low) / (high - low))``, shape of `x`; on a wall, `EDGE` of the width inside it.

        Raises:
            ValueError: If a point lies outside.
        """
        share = (x.double() - self.low) / (self.high - self.low)
        if not ((share > -EDGE) & (share < 1.0 + EDGE)).all():
            raise ValueError(
                f"x must lie in [{self.low:g}, {self.high:g}], got {x.min().item():g} to {x.max().item():g}; use a "
                "wider box."
            )
        return torch.special.ndtri(share.clamp(EDGE, 1.0 - EDGE)).to(x.dtype)

    def log_volume_change(self, v: Tensor) -> Tensor:
        """``log |dx/dv|``, summed over the dimensions, shape (B,)."""
        log_slope = math.log(self.high - self.low) - 0.5 * math.log(2.0 * math.pi) - 0.5 * v.square()
        return log_slope.flatten(1).sum(dim=1)

    def energy_in_v(
        self, energy_fn: Callable[[Tensor], Tensor], temperature: float = 1.0
    ) -> Callable[[Tensor], Tensor]:
        """``v -> E(x(v)) - T log |dx/dv|``, (B, ...) -> (B,): its Z at T is that of `energy_fn` over the box at T."""
        return lambda v: energy_fn(self.to_box(v)) - temperature * self.log_volume_change(v)
