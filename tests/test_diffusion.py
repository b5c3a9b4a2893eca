"""The diffusion's coefficients: reference values, and the properties of a diffusion."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_ebm.diffusion import DiffusionCoefficients, vp_times

REFERENCE = Path(__file__).parent / "reference"
CASES = [("ddaebm_t4", 4), ("ddaebm_t2", 2)]


@pytest.mark.parametrize(("name", "num_timesteps"), CASES)
def test_coefficients_match_reference(name, num_timesteps):
    ref = load_file(REFERENCE / f"{name}.safetensors")
    q = DiffusionCoefficients.vp(num_timesteps)
    assert_close(vp_times(num_timesteps, "uniform").float(), ref["time"], rtol=1e-5, atol=1e-5)
    for field in (
        "betas",
        "alphas_cumprod",
        "posterior_mean_coef_x0",
        "posterior_mean_coef_xnext",
        "posterior_variance",
    ):
        assert_close(getattr(q, field), ref[field], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "num_timesteps"), CASES)
def test_samples_match_reference(name, num_timesteps):
    ref = load_file(REFERENCE / f"{name}.safetensors")
    q, t = DiffusionCoefficients.vp(num_timesteps), ref["t"]
    x_t = q.q_sample(ref["x_data"], t, ref["noise_marginal"])
    assert_close(x_t, ref["x_t"], rtol=1e-5, atol=1e-5)
    assert_close(q.q_step(x_t, t, ref["noise_step"]), ref["x_next"], rtol=1e-5, atol=1e-5)
    log_q = q.log_q_step(ref["x_next"], ref["x_t"], t)
    assert_close(log_q, ref["log_q_xnext_given_xt"], rtol=1e-5, atol=1e-5)
    x_fake = q.posterior_sample(ref["x0_pred"], ref["x_next"], t, ref["noise_posterior"])
    assert_close(x_fake, ref["x_fake"], rtol=1e-5, atol=1e-5)
    recon = q.posterior_mean(ref["x0_pred_posterior"], ref["x_next"], t)
    assert_close(recon, ref["posterior_mean_recon"], rtol=1e-5, atol=1e-5)


def test_dense_start_times_are_the_published_ones():
    assert_close(vp_times(4, "dense_start") * 999, torch.tensor([0, 166, 332, 498, 999], dtype=torch.float64))


@pytest.mark.parametrize("spacing", ["uniform", "dense_start", "quadratic"])
def test_coefficients_are_computed_on_the_cpu(spacing):
    """In float64, which MPS does not have, whatever the default device is; what moves to a device is float32."""
    with torch.device("meta"):
        times, q = vp_times(4, spacing), DiffusionCoefficients.vp(4, spacing=spacing)
    assert times.dtype == torch.float64 and times.device.type == "cpu"
    for name, values in vars(DiffusionCoefficients.vp(4, spacing=spacing)).items():
        assert getattr(q, name).device.type == "cpu" and torch.equal(getattr(q, name), values), name
        assert values.dtype == torch.float32


@pytest.mark.parametrize("spacing", ["uniform", "dense_start", "quadratic"])
@pytest.mark.parametrize("num_timesteps", [2, 4, 8])
def test_marginals_compose(spacing, num_timesteps):
    """A marginal followed by a step is the next marginal: means multiply, variances add."""
    q = DiffusionCoefficients.vp(num_timesteps, spacing=spacing)
    abar, beta = q.alphas_cumprod.double(), q.betas.double()
    assert_close(abar[1:].sqrt(), abar[:-1].sqrt() * (1 - beta[1:]).sqrt(), rtol=1e-4, atol=1e-9)
    assert_close(1 - abar[1:], (1 - abar[:-1]) * (1 - beta[1:]) + beta[1:], rtol=1e-4, atol=1e-9)


def test_variance_is_preserved():
    """Data of variance 1 keeps it in every state, to Monte Carlo accuracy (4 standard errors)."""
    q, n = DiffusionCoefficients.vp(4), 200_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1.0
    for t in range(4):
        ts = torch.full((n,), t)
        x_t = q.q_sample(x, ts, torch.randn(n, 1, generator=generator))
        x_next = q.q_step(x_t, ts, torch.randn(n, 1, generator=generator))
        for state in (x_t, x_next):
            assert abs(state.var().item() - 1.0) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("t", [0, 1, 2, 3])
def test_posterior_is_bayes_rule(t):
    """q(x_t | x_next, x0) ~ q(x_next | x_t) q(x_t | x0), compared as normalised densities on a fine grid."""
    q, x0, x_next = DiffusionCoefficients.vp(4), 0.7, -0.4
    abar, ts = q.alphas_cumprod[t].double(), torch.tensor([t])
    std = q.posterior_variance[t].double().sqrt()
    mean = q.posterior_mean(torch.tensor([[x0]]), torch.tensor([[x_next]]), ts).double()
    grid = (mean + std * torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]).double()
    log_prior = -0.5 * (grid[:, 0] - abar.sqrt() * x0) ** 2 / (1 - abar)
    log_likelihood = q.log_q_step(torch.full_like(grid, x_next), grid, ts.expand(len(grid)))
    bayes = torch.softmax(log_prior + log_likelihood, dim=0)
    posterior = torch.softmax(-0.5 * ((grid - mean) / std)[:, 0] ** 2, dim=0)
    assert_close(bayes, posterior, rtol=1e-3, atol=1e-8)


def test_log_q_step_integrates_to_one_and_its_gradient_is_autograds():
    q = DiffusionCoefficients.vp(4)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    for t in range(4):
        log_q = q.log_q_step(grid, torch.full_like(grid, 0.3), torch.full((len(grid),), t))
        assert abs(torch.trapezoid(log_q.exp(), grid[:, 0]).item() - 1.0) < 1e-4
    t = torch.arange(4)
    x_t, x_next = torch.randn(4, 2, 3, 3).requires_grad_(), torch.randn(4, 2, 3, 3)
    (expected,) = torch.autograd.grad(q.log_q_step(x_next, x_t, t).sum(), x_t)
    assert_close(q.log_q_step_grad(x_next, x_t, t), expected)


def test_last_step_adds_no_noise_and_log_variance_is_clamped():
    q = DiffusionCoefficients.vp(4)
    x0_pred, x_next, zeros = torch.randn(2, 3), torch.randn(2, 3), torch.zeros(2, dtype=torch.long)
    sample = q.posterior_sample(x0_pred, x_next, zeros, torch.full((2, 3), 1e6))
    assert torch.equal(sample, q.posterior_mean(x0_pred, x_next, zeros))
    dense = DiffusionCoefficients.vp(4, spacing="dense_start")  # its cleanest state has no noise: variance 0
    assert dense.posterior_variance[0] == 0.0
    assert_close(dense.posterior_log_variance[0].item(), math.log(1e-4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps"),
        ({"num_timesteps": 2.5}, "num_timesteps"),
        ({"beta_min": -1.0}, "beta_min"),
        ({"beta_min": 30.0}, "beta_max"),
        ({"spacing": "cosine"}, "spacing"),
        ({"num_timesteps": 1, "spacing": "dense_start"}, "dense_start"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiffusionCoefficients.vp(**arguments)


def test_posterior_noise_inverts_the_posterior_and_is_standard_normal():
    """x_t = posterior mean + std * noise; the noise is N(0, 1) and uncorrelated with the data and with x_next."""
    q, n = DiffusionCoefficients.vp(4), 100_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator)
    for step in range(4):
        t = torch.full((n,), step)
        x_t = q.q_sample(x, t, torch.randn(n, 1, generator=generator))
        x_next = q.q_step(x_t, t, torch.randn(n, 1, generator=generator))
        noise = q.posterior_noise(x_t, x, x_next, t)
        assert_close(q.posterior_sample(x, x_next, t, noise, noise_at_t0=True), x_t, rtol=1e-4, atol=1e-4)
        covariance = torch.cov(torch.cat([noise, x, x_next], dim=1).T)[0]
        assert (covariance - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 5 / n**0.5


def test_quadratic_times():
    expected = 1e-3 + 0.999 * torch.tensor([0, 1 / 16, 1 / 4, 9 / 16, 1], dtype=torch.float64)
    assert_close(vp_times(4, "quadratic"), expected)
