"""Every term of the objective against reference values and, where there is one, its closed form."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from hf_ebm.diffusion import DiffusionCoefficients, vp_times
from hf_ebm.losses import ddaebm as L

REFERENCE = Path(__file__).parents[1] / "reference"


def energy_fn(x, t):
    """The stand-in energy of the reference numbers."""
    scale = (0.5 * (1 + 0.1 * t.float())).reshape(-1, 1, 1, 1)
    return (scale * x**2 + 0.3 * torch.sin(2 * x)).flatten(1).sum(1)


@pytest.fixture(params=["ddaebm_t4", "ddaebm_t2"])
def ref(request):
    with safe_open(REFERENCE / f"{request.param}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        tensors["settings"] = file.metadata()
    tensors["q"] = DiffusionCoefficients.vp(int(tensors["settings"]["num_timesteps"]))
    return tensors


def close(value, expected):
    assert_close(value.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_energy_terms_match_reference(ref):
    t, weight = ref["t"], float(ref["settings"]["r1_weight"])
    energy_real, energy_fake = energy_fn(ref["x_t"], t), energy_fn(ref["x_fake"], t)
    close(energy_real, ref["energy_real"])
    close(energy_fake, ref["energy_fake"])
    penalty = L.gradient_penalty(energy_fn, ref["x_t"], ref["x_next"], t, ref["q"], weight)
    close(penalty, ref["gradient_penalty"])
    close(L.energy_loss(energy_real, energy_fake) + penalty, ref["loss_energy"])


def test_generator_terms_match_reference(ref):
    t, q = ref["t"], ref["q"]
    x0_pred = torch.tanh(
        0.4 * ref["x_next"]
        + (1 + 0.05 * t.float()).reshape(-1, 1, 1, 1) * (ref["z"] @ ref["generator_W"]).reshape(ref["x_t"].shape)
    )
    close(x0_pred, ref["x0_pred"])
    adversarial = L.adversarial_term(energy_fn(ref["x_fake"], t), q.log_q_step(ref["x_next"], ref["x_fake"], t))
    latent = L.latent_term(ref["z"], ref["mean_fake"], ref["logvar_fake"])
    kl = L.kl_term(ref["mean_real"], ref["logvar_real"])
    recon = L.reconstruction_term(ref["x_t"], q.posterior_mean(ref["x0_pred_posterior"], ref["x_next"], t))
    close(adversarial, ref["adversarial"])
    close(latent, ref["latent_nll_no_constant"])
    close(kl, ref["kl_to_standard_normal"])
    close(recon, ref["reconstruction_sse"])
    total = adversarial + float(ref["settings"]["latent_weight"]) * latent + kl + recon
    close(total, ref["loss_generator"])


def test_gradient_penalty_closed_form():
    """E = a ||x||^2 / 2: plain R1 is w/2 a^2 ||x||^2; with the transition the score is a sum of two lines."""
    q, a, w = DiffusionCoefficients.vp(4), 1.7, 0.3
    x_t, x_next, t = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    plain = L.gradient_penalty(lambda x, _: 0.5 * a * x.square().sum(1), x_t, x_next, t, q, w, include_transition=False)
    assert_close(plain, (0.5 * w * a**2 * x_t.square().sum(1)).mean())
    beta = q.betas[t + 1][:, None]
    score = -a * x_t + (1 - beta).sqrt() * (x_next - (1 - beta).sqrt() * x_t) / beta
    full = L.gradient_penalty(lambda x, _: 0.5 * a * x.square().sum(1), x_t, x_next, t, q, w)
    assert_close(full, (0.5 * w * score.square().sum(1)).mean())


def test_gradient_penalty_weight_per_sample():
    q, t = DiffusionCoefficients.vp(4), torch.tensor([0, 3])
    x_t, x_next = torch.randn(2, 4), torch.randn(2, 4)
    weights = torch.tensor([0.5, 2.0])
    energy = lambda x, t: (x**4).sum(1) * (1 + t)  # noqa: E731
    both = L.gradient_penalty(energy, x_t, x_next, t, q, weights)
    single = [
        L.gradient_penalty(energy, x_t[i : i + 1], x_next[i : i + 1], t[i : i + 1], q, weights[i].item())
        for i in (0, 1)
    ]
    assert_close(both, torch.stack(single).mean())


def test_gradient_penalty_reaches_the_energys_parameters():
    """d/da of w/2 a^2 ||x||^2 is w a ||x||^2: the penalty is differentiable twice, inside no_grad too."""
    q, a = DiffusionCoefficients.vp(4), torch.tensor(1.3, requires_grad=True)
    x_t, t = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    L.gradient_penalty(
        lambda x, _: 0.5 * a * x.square().sum(1), x_t, x_t, t, q, 0.2, include_transition=False
    ).backward()
    assert_close(a.grad, 0.2 * 1.3 * x_t.square().sum(1).mean())


def test_kl_and_latent_terms_are_gaussian_formulas():
    from torch.distributions import Normal, kl_divergence

    mean, logvar, z = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 4)
    posterior = Normal(mean, (0.5 * logvar).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(1).mean()
    assert_close(L.kl_term(mean, logvar), expected)
    nll = -posterior.log_prob(z).sum(1).mean() - 4 / 2 * math.log(2 * math.pi)
    assert_close(L.latent_term(z, mean, logvar), nll, rtol=1e-4, atol=1e-4)


def test_reconstruction_nll_is_the_gaussians_with_weights():
    from torch.distributions import Normal

    x, mean, log_variance = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([[-1.0], [0.5], [0.0]])
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = -(weight * Normal(mean, (0.5 * log_variance).exp()).log_prob(x).sum(1)).mean()
    assert_close(L.reconstruction_nll_term(x, mean, log_variance, weight), expected)


def test_lsun_step_weight():
    times = vp_times(4, "dense_start")
    weights = L.lsun_step_weight(torch.arange(4), times)
    assert_close(weights, (0.6 * (torch.tensor([166.0, 332.0, 498.0, 999.0]) / 999) ** 1.585))
