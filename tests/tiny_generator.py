"""A tiny residual generator with adjustable settings and updated running statistics."""

import torch

from hf_ebm import ResNetGeneratorModel


def tiny_generator(**settings):
    model = ResNetGeneratorModel(8, 1, 4, block_out_channels=(8, 8), **settings)
    for _ in range(3):
        model.train()(torch.randn(16, 4))
    return model
