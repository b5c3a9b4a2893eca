"""The objectives and both chains against reference values and independent formulas."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributions import Independent, Normal
from torch.testing import assert_close

from hf_ebm.langevin import energy_grad, langevin_step
from hf_ebm.losses.dual_mcmc import (
    energy_loss,
    generator_loss,
    inference_loss,
    latent_nll,
    noised_samples,
    posterior_energy,
)

PATH = Path(__file__).parents[1] / "reference" / "dual_mcmc.safetensors"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference():
    with safe_open(PATH, "pt") as file:
        settings = {key: float(value) for key, value in file.metadata().items()}
    return load_file(PATH), settings


def energy(x):
    """The stand-in energy of the reference: sum of x^2 / 2 + 0.3 sin(2x)."""
    return (0.5 * x**2 + 0.3 * torch.sin(2 * x)).flatten(1).sum(1)


def generator_fn(r):
    """The stand-in generator of the reference."""
    return lambda z: torch.tanh((z @ r["generator_W"]).reshape(-1, *r["x_data"].shape[1:]))


def test_x_chain_reproduces_the_reference(reference):
    r, s = reference
    x = generator_fn(r)(r["z"])
    assert_close(x, r["x_generated"], **CLOSE)
    for noise in r["x_chain_noise"]:
        x = langevin_step(x, energy_grad(energy, x), s["x_step_size"], s["x_noise_std"], noise)
    assert len(r["x_chain_noise"]) == s["x_num_steps"]
    assert_close(x, r["x_revised"], **CLOSE)


def test_z_chain_reproduces_the_reference(reference):
    r, s = reference
    z = r["latent_mean"] + (0.5 * r["latent_logvar"]).exp() * r["latent_noise"]
    assert_close(z, r["z_inferred"], **CLOSE)
    for noise in r["z_chain_noise"]:
        grad = energy_grad(lambda z: posterior_energy(generator_fn(r), z, r["x_data"], s["likelihood_std"]), z)
        z = langevin_step(z, grad, s["z_step_size"], s["z_noise_std"], noise)
    assert len(r["z_chain_noise"]) == s["z_num_steps"]
    assert_close(z, r["z_revised"], **CLOSE)


def test_losses_reproduce_the_reference(reference):
    r, s = reference
    g = generator_fn(r)
    recon, x_gen = g(r["z_revised"]), g(r["z"])

    def total(recon_weight, sample_weight):
        return generator_loss(recon, r["x_data"], x_gen, r["x_revised"], recon_weight, sample_weight)

    assert_close(total(1.0, 0.0), r["reconstruction_sse"][0], **CLOSE)
    assert_close(total(0.0, 1.0), r["teaching_sse"][0], **CLOSE)
    assert_close(total(1.0, s["sample_weight"]), r["loss_generator"][0], **CLOSE)
    data, generated = (r["latent_mean"], r["latent_logvar"]), (r["latent_mean_gen"], r["latent_logvar_gen"])
    assert_close(latent_nll(r["z_revised"], *data), r["latent_nll_data_no_constant"][0], **CLOSE)
    assert_close(latent_nll(r["z"], *generated), r["latent_nll_generated_no_constant"][0], **CLOSE)
    loss = inference_loss(r["z_revised"], *data, r["z"], *generated, s["latent_weight"])
    assert_close(loss, r["loss_inference"][0], **CLOSE)
    energy_data, energy_revised = energy(r["x_data"]), energy(r["x_revised"])
    assert_close(energy_data, r["energy_data"], **CLOSE)
    assert_close(energy_revised, r["energy_revised"], **CLOSE)
    assert_close(energy_loss(energy_data, energy_revised, 1.0), r["loss_energy_unscaled"][0], **CLOSE)
    temperature = (s["x_noise_std"] / s["x_step_size"]) ** 2
    assert_close(torch.tensor(temperature), r["temperature"][0], rtol=1e-6, atol=0)
    expected = r["loss_energy_unscaled"][0] / temperature
    assert_close(energy_loss(energy_data, energy_revised, temperature), expected, **CLOSE)


def test_posterior_energy_is_minus_the_log_joint():
    """Up to constants, -log N(x; g(z), std^2/2) - log N(z; 0, 1): the squared error without its 1/2 is std / sqrt 2."""
    weight, std = torch.randn(3, 6), 0.4
    z, x = torch.randn(5, 3), torch.randn(5, 6)
    joint = Independent(Normal(z @ weight, std / 2**0.5), 1).log_prob(x) + Independent(
        Normal(0.0 * z, 1.0), 1
    ).log_prob(z)
    ours = posterior_energy(lambda z: z @ weight, z, x, std)
    assert ours.shape == (5,)
    assert_close(ours - ours[0], joint[0] - joint)


def test_latent_nll_is_the_normal_density():
    z, mean, logvar = torch.randn(3, 7, 4)
    expected = -Independent(Normal(mean, (0.5 * logvar).exp()), 1).log_prob(z).mean()
    assert_close(latent_nll(z, mean, logvar) + 2.0 * torch.log(torch.tensor(2 * torch.pi)), expected)


def test_noised_samples_have_their_own_noise_and_images_stay_in_range():
    x, noise = torch.zeros(4, 1, 3, 3), torch.ones(4, 1, 3, 3)
    std = torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert_close(noised_samples(x, std, noise)[:, 0, 0, 0], torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert_close(noised_samples(torch.zeros(4, 2), std, torch.ones(4, 2))[:, 0], std)
