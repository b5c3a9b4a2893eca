"""The inference model of DDAEBM on images: ``q_psi(z | x_t, x_next)``, a strided convolution net on the image pair.

Source: Geng et al., ICML 2024, section on the variational posterior.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample, expand_timestep
from hf_ebm.models.network import Network


@dataclass
class InferenceOutput(BaseOutput):
    """Output of an inference model: the Gaussian ``q(z | .)``.

    Attributes:
        mean: Its mean, shape (B, latent_dim).
        logvar: Its log-variance, shape (B, latent_dim).
    """

    mean: Tensor
    logvar: Tensor = None  # type: ignore[assignment]  # accelerate's hooks rebuild outputs from their first field


class PairInferenceModel(Network):
    """``(x_t, x_next, t) -> mean, logvar of z``; the defaults are near the published CIFAR-10 size.

    Args:
        image_size: Height and width of the images, divisible by ``2 ** (len(block_out_channels) - 1)``.
        num_channels: Channels of one image of the pair.
        num_timesteps: T, the number of denoising steps.
        latent_dim: Dimensions of z.
        block_out_channels: Width of the first 3x3 convolution and then of each strided 4x4 one.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        num_channels: int = 3,
        num_timesteps: int = 4,
        latent_dim: int = 100,
        block_out_channels: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        factor = 2 ** (len(block_out_channels) - 1)
        if image_size % factor:
            raise ValueError(
                f"image_size must be divisible by {factor} for block_out_channels={tuple(block_out_channels)}, "
                f"got {image_size}; resize the images or use fewer blocks."
            )
        embedding_dim = 4 * block_out_channels[0]
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], embedding_dim)
        self.class_embedding = ClassEmbedding(num_classes, embedding_dim) if num_classes else None
        self.conv_in = nn.Conv2d(2 * num_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.convs, self.time_biases = nn.ModuleList(), nn.ModuleList()
        for width_in, width_out in itertools.pairwise(block_out_channels):
            self.convs.append(nn.Conv2d(width_in, width_out, kernel_size=4, stride=2, padding=1))
            self.time_biases.append(nn.Linear(embedding_dim, width_out))
        self.head = nn.Linear(block_out_channels[-1] * (image_size // factor) ** 2, 2 * latent_dim)

    def forward(
        self, x_t: Tensor, x_next: Tensor, timestep: Tensor | int, class_labels: Any = None, return_dict: bool = True
    ) -> InferenceOutput | tuple[Tensor, Tensor]:
        """Infer the latent that turns `x_next` into `x_t`.

        Args:
            x_t: Images at state t, shape (B, C, H, W).
            x_next: Images at state t + 1, shape (B, C, H, W).
            timestep: Index t, 0..T-1, a number or shape (B,).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return an `InferenceOutput` or a tuple.

        Returns:
            ``mean`` and ``logvar``, each of shape (B, latent_dim), float32.
        """
        check_sample("x_t", x_t, self.sample_shape)
        check_sample("x_next", x_next, self.sample_shape)
        embedding = self.time_proj(expand_timestep(timestep, x_t, self.config.num_timesteps)).to(self.dtype)
        embedding = self.time_embedding(embedding)
        labels = expand_class_labels(class_labels, x_t, self.config.num_classes)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(labels)
        embedding = F.silu(embedding)
        hidden = self.conv_in(torch.cat([x_t, x_next], dim=1))
        for conv, time_bias in zip(self.convs, self.time_biases, strict=True):
            hidden = conv(F.leaky_relu(hidden, 0.2)) + time_bias(embedding)[:, :, None, None]
        mean, logvar = self.head(F.leaky_relu(hidden, 0.2).flatten(1)).float().chunk(2, dim=1)
        return InferenceOutput(mean=mean, logvar=logvar) if return_dict else (mean, logvar)
