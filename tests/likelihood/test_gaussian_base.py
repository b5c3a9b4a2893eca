"""The Gaussian base of the annealing: its fits, its coordinates and its density."""

import math

import pytest
import torch
from known_log_z import gaussian, seeded
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from hf_ebm.likelihood.base_distributions import GaussianBase


def test_gaussian_base():
    data = gaussian(4, 0.7, count=20_000).samples.reshape(-1, 2, 2)
    for base in (GaussianBase.fit_full(data, 0.1), GaussianBase.fit_diagonal(data, 0.1)):
        x = data[:7]
        u = base.to_white(x)
        assert u.shape == x.shape
        assert_close(base.from_white(u), x, atol=1e-5, rtol=0)
        covariance = torch.cov(base.from_white(torch.randn(50_000, 2, 2, generator=seeded())).flatten(1).T)
        factor = base.scale if base.scale.dim() == 2 else base.scale.diag()
        assert_close(covariance, factor @ factor.T, atol=0.02, rtol=0)
        density = MultivariateNormal(base.mean.flatten(), scale_tril=factor)
        log_prob = -0.5 * (u**2).sum(dim=(1, 2)) - 2 * math.log(2 * math.pi) - base.log_det
        assert_close(log_prob, density.log_prob(x.flatten(1)), atol=1e-4, rtol=0)
        assert_close(base.log_prob(x), log_prob)
        assert_close(base.covariance, factor @ factor.T)
    full = GaussianBase.fit_full(data, 0.1)
    assert_close(full.scale @ full.scale.T, torch.cov(data.flatten(1).T) + 0.01 * torch.eye(4), atol=1e-4, rtol=0)


def test_a_constant_pixel_gets_the_least_std():
    data = torch.randn(50, 3)
    data[:, 1] = -1.0
    assert GaussianBase.fit_diagonal(data, 0.2).scale[1] == pytest.approx(0.2)
    assert GaussianBase.fit_full(data, 0.2).scale[1, 1] == pytest.approx(0.2)
    assert_close(GaussianBase.fit_diagonal(data, 0.2).scale[0], data[:, 0].std())


def test_bad_base():
    for mean, scale in (
        (torch.zeros(2), torch.ones(3)),
        (torch.zeros(2), torch.tensor([1.0, 0.0])),
        (torch.zeros(2), torch.tensor([1.0, math.nan])),
        (torch.tensor(0.0), torch.ones(1)),
        (torch.zeros(2, dtype=torch.long), torch.ones(2)),
    ):
        with pytest.raises(ValueError, match="mean"):
            GaussianBase(mean, scale)
    with pytest.raises(ValueError, match="positive definite"):
        GaussianBase.full(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    for data in (torch.randn(1, 2), torch.randn(5), torch.full((3, 2), math.inf)):
        with pytest.raises(ValueError, match="data"):
            GaussianBase.fit_diagonal(data)
        with pytest.raises(ValueError, match="data"):
            GaussianBase.fit_full(data)
