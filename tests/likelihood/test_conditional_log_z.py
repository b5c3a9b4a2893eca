"""log Z of denoising steps in closed form: quadratic energies, for which everything is Gaussian."""

import math
from types import SimpleNamespace

import pytest
import torch
from known_log_z import lower_error
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from hf_ebm import DiffusionCoefficients, HMCScheduler
from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import GaussianBase
from hf_ebm.likelihood.evaluate import (
    conditional_energy,
    denoising_base,
    estimate_conditional_log_z,
    evaluate_chain_likelihood,
)
from hf_ebm.likelihood.log_partition import LikelihoodSettings
from hf_ebm.likelihood.warmup import equilibrate

pytestmark = pytest.mark.usefixtures("few_resamples")
Q = DiffusionCoefficients.vp(num_timesteps=4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def covariance(dims, correlation, variance=0.4):
    i = torch.arange(dims)
    return variance * correlation ** (i[:, None] - i).abs().float()


def quadratic(mean, cov):
    """``E = (x - m)^T C^-1 (x - m) / 2``."""
    precision = cov.inverse()
    return lambda x: 0.5 * (((x - mean) @ precision) * (x - mean)).sum(dim=1)


@pytest.mark.parametrize("dims, t", [(2, 0), (2, 3), (16, 1), (64, 2)])
def test_two_decimals(dims, t):
    """``Z = (2 pi)^(D/2) |C|^(1/2) N(x_next; a m, a^2 C + beta I)``, and x_t given x_next is a Gaussian to draw from.

    The base is made from clean data of another mean and covariance than the energy's.
    """
    abar, beta = Q.alphas_cumprod[t].item(), Q.betas[t + 1].item()
    cov = abar * covariance(dims, 0.7) + (1 - abar) * 0.8 * torch.eye(dims)
    mean = abar**0.5 * torch.linspace(-0.5, 0.5, dims)
    a, eye = math.sqrt(1 - beta), torch.eye(dims)
    x_next = torch.randn(2 if dims < 64 else 1, dims, generator=seeded(t))
    seen = MultivariateNormal(a * mean, a**2 * cov + beta * eye)
    log_z = 0.5 * (dims * math.log(2 * math.pi) + torch.logdet(cov)) + seen.log_prob(x_next)
    precision = cov.inverse() + a**2 / beta * eye
    remaining = precision.inverse()
    means = (cov.inverse() @ mean + a / beta * x_next) @ remaining
    number = 1_500
    samples = [MultivariateNormal(m, 0.5 * (remaining + remaining.T)).sample((number,)) for m in means]
    brackets = estimate_conditional_log_z(
        quadratic(mean, cov),
        Q,
        x_next,
        t,
        GaussianBase.full(torch.linspace(-0.48, 0.52, dims), covariance(dims, 0.69, 0.41)),
        samples,
        num_chains=number,
        num_temperatures=60 if dims == 64 else 20,
        scheduler=HMCScheduler(num_leapfrog_steps=3),
        batch_size=number,
        generator=seeded(),
    )
    assert len(brackets) == len(x_next)
    for bracket, expected in zip(brackets, log_z.tolist(), strict=True):
        assert abs(bracket.log_z_lower - expected) < 0.01
        assert abs(bracket.log_z_upper - expected) < 0.01
        assert bracket.effective_sample_size > 0.8 * number


@pytest.mark.parametrize("t", range(4))
def test_the_base_is_the_posterior_of_gaussian_data(t):
    """Against conditioning the joint Gaussian of (x_t, x_next); and an energy that is its marginal is exact at once."""
    clean = GaussianBase.full(torch.tensor([0.3, -0.2, 0.1]), covariance(3, 0.6))
    x_next, beta, abar = torch.tensor([0.5, 1.0, -1.0]), Q.betas[t + 1].item(), Q.alphas_cumprod[t].item()
    a, cov_t = math.sqrt(1 - beta), abar * clean.covariance + (1 - abar) * torch.eye(3)
    mean_t = math.sqrt(abar) * clean.mean
    precision = cov_t.inverse() + a**2 / beta * torch.eye(3)
    base = denoising_base(clean, x_next, t, Q)
    assert_close(base.covariance, precision.inverse(), atol=1e-5, rtol=1e-3)
    expected = precision.inverse() @ (cov_t.inverse() @ mean_t + a / beta * x_next)
    assert_close(base.mean, expected, atol=1e-4, rtol=1e-4)
    energy = conditional_energy(quadratic(mean_t, cov_t), x_next, t, Q)
    bracket = estimate_log_z(energy, base, num_chains=20, num_temperatures=2, generator=seeded())
    assert lower_error(bracket) < 1e-3 and bracket.effective_sample_size > 19.9


def test_equilibration_brings_samples_to_the_density():
    cov, mean, temperature = covariance(4, 0.8), torch.tensor([1.0, 0.0, -1.0, 0.5]), 0.5
    base = GaussianBase.diagonal(torch.zeros(4), 1.0)
    start = torch.full((4_000, 4), 3.0)
    found = equilibrate(quadratic(mean, cov), base, start, temperature, 150, generator=seeded())
    assert_close(found.samples.mean(dim=0), mean, atol=0.04, rtol=0)
    assert_close(torch.cov(found.samples.T), temperature * cov, atol=0.03, rtol=0)
    assert found.mean_energies[0] > 20 and found.mean_energies[2] == pytest.approx(2.0, abs=0.1)  # D / 2
    assert 0.5 < found.acceptance_rate < 0.8
    still = equilibrate(quadratic(mean, cov), base, start, temperature, 0)
    assert torch.equal(still.samples, start) and len(set(still.mean_energies)) == 1


class Marginals(torch.nn.Module):
    """The energies of q(x_t) for clean data N(0, v): ``||x||^2 / (2 v_t)`` plus a constant that must not matter."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, variance):
        super().__init__()
        self.variances = Q.alphas_cumprod * variance + 1 - Q.alphas_cumprod

    def forward(self, x, t):
        return SimpleNamespace(energy=0.5 * x.square().sum(dim=1) / self.variances[t] + 3.0 + t)


class WorthlessGenerator(torch.nn.Module):
    config = SimpleNamespace(latent_dim=2)

    def forward(self, x_next, t, z):
        return SimpleNamespace(sample=torch.zeros_like(x_next))


def test_the_chain_of_exact_conditionals_is_the_datas_density():
    """Then ``log q(x_0) + log N(x_T; 0, I) - log q(x_T)`` is the bound of each sample, and x_T is standard normal."""
    variance, dims = 0.3, 6
    pipeline = SimpleNamespace(energy_model=Marginals(variance), generator_model=WorthlessGenerator(), coefficients=Q)
    train = variance**0.5 * torch.randn(500, dims, generator=seeded())
    held_out = variance**0.5 * torch.randn(2, dims, generator=seeded(1))
    settings = LikelihoodSettings(num_chains=100, num_temperatures=8, batch_size=100, equilibration_steps=50)
    record = evaluate_chain_likelihood(pipeline, train, held_out, None, settings)
    v_0 = pipeline.energy_model.variances[0].item()
    expected = -0.5 * dims * math.log(2 * math.pi * v_0) - 0.5 * held_out.square().sum(dim=1).mean().item() / v_0
    for name in ("at_log_z_lower", "at_log_z_upper"):
        assert record["log_likelihood"][name] == pytest.approx(expected, abs=0.15)  # the noise of x_0 is in it
    assert [step["t"] for step in record["steps"]] == [0, 1, 2, 3]
    assert all(abs(step["mean_gap"]) < 0.1 for step in record["steps"])
    assert record["bits_per_dim"] == {}

    levels = torch.tensor([[0.125, -0.25, 0.0, 0.5, -0.5, 0.0]])
    record = evaluate_chain_likelihood(pipeline, train, levels, 17, settings)
    log_p = -0.5 * dims * math.log(2 * math.pi * v_0) - 0.5 * levels.square().sum().item() / v_0
    entropy = dims * (math.log(math.sqrt(1 - Q.alphas_cumprod[0].item())) + 0.5 * math.log(2 * math.pi * math.e))
    bits = -(log_p + entropy) / dims / math.log(2)  # log q(x_0 | y) is minus its entropy in the mean
    assert record["bits_per_dim"]["at_log_z_lower"] == pytest.approx(bits, abs=0.6)


def test_bad_input():
    clean = GaussianBase.diagonal(torch.zeros(2), 1.0)
    for t in (-1, 4):
        with pytest.raises(ValueError, match="t must lie"):
            denoising_base(clean, torch.zeros(2), t, Q)
    with pytest.raises(ValueError, match="x_next"):
        denoising_base(clean, torch.zeros(3), 0, Q)
    with pytest.raises(ValueError, match="samples"):
        estimate_conditional_log_z(lambda x: x.sum(dim=1), Q, torch.zeros(2, 2), 0, clean, [torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="num_steps"):
        equilibrate(lambda x: x.sum(dim=1), clean, torch.zeros(3, 2), num_steps=-1)
    with pytest.raises(ValueError, match="DDAEBMPipeline"):
        evaluate_chain_likelihood(SimpleNamespace(energy_model=Marginals(1.0)), torch.zeros(3, 2), torch.zeros(3, 2))
