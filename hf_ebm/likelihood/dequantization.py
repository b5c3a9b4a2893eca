"""Log-likelihoods and bits per dimension of dequantised data under an energy with known or bounded ``log Z``.

log p(x) = -E(x) / T - log Z,        T the temperature
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.utils.torch_utils import no_grad
from hf_ebm.utils.validation import check_count, check_positive


def log_likelihood(energies: Tensor, log_z: float, temperature: float = 1.0) -> Tensor:
    """``log p(x) = -E(x) / T - log Z`` in nats; the upper end of log Z gives the lower of log p."""
    check_positive("temperature", temperature)
    return -energies / temperature - log_z


def bits_per_dim(log_p: Tensor, log_q: Tensor, num_dims: int) -> Tensor:
    """Bits per dimension of discrete data y from its dequantised x: ``-(log p(x) - log q(x | y)) / (D log 2)``.

    A model's probability of the levels y is the mass of its density p in their bin; with x drawn from any density q in
    the bin, ``-log P(y) <= -E [log p(x) - log q(x | y)]`` (Jensen). So in the mean over x this is an upper bound of the
    discrete data's bits, equal for q that is proportional to p in the bin. The uniform density over all bins, with the
    uniform q, gives ``log2 num_levels``. Both densities are in nats, shape (B,); `num_dims` D counts colours.
    """
    check_count("num_dims", num_dims, 1)
    return -(log_p - log_q) / (num_dims * math.log(2.0))


def dequantise_uniform(
    x: Tensor, num_levels: int = 256, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Images on the levels ``2 y / (L - 1) - 1`` with uniform noise in each bin, and its log density, shape (B,).

    A bin reaches half a level, ``h = 1 / (L - 1)``, to both sides, so that the L bins tile `Box.of_levels`.

    Args:
        x: Images as this package loads them, on the levels, shape (B, ...).
        num_levels: L: 256 for 8-bit images, 17 for the digits.
        generator: Random number generator.

    Raises:
        ValueError: If `x` does not lie on the levels.
    """
    levels, half = to_levels(x, num_levels), 1.0 / (num_levels - 1)
    log_q = -x[0].numel() * math.log(2.0 * half)
    return levels + half * (2.0 * uniform_like(x, generator) - 1.0), x.new_full((len(x),), log_q)


def dequantise_normal(
    x: Tensor, noise_std: float, num_levels: int = 256, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """As `dequantise_uniform`, with normal noise of `noise_std`, cut off at the bin's ends.

    For models that saw levels with little noise, whose density is narrower than a bin: there uniform noise is a loose
    bound.
    """
    check_positive("noise_std", noise_std)
    levels, half = to_levels(x, num_levels), 1.0 / (num_levels - 1)
    mass = math.erf(half / noise_std / math.sqrt(2.0))  # of the normal in its bin
    share = 0.5 + mass * (uniform_like(x, generator).cpu().double() - 0.5)  # MPS has no float64
    z = torch.special.ndtri(share).to(x)
    log_scale = math.log(noise_std * mass) + 0.5 * math.log(2.0 * math.pi)
    return levels + noise_std * z, -half_squared_norm(z) - x[0].numel() * log_scale


def to_levels(x: Tensor, num_levels: int) -> Tensor:
    """`x` moved onto the nearest of the L levels ``2 y / (L - 1) - 1``, away from which only rounding may have led."""
    check_count("num_levels", num_levels, 2)
    levels = 0.5 * (x + 1.0) * (num_levels - 1)
    rounded = levels.round()
    if not ((levels - rounded).abs() < 0.05).all() or rounded.min() < 0 or rounded.max() > num_levels - 1:
        raise ValueError(
            f"x must lie on the num_levels={num_levels} values 2 y / {num_levels - 1} - 1 in [-1, 1]; images that were "
            "resized or augmented as floats do not: round them to levels first."
        )
    return 2.0 * rounded / (num_levels - 1) - 1.0


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform on (0, 1), shape, dtype and device of `x`."""
    device = x.device if generator is None else generator.device
    return torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


@no_grad
def log_z_on_grid(
    energy_fn: Callable[[Tensor], Tensor],
    limit: float,
    resolution: int = 512,
    temperature: float = 1.0,
    batch_size: int = 16_384,
    device: str | torch.device | None = None,
) -> float:
    """``log Z`` of ``exp(-E(x) / T)`` over the square [-limit, limit]^2, by the midpoint rule.

    `energy_fn` is ``x -> E(x)``, (B, 2) -> (B,); the square has `resolution` cells along each side. For a smooth
    density that fades before the edge, the error falls faster than any power of the cells' width once they are narrower
    than its features. What lies outside the square is not counted.
    """
    check_positive("limit", limit)
    check_positive("temperature", temperature)
    resolution = check_count("resolution", resolution, 1)
    batch_size = check_count("batch_size", batch_size, 1)
    cell = 2.0 * limit / resolution
    line = cell * (torch.arange(resolution, device=device) + 0.5) - limit
    parts = torch.cartesian_prod(line, line).split(batch_size)
    energies = torch.cat([energy_fn(part).cpu().double() for part in parts])
    log_z = torch.logsumexp(-energies / temperature, dim=0).item() + 2.0 * math.log(cell)
    if math.isnan(log_z) or log_z == math.inf:
        raise ValueError("the energy is not a number, or minus infinity, at a point of the grid.")
    return log_z
