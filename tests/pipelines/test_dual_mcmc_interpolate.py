"""Interpolation with DualMCMCPipeline: frames between latents or images, revised on request."""

import pytest
import torch
from dual_mcmc_chains import seeded, some_images, unit
from torch.testing import assert_close


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_interpolate_between_latents(tiny_dual_mcmc_pipeline, path):
    pipe, a, b = tiny_dual_mcmc_pipeline, torch.randn(2, 4), torch.randn(2, 4)
    out = pipe.interpolate(a, b, num_frames=5, path=path, output_type="latent")
    frames = out.latents.unflatten(0, (2, 5))  # pair by pair
    assert torch.equal(frames[:, 0], a) and torch.equal(frames[:, -1], b)
    assert_close(out.images, pipe.generate(out.latents))
    if path == "linear":
        assert_close(frames[:, 1], 0.75 * a + 0.25 * b)
    one = pipe.interpolate(a[1], b[1], num_frames=5, path=path, output_type="latent")
    assert_close(one.images, out.images[5:], rtol=1e-5, atol=1e-5)


def test_interpolate_between_images_infers_and_revises_them(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images(2)
    g = seeded()
    ends = [pipe.reconstruct(unit(x[i : i + 1]), generator=g).latents for i in range(2)]
    out = pipe.interpolate(unit(x[:1]), unit(x[1:]), num_frames=3, generator=seeded())
    assert len(out.images) == 3
    assert torch.equal(out.latents[0], ends[0][0]) and torch.equal(out.latents[2], ends[1][0])
    mixed = pipe.interpolate(ends[0], unit(x[1:]), num_frames=2, latent_inference_steps=0, sample_latents=False)
    assert torch.equal(mixed.latents[0], ends[0][0])
    assert_close(mixed.latents[1], pipe.inference_model(x[1:]).mean[0].detach())


def test_every_frame_may_be_revised(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, unit(some_images(4))
    both = pipe.interpolate(x[:2], x[2:], 3, 2, generator=[seeded(1), seeded(2)], output_type="latent").images
    alone = pipe.interpolate(x[1:2], x[3:], 3, 2, generator=seeded(2), output_type="latent")
    assert_close(both[3:], alone.images, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone.images, pipe.generate(alone.latents), atol=1e-3)
