"""Upsampling by two: equal to diffusers', with the same gradients when compiled."""

import shutil

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from hf_ebm import UNetEnergyConfig
from hf_ebm.models.unet import build_unet
from hf_ebm.models.upsampling import Upsample, double_size


def test_double_size_repeats_every_pixel():
    x = torch.randn(2, 3, 4, 5)
    doubled = double_size(x)
    assert doubled.shape == (2, 3, 8, 10)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(doubled[:, :, row::2, column::2], x)


def test_double_size_keeps_the_type_under_autocast():
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert double_size(x).dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upsample_is_upsample_2d_with_its_weights_and_keeps_the_memory_format(memory_format):
    theirs = Upsample2D(8, use_conv=True)
    ours = Upsample(nn.Conv2d(8, 8, 3, padding=1))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(64, 8, 4, 4).contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.to(memory_format=memory_format)(x).is_contiguous(memory_format=memory_format)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_unet_has_the_gradients_of_the_eager_one():
    small = {"image_size": 8, "num_channels": 1, "base_channels": 8, "channel_multipliers": (1, 1), "dropout": 0.0}
    config = UNetEnergyConfig(**small, layers_per_block=1, attention_resolutions=(), mid_attention=False)
    unet = build_unet(config, 8, None)
    x, t = torch.randn(4, 1, 8, 8), torch.arange(4)

    def gradients(network):
        loss = network(x, t).sample.square().sum()
        return torch.autograd.grad(loss, list(unet.parameters()))

    torch.testing.assert_close(gradients(torch.compile(unet)), gradients(unet), rtol=1e-3, atol=1e-4)
