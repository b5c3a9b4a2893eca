"""The generator of DDAEBM on images: ``(x_next, t, z) -> x0_pred``, a U-Net ending in tanh.

The latent ``z ~ N(0, I)`` modulates every group norm (scale and shift) together with the time embedding. Random z makes
``q(x_t | x_next, x0_pred)`` multimodal, which a large denoising step needs and a Gaussian is not. Source: Geng et al.,
ICML 2024; the latent modulation follows Xiao et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample, expand_timestep
from hf_ebm.models.latent_mapping import LatentMapping
from hf_ebm.models.network import Network
from hf_ebm.models.unet import build_unet, run_unet


@dataclass
class GeneratorOutput(BaseOutput):
    """Output of a generator.

    Attributes:
        sample: Predicted clean sample ``x0_pred``, images in [-1, 1], shape (B, C, H, W) or (B, D).
    """

    sample: Tensor


class UNetGeneratorModel(Network):
    """``(x_next, t, z) -> x0_pred`` for images; the defaults are the published CIFAR-10 network.

    Args:
        image_size: Height and width of the images, divisible by ``patch_size * 2 ** (len(channel_multipliers) - 1)``.
        num_channels: 1 for gray, 3 for RGB, or any number.
        num_timesteps: T, the number of denoising steps; ``timestep`` is 0..T-1.
        latent_dim: Dimensions of z.
        patch_size: The U-Net works on patches of this many pixels squared; 1 = on pixels.
        base_channels: Width of the first level.
        channel_multipliers: Width of each level over `base_channels`.
        layers_per_block: Residual blocks per level.
        attention_resolutions: Image sizes that get self-attention.
        mid_attention: Self-attention in the bottleneck.
        dropout: Dropout while training.
        embedding_dim: Width of the joint (time, z) embedding; None = ``4 * base_channels``.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
        class_prior: Their frequencies in the training set, from which labels are sampled; None = unknown.
        class_names: Their names; None = unknown.
        null_class: Whether samples without a label were trained, which guidance needs.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        num_channels: int = 3,
        num_timesteps: int = 4,
        latent_dim: int = 100,
        patch_size: int = 1,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        layers_per_block: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        mid_attention: bool = True,
        dropout: float = 0.1,
        embedding_dim: int | None = None,
        num_classes: int = 0,
        class_prior: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        check_classes(num_classes, class_prior, class_names)
        embedding_dim = embedding_dim or 4 * base_channels
        self.latent_mapping = LatentMapping(latent_dim, embedding_dim, embedding_dim)
        self.class_embedding = ClassEmbedding(num_classes, embedding_dim) if num_classes else None
        self.unet = build_unet(self.config, embedding_dim, "identity")

    def forward(
        self, x_next: Tensor, timestep: Tensor | int, z: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[Tensor]:
        """Predict the clean image.

        Args:
            x_next: Noisy images at state t + 1, shape (B, C, H, W).
            timestep: Index t of the cleaner state, 0..T-1, a number or shape (B,).
            z: Latents ~ N(0, I), shape (B, latent_dim).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return a `GeneratorOutput` or a tuple.

        Returns:
            ``x0_pred`` in [-1, 1], shape (B, C, H, W).
        """
        check_sample("x_next", x_next, self.sample_shape)
        check_sample("z", z, (self.config.latent_dim,))
        labels = expand_class_labels(class_labels, x_next, self.config.num_classes)
        embedding = self.latent_mapping(z)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(labels)
        t = expand_timestep(timestep, x_next, self.config.num_timesteps)
        x0_pred = torch.tanh(run_unet(self.unet, x_next, t, self.config.patch_size, embedding)[0])
        return GeneratorOutput(sample=x0_pred) if return_dict else (x0_pred,)
