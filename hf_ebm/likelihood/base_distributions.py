"""Base distributions of annealed importance sampling: a Gaussian, and the box as a bounded support.

The Gaussian base has coordinates u where it is standard normal, ``x = mean + L u``.

The box has coordinates v on all of R^D, without walls:

    x = low + (high - low) Phi(v),        Phi the standard normal's distribution function

Nothing bounds an energy far from its training data. A network of ReLU layers without biases is positively homogeneous,
``E(a x) = a E(x)``, so ``exp(-E)`` grows without limit wherever E is negative; a bounded energy has no finite integral
over R^D either. Over a box both are finite, and pixels lie in a box. So the density of a model is

    p(x) = exp(-E(x) / T) / Z  in the box, 0 outside,        Z = integral over the box of exp(-E(x) / T)

In v this is the integral of ``exp(-(E(x(v)) - T log |dx/dv|) / T)`` (substitution), and the uniform density on the box
is a standard normal, which is a natural base for AIS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.utils.validation import check_count


@dataclass(frozen=True, eq=False)
class GaussianBase:
    """``N(mean, L L^T)`` over samples of a shape, and the map to the coordinates where it is standard normal."""

    mean: Tensor  # shape of one sample; its dtype and device are those of the walk
    scale: Tensor  # l: standard deviations, shape (D,), or the covariance's lower Cholesky factor, shape (D, D)

    def __post_init__(self) -> None:
        dims = self.mean.numel()
        has_shape = self.mean.dim() > 0 and tuple(self.scale.shape) in ((dims,), (dims, dims))
        if not has_shape or not self.mean.is_floating_point():
            raise ValueError(
                "mean must be a floating-point tensor of one sample's shape and scale have the shape (D,) or (D, D), "
                f"D = mean.numel(), got {tuple(self.mean.shape)} ({self.mean.dtype}) and {tuple(self.scale.shape)}."
            )
        diagonal = self.scale if self.scale.dim() == 1 else self.scale.diagonal()
        finite = torch.isfinite(self.mean).all() and torch.isfinite(self.scale).all()
        if not (finite and (diagonal > 0).all()):
            raise ValueError("mean and scale must be finite, and scale's (diagonal) entries positive.")

    @classmethod
    def diagonal(cls, mean: Tensor, std: Tensor | float) -> GaussianBase:
        """``N(mean, diag(std^2))``; `std` a number or broadcastable to `mean`."""
        return cls(mean, torch.as_tensor(std, dtype=mean.dtype, device=mean.device).expand(mean.shape).flatten())

    @classmethod
    def full(cls, mean: Tensor, covariance: Tensor) -> GaussianBase:
        """``N(mean, covariance)``; `covariance` over the flattened sample, shape (D, D), positive definite."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info.any():
            raise ValueError("covariance must be positive definite; add a small multiple of the identity.")
        return cls(mean, factor.to(mean))

    @classmethod
    def fit_diagonal(cls, data: Tensor, min_std: float = 0.05) -> GaussianBase:
        """Mean and standard deviation of each entry of `data`, shape (N, ...); `min_std` is the least of them."""
        check_data("data", data)
        return cls.diagonal(data.mean(dim=0), data.std(dim=0).clamp(min=min_std))

    @classmethod
    def fit_full(cls, data: Tensor, min_std: float = 0.05) -> GaussianBase:
        """Mean and covariance of `data`, shape (N, ...), with ``min_std^2`` added along the covariance's diagonal."""
        check_data("data", data)
        covariance = torch.cov(data.flatten(1).cpu().double().T).reshape(data[0].numel(), -1)
        ridge = min_std**2 * torch.eye(len(covariance), dtype=covariance.dtype)
        return cls.full(data.mean(dim=0), covariance + ridge)

    @property
    def covariance(self) -> Tensor:
        """``L L^T`` over the flattened sample, shape (D, D)."""
        return self.scale.square().diag() if self.scale.dim() == 1 else self.scale @ self.scale.T

    @property
    def log_det(self) -> float:
        """``log |det L|``, the volume that a unit of u takes up in x."""
        diagonal = self.scale if self.scale.dim() == 1 else self.scale.diagonal()
        return diagonal.cpu().double().log().sum().item()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each sample, shape (B,)."""
        u = self.to_white(x)
        return -half_squared_norm(u) - 0.5 * u[0].numel() * math.log(2.0 * math.pi) - self.log_det

    def from_white(self, u: Tensor) -> Tensor:
        """``x = mean + L u``, shape (B, ...)."""
        flat = u.flatten(1)
        flat = flat * self.scale if self.scale.dim() == 1 else flat @ self.scale.T
        return self.mean + flat.reshape(u.shape)

    def to_white(self, x: Tensor) -> Tensor:
        """``u = L^-1 (x - mean)``, shape (B, ...)."""
        flat = (x - self.mean).flatten(1)
        if self.scale.dim() == 1:
            return (flat / self.scale).reshape(x.shape)
        return torch.linalg.solve_triangular(self.scale, flat.T, upper=False).T.reshape(x.shape)


def check_data(name: str, data: Tensor) -> None:
    """Raise a `ValueError` unless `data` is at least two finite, floating-point samples, shape (N, ...)."""
    if data.dim() < 2 or len(data) < 2 or not data.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of at least 2 samples, shape (N, ...), got {tuple(data.shape)} "
            f"({data.dtype})."
        )
    if not torch.isfinite(data).all():
        raise ValueError(f"{name} holds values that are not finite.")


EDGE = 1e-6  # points nearer to a wall, as a share of the width, are moved off it: the wall itself is at infinity


@dataclass(frozen=True)
class Box:
    """``[low, high]`` in every dimension."""

    low: float  # lower end of every dimension
    high: float  # upper end, > `low`

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
        """``v = Phi^-1((x - low) / (high - low))``, shape of `x`; on a wall, `EDGE` of the width inside it."""
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
