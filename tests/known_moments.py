"""Energies with known moments, and tolerances for the moments of samples."""

import torch

Z = 4.5  # standard errors a right estimate may be off: once in 150,000

BEND, WIDTH = 0.4, 0.7


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quadratic(precision, mean=0.0):
    """``E(x) = (x - mean)^T precision (x - mean) / 2``: the Gaussian N(mean, precision^-1)."""
    return lambda x: 0.5 * (((x - mean) @ precision) * (x - mean)).sum(dim=1)


def banana(x):
    """x_1 ~ N(0, 1), ``x_2 | x_1 ~ N(b (x_1^2 - 1), c^2)``: mean 0, uncorrelated, ``Var x_2 = 2 b^2 + c^2``."""
    return 0.5 * x[:, 0] ** 2 + 0.5 * ((x[:, 1] - BEND * (x[:, 0] ** 2 - 1)) / WIDTH) ** 2


def check_mean(values, expected, bias=0.0):
    """The mean of independent values is `expected`, to their own standard error and the bias."""
    error = abs(values.double().mean().item() - expected)
    allowed = Z * values.double().std().item() / len(values) ** 0.5 + bias
    assert error <= allowed, f"off by {error:.5f}, allowed {allowed:.5f}"


def check_moments(x, mean, covariance, bias=0.0):
    for i in range(x.shape[1]):
        check_mean(x[:, i], mean[i].item(), bias * covariance[i, i].item() ** 0.5)
        for j in range(i + 1):
            product = (x[:, i] - mean[i]) * (x[:, j] - mean[j])
            scale = (covariance[i, i] * covariance[j, j]).item() ** 0.5
            check_mean(product, covariance[i, j].item(), bias * scale)
