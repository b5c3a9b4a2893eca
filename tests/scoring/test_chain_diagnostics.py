"""Effective sample size and R-hat on chains whose values are known."""

import builtins

import pytest
import torch

from hf_ebm.scoring.chain_diagnostics import effective_sample_size, r_hat


def autoregressive(correlation, num_chains=4, num_draws=5000):
    """``x_k = rho x_{k-1} + sqrt(1 - rho^2) noise``, shape (num_chains, num_draws, 1), begun in equilibrium."""
    x, states = torch.randn(num_chains), []
    for _ in range(num_draws):
        states.append(x)
        x = correlation * x + (1 - correlation**2) ** 0.5 * torch.randn(num_chains)
    return torch.stack(states, dim=1)[..., None]


def test_effective_sample_size_of_autoregressive_chains():
    """A share (1 - rho) / (1 + rho) of the draws, of each dimension by itself."""
    chains = torch.cat([autoregressive(rho) for rho in (0.0, 0.5, 0.9)], dim=2)
    share = effective_sample_size(chains) / (4 * 5000)
    for i, rho in enumerate((0.0, 0.5, 0.9)):
        assert share[i].item() == pytest.approx((1 - rho) / (1 + rho), rel=0.15)


def test_r_hat_tells_chains_that_have_not_mixed():
    chains = torch.randn(4, 1000, 2)
    assert (r_hat(chains) < 1.01).all() and r_hat(chains).shape == (2,)
    chains[1, :, 1] += 2.0
    mixed, shifted = r_hat(chains).tolist()
    assert mixed < 1.01 and shifted > 1.1


def test_bad_chains():
    for statistic in (effective_sample_size, r_hat):
        with pytest.raises(ValueError, match="num_draws"):
            statistic(torch.randn(4, 100))
        with pytest.raises(ValueError, match="4 draws"):
            statistic(torch.randn(4, 3, 2))
        with pytest.raises(ValueError, match="finite"):
            statistic(torch.full((4, 10, 2), float("nan")))
    with pytest.raises(ValueError, match="2 chains"):
        r_hat(torch.randn(1, 100, 2))


def test_without_arviz(monkeypatch):
    real_import = builtins.__import__

    def no_arviz(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_arviz)
    with pytest.raises(ValueError, match="diagnostics"):
        r_hat(torch.randn(2, 10, 1))
