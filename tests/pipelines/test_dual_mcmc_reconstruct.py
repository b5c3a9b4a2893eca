"""Reconstruction with DualMCMCPipeline: the z-chain from inferred or given latents."""

import pytest
import torch
from dual_mcmc_chains import langevin, seeded, some_images, unit, z_energy
from torch.testing import assert_close

from hf_ebm import LangevinScheduler


def test_reconstruct_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g, x = tiny_dual_mcmc_pipeline, seeded(), some_images()
    out = pipe.reconstruct(unit(x), generator=seeded(), output_type="latent", output_squared_errors=True)
    with torch.no_grad():
        mean, logvar = pipe.inference_model(x, return_dict=False)
    inferred = mean + (0.5 * logvar).exp() * torch.randn(3, 4, generator=g)
    z = langevin(pipe.latent_scheduler, z_energy(pipe, x), inferred, 3, g)
    assert_close(out.latents, z)
    assert_close(out.images, pipe.generate(z))
    assert out.squared_errors.shape == (4, 3)
    for errors, z_there in ((out.squared_errors[0], inferred), (out.squared_errors[-1], z)):
        assert_close(errors, (pipe.generate(z_there) - x).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("latents", [None, torch.zeros(3, 4)])
def test_what_the_z_chain_reports(tiny_dual_mcmc_pipeline, latents):
    """The posterior's energy where a gradient is taken: of Langevin the states, so the first is the start's."""
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    out = pipe.reconstruct(unit(x), latents=latents, generator=seeded(), output_type="latent", output_diagnostics=True)
    assert out.diagnostics["energy"].shape == out.diagnostics["grad_norm"].shape == (3, 3)
    if latents is not None:
        assert_close(out.diagnostics["energy"][0], z_energy(pipe, x)(latents).detach())
    plain = pipe.reconstruct(unit(x), latents=latents, generator=seeded(), output_type="latent")
    assert plain.diagnostics is None and torch.equal(plain.images, out.images)


def test_reconstruct_without_steps_uses_only_the_inference_model(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    pipe.latent_scheduler = None
    out = pipe.reconstruct(unit(x), 0, sample_latents=False, output_type="latent", output_squared_errors=True)
    assert_close(out.latents, pipe.inference_model(x).mean.detach())
    assert out.squared_errors.shape == (1, 3)


def test_z_chain_from_given_latents_and_what_it_is_for(tiny_dual_mcmc_pipeline):
    """From noise, without an inference model: the error of images that the generator can make falls."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.inference_model, pipe.latent_scheduler = None, LangevinScheduler(100, 0.1, 1e-3)
    x = pipe(4, 0, generator=seeded(1), output_type="latent").images.clamp(-1, 1)
    noise = torch.randn(4, 4, generator=seeded(2))
    errors = pipe.reconstruct(unit(x), latents=noise, output_squared_errors=True).squared_errors
    assert_close(errors[0], (pipe.generate(noise) - x).square().mean(dim=(1, 2, 3)))
    assert errors[-1].mean() < 0.5 * errors[0].mean()
