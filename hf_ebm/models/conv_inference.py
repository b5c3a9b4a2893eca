"""The inference model of Dual-MCMC Teaching on images: ``q(z | x) = N(mean, exp(logvar))``, strided convolutions.

The defaults have the widths of the published CIFAR-10 network (15.2M parameters), whose convolutions have no biases and
which starts from other weights: the preset ``cifar10``.

Source: Cui & Han, "Learning Energy-based Model via Dual-MCMC Teaching", NeurIPS 2023, Sec. 2.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample
from hf_ebm.models.initialization import check_initialization, initialize
from hf_ebm.models.network import Network
from hf_ebm.models.pair_inference import InferenceOutput


class ConvInferenceModel(Network):
    """``x -> mean, logvar of z``.

    Args:
        image_size: Height and width of the images, divisible by 2 for each strided convolution.
        num_channels: 1 for gray, 3 for RGB, or any number.
        latent_dim: Dimensions of z.
        block_out_channels: Width of the first 3x3 convolution and then of each strided 4x4 one.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
        strided_conv_in: Whether the first convolution is a strided 4x4 one too, as published for CelebA-64.
        conv_bias: Whether the convolutions have biases; the published ones have none.
        initialization: Of the weights, see `hf_ebm.models.initialization`.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        num_channels: int = 3,
        latent_dim: int = 128,
        block_out_channels: Sequence[int] = (128, 256, 512, 1024),
        num_classes: int = 0,
        strided_conv_in: bool = False,
        conv_bias: bool = True,
        initialization: str = "xavier_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_initialization(initialization)
        factor = 2 ** (len(block_out_channels) - (not strided_conv_in))
        if image_size % factor:
            raise ValueError(
                f"image_size must be divisible by {factor} for block_out_channels={tuple(block_out_channels)}, "
                f"got {image_size}; resize the images or use fewer blocks."
            )
        strided: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": conv_bias}
        first = strided if strided_conv_in else {"kernel_size": 3, "padding": 1, "bias": conv_bias}
        self.conv_in = nn.Conv2d(num_channels, block_out_channels[0], **first)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, **strided) for a, b in itertools.pairwise(block_out_channels))
        last_width, num_places = block_out_channels[-1], (image_size // factor) ** 2
        self.head = nn.Linear(last_width * num_places, 2 * latent_dim)
        for module in self.modules():
            initialize(module, initialization)
        if initialization == "published":  # its heads of mean and logvar are convolutions over all places
            nn.init.normal_(self.head.weight, std=(2.0 / ((last_width + latent_dim) * num_places)) ** 0.5)
        self.class_embedding = ClassEmbedding(num_classes, block_out_channels[0]) if num_classes else None

    def forward(
        self, x: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> InferenceOutput | tuple[Tensor, Tensor]:
        """Infer the latents of images.

        Args:
            x: Images in [-1, 1], shape (B, C, H, W).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return an `InferenceOutput` or a tuple.

        Returns:
            ``mean`` and ``logvar``, each of shape (B, latent_dim), float32.
        """
        check_sample("x", x, self.sample_shape)
        labels = expand_class_labels(class_labels, x, self.config.num_classes)
        hidden = self.conv_in(x)
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(labels)[:, :, None, None]
        for conv in self.convs:
            hidden = conv(F.leaky_relu(hidden, 0.2))
        mean, logvar = self.head(F.leaky_relu(hidden, 0.2).flatten(1)).float().chunk(2, dim=1)
        return InferenceOutput(mean=mean, logvar=logvar) if return_dict else (mean, logvar)
