"""Targets with known log Z and exact samples, and checks of a bracket of it."""

import dataclasses
import math

import torch

Z = 4.5  # standard errors a right estimate may be off: once in 150,000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class Target:
    """An unnormalised energy, log Z of ``exp(-E / temperature)``, and exact samples of that density."""

    energy_fn: object
    log_z: float
    samples: torch.Tensor
    temperature: float = 1.0


def gaussian(dims, correlation, count=4_000, temperature=1.0, seed=0):
    """``E = (x - m)^T C^-1 (x - m) / 2`` with correlation ``rho^|i - j|``: log Z of the Gaussian with T C."""
    i = torch.arange(dims)
    covariance = 0.5 * correlation ** (i[:, None] - i).abs().float()
    mean, precision = torch.linspace(-1, 1, dims), covariance.inverse()
    factor = torch.linalg.cholesky(temperature * covariance)
    return Target(
        lambda x: 0.5 * (((x - mean.to(x)) @ precision.to(x)) * (x - mean.to(x))).sum(dim=1),
        0.5 * dims * math.log(2 * math.pi) + factor.diagonal().double().log().sum().item(),
        mean + torch.randn(count, dims, generator=seeded(seed)) @ factor.T,
        temperature,
    )


def mixture(dims, count=4_000, temperature=1.0, seed=0):
    """Three modes of weights .5 .3 .2, as ``E = -T log sum_i w_i exp(-||x - m_i||^2 / (2 std^2))``."""
    means, weights, std = torch.zeros(3, dims), torch.tensor([0.5, 0.3, 0.2]), 0.6
    means[:, :2] = torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 1.0]])
    modes = torch.multinomial(weights, count, replacement=True, generator=seeded(seed))

    def energy_fn(x):
        distance = ((x[:, None] - means) ** 2).sum(dim=2)
        return -temperature * torch.logsumexp(weights.log() - 0.5 * distance / std**2, dim=1)

    samples = means[modes] + std * torch.randn(count, dims, generator=seeded(seed + 1))
    return Target(energy_fn, 0.5 * dims * math.log(2 * math.pi * std**2), samples, temperature)


def lower_error(bracket):
    """Standard error of the lower bound, from its 95 % interval."""
    low, high = bracket.log_z_lower_interval
    return (high - low) / (2 * 1.96)


def upper_error(bracket):
    """Standard error of the upper bound, from its 95 % interval."""
    low, high = bracket.log_z_upper_interval
    return (high - low) / (2 * 1.96)


def check_bracket(bracket, log_z):
    """The bounds are on their sides of log Z, up to sampling error."""
    assert bracket.log_z_lower <= log_z + Z * lower_error(bracket)
    assert bracket.log_z_upper >= log_z - Z * upper_error(bracket)
    assert bracket.gap == bracket.log_z_upper - bracket.log_z_lower
