"""Inpainting with DualMCMCPipeline: the known part is unchanged to the bit, the rest is sampled given it."""

import numpy as np
import PIL.Image
import pytest
import torch
from dual_mcmc_chains import MASK, SAMPLERS, langevin, seeded, some_images, unit, x_energy
from torch.testing import assert_close

from hf_ebm import HMCScheduler, MALAScheduler
from hf_ebm.losses.dual_mcmc import posterior_energy
from hf_ebm.models.energy import EnergyOutput


def test_inpaint_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g, x = tiny_dual_mcmc_pipeline, seeded(), some_images()
    out = pipe.inpaint(unit(x), MASK, generator=seeded(), output_type="latent", output_energies=True)
    left, unknown = x[..., :4], MASK.bool()
    with torch.no_grad():
        mean, logvar = pipe.inference_model(x * (1 - MASK), return_dict=False)
    z = mean + (0.5 * logvar).exp() * torch.randn(3, 4, generator=g)

    def left_error(z):
        return posterior_energy(lambda z: pipe.generator_model(z).sample[..., :4], z, left, 0.3)

    z = langevin(pipe.latent_scheduler, left_error, z, 3, g)
    assert_close(out.latents, z)
    start = torch.where(unknown, pipe.generate(z), x)
    end = langevin(pipe.scheduler, x_energy(pipe), start, 5, g, keep=lambda new: torch.where(unknown, new, x))
    assert_close(out.images, end)
    assert_close(out.energies[0], pipe.energy_model(start).energy.detach())
    assert_close(out.energies[-1], pipe.energy_model(end).energy.detach())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpaint_keeps_known_pixels_exactly_and_looks_at_no_other(tiny_dual_mcmc_pipeline, sampler):
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    pipe.latent_scheduler = sampler.from_config(pipe.latent_scheduler.config)
    masks = torch.stack([MASK, MASK.T, 1 - MASK])
    filled = pipe.inpaint(unit(x), masks, generator=seeded(), output_type="latent").images
    unknown = masks[:, None].bool()
    assert torch.equal(filled[~unknown], x[~unknown])
    assert (filled[unknown] != x[unknown]).all()
    other = torch.where(unknown, -x, x)
    assert torch.equal(pipe.inpaint(unit(other), masks, generator=seeded(), output_type="latent").images, filled)


@pytest.mark.parametrize("sampler", [MALAScheduler, HMCScheduler])
def test_exact_samplers_stay_exact_on_the_masked_part(tiny_dual_mcmc_pipeline, sampler):
    """E = sum (x - 0.5 m)^2 / 2, m the mean of the known half: the rest is Gaussian, mean m/2, variance T."""
    pipe = tiny_dual_mcmc_pipeline
    unknown = MASK.bool()

    def forward(x, timestep=None):
        m = x[..., ~unknown].mean(dim=-1)[..., None, None]
        return EnergyOutput(energy=0.5 * (x - 0.5 * m).square().flatten(1).sum(dim=1))

    pipe.energy_model.forward = forward
    pipe.scheduler = sampler(num_train_timesteps=40, step_size=0.8, noise_std=0.16)
    x = some_images(1)
    out = pipe.inpaint(
        unit(x.expand(400, 1, 8, 8)), MASK, generator=seeded(), output_type="latent", output_diagnostics=True
    )
    filled = out.images[..., unknown]
    assert 0.3 < out.diagnostics["acceptance_rate"][10:].mean() < 0.995
    mean, var = 0.5 * x[..., ~unknown].mean(), 0.04
    assert abs(filled.mean() - mean) < 4 * (var / filled.numel()) ** 0.5
    assert abs(filled.var() - var) < 5 * var * (2 / filled.numel()) ** 0.5


def test_inpaint_without_inference_model_starts_from_a_draw(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images(2)
    pipe.inference_model = pipe.latent_scheduler = None
    out = pipe.inpaint(unit(x), MASK, 0, generator=seeded(), output_type="latent")
    z = torch.randn(2, 4, generator=seeded())
    assert_close(out.images[..., 4:], pipe.generate(z)[..., 4:])
    with pytest.raises(ValueError, match="latent_inference_steps=2 needs"):
        pipe.inpaint(unit(x), MASK, latent_inference_steps=2)


def test_all_kinds_of_masks_and_images_fill_alike(tiny_dual_mcmc_pipeline):
    pipe = tiny_dual_mcmc_pipeline
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    pil = [PIL.Image.fromarray(image[..., 0]) for image in pixels]
    gray = PIL.Image.fromarray((MASK.numpy() * 155 + 60).astype(np.uint8))  # rounded to black and white

    def inpaint(images, mask, output_type="latent"):
        return pipe.inpaint(images, mask, generator=seeded(), output_type=output_type).images

    expected = inpaint(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, MASK)
    masks = [
        MASK.bool(),
        MASK.long(),
        MASK.numpy(),
        MASK.numpy().astype(np.uint8),
        MASK[None],
        MASK[None, None],
        MASK.expand(2, 8, 8),
        MASK.expand(2, 1, 8, 8),
        gray,
        gray.point(lambda v: 255 * (v > 99), mode="1"),
        [gray, gray],
    ]
    for mask in masks:
        assert_close(inpaint(pixels, mask), expected, rtol=1e-4, atol=1e-4)
    filled = np.stack([np.asarray(image) for image in inpaint(pil, gray, "pil")])
    assert (filled[:, :, :4] == pixels[:, :, :4, 0]).all()
