"""Small networks that every test can afford."""

import pytest
import torch

TINY = {
    "image_size": 8,
    "num_channels": 1,
    "patch_size": 1,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "mid_attention": True,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_pipeline():
    """A DDAEBM pipeline of tiny networks with random weights everywhere (the zero-initialised layer too)."""
    from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
    from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

    overrides = {"unet": dict(TINY), "generator": {"latent_dim": 4}, "inference": {"block_out_channels": (8, 16)}}
    generator_model, energy_model, inference_model = build_ddaebm_models(
        ddaebm_model_settings("digits", overrides=overrides)
    )
    for parameter in energy_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = DDAEBMPipeline(generator_model, DDAEBMScheduler(), energy_model, inference_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
