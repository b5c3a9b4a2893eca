"""The energy of Dual-MCMC Teaching on images: a residual network ``x -> E(x)`` with spectral norm on every layer.

ReLU, no normalisation of features, no bias, average pooling, one linear number at the end. Spectral norm bounds the
slope of E, which keeps the Langevin chain and the training stable. There are no noise levels: `timestep` is ignored.
The defaults are the published CIFAR-10 network (16.8M parameters), but for its initial weights (preset ``cifar10``).

With classes (`num_classes`) this is the base energy of `hf_ebm.models.class_scores`; phi are the features that the last
layer averages over the image, here averaged over a grid of cells and standardised. The class scores have no spectral
norm: they enter the energy times its small temperature, and bounded they could not separate the classes. They are not
in the paper.

Source: Cui & Han, "Learning Energy-based Model via Dual-MCMC Teaching", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from transformers import AutoConfig, AutoModel, PreTrainedModel  # noqa: F401 (diffusers looks here)

from hf_ebm.data.image_processor import register_image_processor
from hf_ebm.models.class_scores import ClassScores, ConditionalEnergyConfig, register_image_classifier
from hf_ebm.models.energy import EnergyModel, EnergyOutput, check_sample
from hf_ebm.models.initialization import check_initialization, initialize
from hf_ebm.utils.torch_utils import channels_last_on_cpu


class ResNetEnergyConfig(ConditionalEnergyConfig):
    """Settings of `ResNetEnergyModel`; those of the classes are in `ConditionalEnergyConfig`.

    Args:
        image_size: Height and width of the images, divisible by ``patch_size * 2 ** num_downsamples``.
        num_channels: 1 for gray, 3 for RGB, or any number.
        patch_size: The network works on patches of this many pixels squared; 1 = on pixels.
        block_out_channels: Width of each residual block.
        num_downsamples: How many of the blocks, from the first, halve the image.
        spectral_norm: Whether every layer is divided by its largest singular value.
        power_iteration: ``"energy_update"``: the estimate of the singular values moves in training forwards of the
            energy's own update only, and is fixed along a chain; ``"every_forward"``: at every chain step too.
        padding: Black pixels on each side of an image in its preparation, as in training; the network does not use it.
        class_grid: The class scores see the features averaged over a grid of this many cells squared; 1 = over the
            image. At most the last features' height.
        class_layer_norm: Whether the features are standardised before the class scores. Without this the small ones of
            the digits' network do not separate the classes.
        initialization: Of the weights, see `hf_ebm.models.initialization`.
    """

    model_type = "hf_ebm_resnet_energy"

    image_size: int = 32
    num_channels: int = 3
    patch_size: int = 1
    block_out_channels: list[int] | tuple[int, ...] = (512, 512, 512, 512)
    num_downsamples: int = 2
    spectral_norm: bool = True
    power_iteration: str = "energy_update"
    padding: int = 0
    class_grid: int = 2
    class_layer_norm: bool = True
    initialization: str = "xavier_normal"

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that a config file holds."""
        values = super().to_diff_dict()
        if not self.num_classes:
            values.pop("class_layer_norm", None)
            values.pop("class_grid", None)
        return values


MIN_SIZE = 16  # width in pixels from which `convolve_and_average` is faster; below it the wider weight costs more


