"""The energy of DDAEBM on images: ``E(x, t) = 1/2 ||x - U(x, t)||^2``, summed over pixels.

U is a U-Net whose last layer starts at zero, so that training starts from ``E = ||x||^2 / 2``, a proper Gaussian, and
every parameter reaches every pixel's residual. Source: Geng et al., ICML 2024, section on the energy's architecture.

With classes (`num_classes`) this is the base energy of `hf_ebm.models.class_scores`; phi is the output of the U-Net's
middle block, averaged over its pixels. Neither U nor the class scores have spectral norm.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel  # noqa: F401 (diffusers looks here)

from hf_ebm.data.image_processor import register_image_processor
from hf_ebm.models.class_scores import ClassScores, ConditionalEnergyConfig, register_image_classifier
from hf_ebm.models.energy import EnergyModel, EnergyOutput, check_sample, expand_timestep, half_squared_norm
from hf_ebm.models.unet import build_unet, run_unet


class UNetEnergyConfig(ConditionalEnergyConfig):
    """Settings of `UNetEnergyModel`; the defaults are the published CIFAR-10 network.

    Those of the classes are in `ConditionalEnergyConfig`.

    Args:
        image_size: Height and width of the images, divisible by ``patch_size * 2 ** (len(channel_multipliers) - 1)``.
        num_channels: 1 for gray, 3 for RGB, or any number.
        num_timesteps: T, the number of noise levels; ``timestep`` is 0..T-1.
        patch_size: The U-Net works on patches of this many pixels squared; 1 = on pixels.
        base_channels: Width of the first level.
        channel_multipliers: Width of each level over `base_channels`.
        layers_per_block: Residual blocks per level.
        attention_resolutions: Image sizes that get self-attention.
        mid_attention: Self-attention in the bottleneck.
        dropout: Dropout while training; scoring never drops anything.
        time_embedding_dim: Width of the time embedding; None = ``4 * base_channels``.
        padding: Black pixels on each side of an image in its preparation, as in training; the network does not use it.
    """

    model_type = "hf_ebm_unet_energy"

    image_size: int = 32
    num_channels: int = 3
    num_timesteps: int = 4
    patch_size: int = 1
    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    layers_per_block: int = 2
    attention_resolutions: list[int] | tuple[int, ...] = (16,)
    mid_attention: bool = True
    dropout: float = 0.1
    time_embedding_dim: int | None = None
    padding: int = 0


class UNetEnergyModel(EnergyModel):
    """``E(x, t) = 1/2 ||x - U(x, t)||^2`` for images, shape (B,), low = likely.

    Attention runs in plain matrix products: the fused kernels have no second derivative, which the gradient penalty
    needs.
    """

    config_class = UNetEnergyConfig
    has_residuals = True

    def __init__(self, config: UNetEnergyConfig) -> None:
        super().__init__(config)
        self.unet = build_unet(config, config.time_embedding_dim or 4 * config.base_channels, None)
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.class_scores: ClassScores | None = None
        if config.num_classes and config.class_scores:
            width = config.base_channels * config.channel_multipliers[-1]
            self.class_scores = ClassScores(width, config.num_classes)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        timestep: Tensor | int | None = None,
        class_labels: Any = None,
        output_residuals: bool = False,
        **_: Any,
    ) -> EnergyOutput:
        """Energy of each image.

        Args:
            pixel_values: Images in [-1, 1] (noisy states may leave that range), shape (B, C, H, W).
            timestep: Noise level 0..T-1, a number or shape (B,); None = 0, the energy of the data.
            class_labels: Label of each image, shape (B,), or one number for all; -1 or None = the marginal energy.
            output_residuals: Whether to return ``x - U(x, t)``.

        Returns:
            `EnergyOutput` with ``energy`` of shape (B,), and ``logits`` (B, num_classes) if there are classes, float32.
        """
        check_sample("pixel_values", pixel_values, self.sample_shape)
        t = expand_timestep(timestep, pixel_values, self.config.num_timesteps)
        predicted, bottleneck = run_unet(self.unet, pixel_values, t, self.config.patch_size)
        base = half_squared_norm(pixel_values, predicted)
        logits = None if self.class_scores is None else self.class_scores(bottleneck.mean(dim=(2, 3)))
        output = self.with_labels(base, logits, class_labels)
        if output_residuals:
            output.residuals = pixel_values - predicted
        return output


AutoConfig.register(UNetEnergyConfig.model_type, UNetEnergyConfig)
AutoModel.register(UNetEnergyConfig, UNetEnergyModel)
register_image_processor(UNetEnergyConfig)
register_image_classifier(UNetEnergyConfig, UNetEnergyModel)
