"""Log weights: the log of their mean, its jackknife error and their effective sample size."""

import math

import pytest
import torch
from known_log_z import Z, seeded

from hf_ebm.scoring.annealing import log_mean_exp, weights_effective_sample_size


def test_log_mean_exp_and_its_error():
    """Log-normal weights: ``log E w = s^2 / 2``, and the error is that of the delta method, large or small weights."""
    s, count = 0.5, 50_000
    log_weights = s * torch.randn(count, dtype=torch.float64, generator=seeded()) - 1_000
    value, error = log_mean_exp(log_weights)
    assert error == pytest.approx(math.sqrt(math.expm1(s**2) / count), rel=0.05)
    assert abs(value + 1_000 - s**2 / 2) < Z * error
    size = weights_effective_sample_size(log_weights)
    assert size == pytest.approx(count * math.exp(-(s**2)), rel=0.03)


def test_the_jackknife_by_hand():
    log_weights = torch.tensor([0.1, -2.0, 1.3, -math.inf], dtype=torch.float64)
    value, error = log_mean_exp(log_weights)
    assert value == pytest.approx(log_weights.exp().mean().log().item())
    left = torch.stack([log_weights[torch.arange(4) != i].exp().mean().log() for i in range(4)])
    assert error == pytest.approx((0.75 * ((left - left.mean()) ** 2).sum()).sqrt().item())
    assert log_mean_exp(torch.tensor([0.0, -800.0], dtype=torch.float64))[1] == math.inf
    assert weights_effective_sample_size(torch.tensor([0.0, -800.0])) == pytest.approx(1)
    assert weights_effective_sample_size(torch.full((6,), -5.0)) == pytest.approx(6)
