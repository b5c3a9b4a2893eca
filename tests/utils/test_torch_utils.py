"""On a CPU, pipelines and scores pass images to networks with channels last."""

import numpy as np
import pytest
import torch

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler, DualMCMCPipeline, LangevinScheduler
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.scoring.inputs import images_to_tensor
from hf_ebm.utils.torch_utils import channels_last_on_cpu


@pytest.fixture
def ddaebm():
    small = {"unet": {"image_size": 8, "num_channels": 3, "base_channels": 8}}
    generator_model, energy_model, _ = build_ddaebm_models(ddaebm_model_settings("digits", overrides=small))
    return DDAEBMPipeline(generator_model, DDAEBMScheduler(), energy_model)


@pytest.fixture
def dual_mcmc():
    small = {
        "data": {"image_size": 8, "num_channels": 3},
        **{name: {"block_out_channels": [8, 8]} for name in ("generator", "energy", "inference")},
    }
    generator_model, energy_model, _ = build_dual_mcmc_models(dual_mcmc_model_settings("digits", overrides=small))
    return DualMCMCPipeline(generator_model, LangevinScheduler(3), energy_model)


def layouts(model, call):
    """Of the images that `model` is given during `call`."""
    found = []
    hook = model.register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    call()
    hook.remove()
    return found


def test_images_of_several_channels_are_laid_out_anew_and_nothing_else_is():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(channels_last_on_cpu(x), x)
    assert channels_last_on_cpu(x).is_contiguous(memory_format=torch.channels_last)
    for other in (torch.rand(2, 1, 4, 4), torch.rand(2, 5), torch.empty(2, 3, 4, 4, device="meta")):
        assert channels_last_on_cpu(other) is other


def test_gray_pixels_are_given_like_gray_tensors():
    """With the strides of channels last a network would continue in that layout, and round its energies differently."""
    pixels = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    x = images_to_tensor(pixels, (1, 8, 8))
    assert torch.equal(x, torch.from_numpy(pixels)[:, None] / 127.5 - 1.0)
    assert x.stride() == torch.empty(2, 1, 8, 8).stride()


def test_patches_of_gray_images_are_laid_out_anew():
    energy_model = build_dual_mcmc_models(dual_mcmc_model_settings("digits"))[1].eval()
    assert energy_model.config.patch_size > 1
    assert layouts(energy_model.blocks[0], lambda: energy_model(torch.rand(2, 1, 8, 8))) == [True]


def test_networks_get_channels_last(ddaebm, dual_mcmc):
    x = torch.rand(2, 3, 8, 8)
    assert layouts(ddaebm.generator_model, lambda: ddaebm(2, output_type="pt")) == [True] * 4
    assert layouts(ddaebm.energy_model, lambda: ddaebm.score(x)) == [True]
    assert layouts(dual_mcmc.energy_model, lambda: dual_mcmc(2, output_type="pt")) == [True] * 3
