"""The generator of Dual-MCMC Teaching on images: ``z -> x``, residual upsampling blocks ending in tanh.

It defines ``p(x | z) = N(g(z), likelihood_std^2 I)`` with ``z ~ N(0, I)`` (Eq. 4): its images, and the posterior of
latents that the z-chain samples. The defaults have the widths of the published CIFAR-10 network (16.0M parameters),
which also upsamples bilinearly and starts from other weights: the preset ``cifar10``.

Source: Cui & Han, "Learning Energy-based Model via Dual-MCMC Teaching", NeurIPS 2023.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample
from hf_ebm.models.initialization import check_initialization, initialize
from hf_ebm.models.latent_generator import LatentGenerator
from hf_ebm.models.network import Network
from hf_ebm.models.unet_generator import GeneratorOutput
from hf_ebm.models.upsampling import UPSAMPLE_MODES, double_size


class GeneratorBlock(nn.Module):
    """A residual block that doubles the image: two 3x3 convolutions, and a 1x1 one beside them.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        batch_norm: Whether each convolution is preceded by batch norm.
        upsample_mode: Of `hf_ebm.models.upsampling.double_size`.
    """

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool, upsample_mode: str = "nearest") -> None:
        super().__init__()
        self.upsample_mode = upsample_mode
        self.norm1 = nn.BatchNorm2d(in_channels) if batch_norm else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, in, H, W) -> (B, out, 2H, 2W)."""
        hidden = double_size(F.relu(self.norm1(x)), self.upsample_mode)
        hidden = self.conv2(F.relu(self.norm2(self.conv1(hidden))))
        # a 1x1 convolution and an upsampling, whose weights sum to 1, commute: convolve first, there is less to do
        return hidden + double_size(self.shortcut(x), self.upsample_mode)


class ResNetGeneratorModel(LatentGenerator, Network):
    """``z -> x`` for images.

    Args:
        image_size: Height and width of the images, divisible by ``patch_size * 2 ** (len(block_out_channels) - 1)``.
        num_channels: 1 for gray, 3 for RGB, or any number.
        latent_dim: Dimensions of z.
        patch_size: The network makes patches of this many pixels squared; 1 = pixels.
        block_out_channels: Width at the smallest size, then of each block, which doubles the size.
        batch_norm: Whether the blocks have batch norm.
        sampling_batch_norm: ``"running"``: samples use the running statistics (eval mode); ``"batch"``: those of their
            own batch, so that a sample depends on its neighbours.
        chain_running_statistics: ``"frozen"``: the z-chain of training does not update the running statistics;
            ``"updated"``: each of its steps counts.
        likelihood_std: Standard deviation of ``p(x | z)``, > 0. The squared error carries no 1/2 (see
            `hf_ebm.losses.dual_mcmc`), so that 0.3 is an effective 0.212.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
        class_prior: Their frequencies in the training set, from which labels are sampled; None = unknown.
        class_names: Their names; None = unknown.
        null_class: Whether samples without a label were trained, which guidance needs.
        upsample_mode: ``"nearest"``, or ``"bilinear"`` (``align_corners=True``) as in the published networks.
        initialization: Of the weights, see `hf_ebm.models.initialization`.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        num_channels: int = 3,
        latent_dim: int = 128,
        patch_size: int = 1,
        block_out_channels: Sequence[int] = (512, 512, 512, 512),
        batch_norm: bool = True,
        sampling_batch_norm: str = "running",
        chain_running_statistics: str = "frozen",
        likelihood_std: float = 0.3,
        num_classes: int = 0,
        class_prior: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: bool = True,
        upsample_mode: str = "nearest",
        initialization: str = "xavier_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes, class_prior, class_names)
        self.check_settings(sampling_batch_norm, chain_running_statistics, likelihood_std)
        check_initialization(initialization)
        if upsample_mode not in UPSAMPLE_MODES:
            raise ValueError(f"upsample_mode must be one of {UPSAMPLE_MODES}, got {upsample_mode!r}.")
        factor = patch_size * 2 ** (len(block_out_channels) - 1)
        if image_size % factor:
            raise ValueError(
                f"image_size must be divisible by {factor} for patch_size={patch_size} and block_out_channels="
                f"{tuple(block_out_channels)}, got {image_size}; use fewer blocks or another size."
            )
        self.start_size = image_size // factor
        self.linear_in = nn.Linear(latent_dim, block_out_channels[0] * self.start_size**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(a, b, batch_norm, upsample_mode) for a, b in itertools.pairwise(block_out_channels)
        )
        self.norm_out = nn.BatchNorm2d(block_out_channels[-1]) if batch_norm else nn.Identity()
        self.conv_out = nn.Conv2d(block_out_channels[-1], num_channels * patch_size**2, kernel_size=3, padding=1)
        for module in self.modules():
            initialize(module, initialization)
        self.class_embedding: ClassEmbedding | None = None
        if num_classes:
            width = self.linear_in.out_features
            std = (2.0 * latent_dim / (latent_dim + width)) ** 0.5  # of linear_in(z): both start as large
            self.class_embedding = ClassEmbedding(num_classes, width, std)

    def forward(self, z: Tensor, class_labels: Any = None, return_dict: bool = True) -> GeneratorOutput | tuple[Tensor]:
        """Generate.

        Args:
            z: Latents, shape (B, latent_dim).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return a `GeneratorOutput` or a tuple.

        Returns:
            The mean of ``p(x | z)``, images in [-1, 1], shape (B, C, H, W).
        """
        check_sample("z", z, (self.config.latent_dim,))
        labels = expand_class_labels(class_labels, z, self.config.num_classes)
        hidden = self.linear_in(z)
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(labels)
        hidden = hidden.unflatten(1, (-1, self.start_size, self.start_size))
        for block in self.blocks:
            hidden = block(hidden)
        x = self.conv_out(F.relu(self.norm_out(hidden)))
        if self.config.patch_size > 1:
            x = F.pixel_shuffle(x, self.config.patch_size)
        x = torch.tanh(x)
        return GeneratorOutput(sample=x) if return_dict else (x,)