def convolve_and_average(x: Tensor, weight: Tensor) -> Tensor:
    """``avg_pool2d(conv2d(x, weight), 2)`` as one convolution: half the size, less than half of the multiplications.

    A mean over 2x2 places of a 3x3 convolution is a 4x4 one at every second place, its weight the mean of the four ways
    to shift the 3x3 one: 16 products instead of 36. Equal to rounding.

    Args:
        x: Shape (B, in, H, W), H and W even.
        weight: Shape (out, in, K, K), K odd; the convolution is padded to keep the size.

    Returns:
        Shape (B, out, H/2, W/2).
    """
    wide = F.pad(weight, (1, 1, 1, 1))
    shifts = wide[..., :-1, :-1] + wide[..., 1:, :-1] + wide[..., :-1, 1:] + wide[..., 1:, 1:]
    return F.conv2d(x, 0.25 * shifts, stride=2, padding=weight.shape[-1] // 2)


class EnergyBlock(nn.Module):
    """A residual block of two 3x3 convolutions, with a 1x1 one beside it where width or size change.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        first: Whether the input is an image, which no ReLU shall cut.
        downsample: Whether the output is averaged over 2x2 pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, first: bool, downsample: bool) -> None:
        super().__init__()
        self.first, self.downsample = first, downsample
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels or downsample:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, in, H, W) -> (B, out, H, W), or half of H and W."""
        hidden = F.relu(self.conv1(x if self.first else F.relu(x)))
        if self.downsample and self.shortcut is not None:
            if x.shape[-1] >= MIN_SIZE:
                return convolve_and_average(hidden, self.conv2.weight) + convolve_and_average(x, self.shortcut.weight)
            # averaging and a 1x1 convolution commute: average first, there is less to do
            return F.avg_pool2d(self.conv2(hidden), 2) + self.shortcut(F.avg_pool2d(x, 2))
        return self.conv2(hidden) + (x if self.shortcut is None else self.shortcut(x))


class ResNetEnergyModel(EnergyModel):
    """``E(x)`` of images, shape (B,), low = likely."""

    config_class = ResNetEnergyConfig

    def __init__(self, config: ResNetEnergyConfig) -> None:
        super().__init__(config)
        widths: Sequence[int] = config.block_out_channels
        if not widths or not 0 <= config.num_downsamples <= len(widths):
            raise ValueError(
                "num_downsamples must be at most the number of blocks in block_out_channels, got "
                f"{config.num_downsamples} for {tuple(widths)}."
            )
        factor = config.patch_size * 2**config.num_downsamples
        if config.image_size % factor:
            raise ValueError(
                f"image_size must be divisible by patch_size * 2 ** num_downsamples = {factor}, got "
                f"{config.image_size}."
            )
        if config.power_iteration not in ("energy_update", "every_forward"):
            raise ValueError(
                f"power_iteration must be 'energy_update' or 'every_forward', got {config.power_iteration!r}."
            )
        check_initialization(config.initialization)
        in_channels = [config.num_channels * config.patch_size**2, *widths[:-1]]
        self.blocks = nn.ModuleList(
            EnergyBlock(a, b, first=i == 0, downsample=i < config.num_downsamples)
            for i, (a, b) in enumerate(zip(in_channels, widths, strict=True))
        )
        self.head = nn.Linear(widths[-1], 1, bias=False)
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                initialize(module, config.initialization)
                if config.spectral_norm:
                    spectral_norm(module)
        last_size = config.image_size // factor
        if not 1 <= config.class_grid <= last_size and config.num_classes and config.class_scores:
            raise ValueError(
                f"class_grid must be from 1 to {last_size}, the height of the last features, got {config.class_grid}."
            )
        self.class_scores: ClassScores | None = None
        if config.num_classes and config.class_scores:
            num_features = widths[-1] * config.class_grid**2
            self.class_scores = ClassScores(num_features, config.num_classes, layer_norm=config.class_layer_norm)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, timestep: Tensor | int | None = None, class_labels: Any = None, **_: Any
    ) -> EnergyOutput:
        """Energy of each image.

        Args:
            pixel_values: Images in [-1, 1], shape (B, C, H, W).
            timestep: Ignored: this energy has no noise levels.
            class_labels: Label of each image, shape (B,), or one number for all; -1 or None = the marginal energy.

        Returns:
            `EnergyOutput` with ``energy`` of shape (B,), and ``logits`` (B, num_classes) if there are classes, float32.
        """
        check_sample("pixel_values", pixel_values, self.sample_shape)
        hidden = pixel_values
        if self.config.patch_size > 1:
            hidden = channels_last_on_cpu(F.pixel_unshuffle(hidden, self.config.patch_size))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = F.relu(hidden)
        average = hidden.mean(dim=(2, 3))
        base = self.head(average).squeeze(1).to(torch.promote_types(hidden.dtype, torch.float32))
        logits = None
        if self.class_scores is not None:
            logits = self.class_scores(F.adaptive_avg_pool2d(hidden, self.config.class_grid).flatten(1))
        return self.with_labels(base, logits, class_labels)


AutoConfig.register(ResNetEnergyConfig.model_type, ResNetEnergyConfig)
AutoModel.register(ResNetEnergyConfig, ResNetEnergyModel)
register_image_processor(ResNetEnergyConfig)
register_image_classifier(ResNetEnergyConfig, ResNetEnergyModel)
