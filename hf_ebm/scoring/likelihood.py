"""Log-likelihoods and bits per dimension of an energy whose ``log Z`` is known, or bracketed by `scoring.annealing`.

log p(x) = -E(x) / T - log Z,        T the temperature
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hf_ebm.schedulers.energy_sampler import check_positive
from hf_ebm.scoring.annealing import check_count

Number = TypeVar("Number", float, Tensor)


def log_likelihood(energies: Tensor, log_z: float, temperature: float = 1.0) -> Tensor:
    """``log p(x) = -E(x) / T - log Z`` in nats, shape of `energies`; the upper end of log Z gives the lower of log p.

    Raises:
        ValueError: If the temperature is not positive.
    """
    check_positive("temperature", temperature)
    return -energies / temperature - log_z


def bits_per_dim(nats: Number, num_dims: int, num_levels: int = 256) -> Number:
    """Bits per dimension of discrete data, from ``log p(x)`` of dequantised data on [-1, 1].

        bits = -log p(x) / (D log 2) + log2(num_levels / 2)

    Level y of L stands for the values ``x = 2 (y + v) / L - 1``, v uniform on [0, 1), so that the L bins tile [-1, 1]
    (`dequantise`). A bin is 2 / L wide, so its probability is ``P(y) = (2 / L)^D E_v p(x)``, and ``-log2 P(y)
    <= -E_v log2 p(x) - D log2(2 / L)`` (Jensen): in the mean over v the result is an upper bound of the discrete
    data's bits, tight where p hardly varies over a bin. The uniform density on [-1, 1] gives ``log2 L``.

    Args:
        nats: ``log p(x)``, a density of x in [-1, 1], a number or tensor.
        num_dims: D, numbers in one sample (colours counted).
        num_levels: L: 256 for 8-bit images, 17 for the digits.

    Raises:
        ValueError: If `num_dims` or `num_levels` is out of its range.
    """
    check_count("num_dims", num_dims, 1)
    check_count("num_levels", num_levels, 2)
    return -nats / (num_dims * math.log(2.0)) + math.log2(num_levels / 2.0)


def dequantise(x: Tensor, num_levels: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """Images as this package loads them, ``x = 2 y / (L - 1) - 1``, to ``2 (y + v) / L - 1``, v uniform on [0, 1).

    The two differ by at most a level: an energy trained on the first sees the second with one level of noise.

    Raises:
        ValueError: If `x` does not lie on the L levels.
    """
    check_count("num_levels", num_levels, 2)
    levels = 0.5 * (x + 1.0) * (num_levels - 1)
    rounded = levels.round()
    if not ((levels - rounded).abs() < 0.05).all() or rounded.min() < 0 or rounded.max() > num_levels - 1:
        raise ValueError(
            f"x must lie on the num_levels={num_levels} values 2 y / {num_levels - 1} - 1 in [-1, 1]; images that were "
            "resized or augmented as floats do not: round them to levels first."
        )
    device = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    return 2.0 * (rounded + noise) / num_levels - 1.0


@torch.no_grad()
def log_z_on_grid(
    energy_fn: Callable[[Tensor], Tensor],
    limit: float,
    resolution: int = 512,
    temperature: float = 1.0,
    batch_size: int = 16_384,
    device: str | torch.device | None = None,
) -> float:
    """``log Z`` of ``exp(-E(x) / T)`` over the square [-limit, limit]^2, by the midpoint rule.

    For a smooth density that fades before the edge, the error falls faster than any power of the cells' width once they
    are narrower than its features. What lies outside the square is not counted.

    Args:
        energy_fn: ``x -> E(x)``, (B, 2) -> (B,); the points have torch's default dtype.
        limit: Half the square's side.
        resolution: Cells along each side.
        temperature: T > 0.
        batch_size: Points at a time.
        device: Where the points are.

    Raises:
        ValueError: If an argument is out of its range, or an energy is not a number.
    """
    check_positive("limit", limit)
    check_positive("temperature", temperature)
    check_count("resolution", resolution, 1)
    check_count("batch_size", batch_size, 1)
    cell = 2.0 * limit / resolution
    line = cell * (torch.arange(resolution, device=device) + 0.5) - limit
    parts = torch.cartesian_prod(line, line).split(batch_size)
    energies = torch.cat([energy_fn(part).cpu().double() for part in parts])
    log_z = torch.logsumexp(-energies / temperature, dim=0).item() + 2.0 * math.log(cell)
    if math.isnan(log_z) or log_z == math.inf:
        raise ValueError("the energy is not a number, or minus infinity, at a point of the grid.")
    return log_z
