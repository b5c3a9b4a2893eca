"""DualMCMCPipeline on vectors instead of images."""

import pytest
import torch
from dual_mcmc_chains import seeded
from torch.testing import assert_close

from hf_ebm import DualMCMCPipeline, LangevinScheduler
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings


def test_everything_on_vectors(tmp_path):
    models = build_dual_mcmc_models(dual_mcmc_model_settings("toy"))
    pipe = DualMCMCPipeline(models[0], LangevinScheduler(4, 0.05), models[1], models[2], LangevinScheduler(3, 0.05))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    pipe = DualMCMCPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    points = pipe(5, generator=seeded(), output_type="np", output_energies=True)
    assert points.images.shape == (5, 2) and points.energies.shape == (5, 5)
    assert_close(pipe.score(points.images).energies, points.energies[-1])
    out = pipe.reconstruct(points.images * 3.0, output_type="pt", output_squared_errors=True)
    assert out.images.shape == (5, 2) and out.squared_errors.shape == (4, 5)
    a, b = points.images[:2], points.images[2:4]  # arrays are data; tensors of latent_dim columns are latents
    between = pipe.interpolate(a, b, num_frames=3, latent_inference_steps=0, sample_latents=False, output_type="pt")
    assert_close(between.latents[0], pipe.inference_model(torch.from_numpy(a)).mean[0].detach())
    assert torch.equal(pipe.interpolate(torch.ones(2), torch.zeros(2), 2, output_type="pt").latents[0], torch.ones(2))
    filled = pipe.inpaint(points.images, torch.tensor([0, 1]), output_type="np").images
    assert (filled[:, 0] == points.images[:, 0]).all() and (filled[:, 1] != points.images[:, 1]).all()
    with pytest.raises(ValueError, match="output_type"):
        pipe(2)
