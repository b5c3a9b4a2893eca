"""The U-Net under DDAEBM's energy and generator: diffusers' `UNet2DModel`, described by five numbers.

Levels are halved in size one after the other; self-attention stands at the named resolutions and in the bottleneck.
"""

from __future__ import annotations

import math
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor
from torch.nn import functional as F

from hf_ebm.models.upsampling import use_upsample


class UNet(UNet2DModel):
    """diffusers' `UNet2DModel`, which also returns the features of its bottleneck."""

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor, Tensor]:
        """As `UNet2DModel.forward`, for the settings of `build_unet`.

        Returns:
            `UNet2DOutput`, or a tuple of the output and the output of the middle block, shape (B, C, h, w).
        """
        emb = self.time_embedding(self.time_proj(timestep).to(self.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels).to(self.dtype)
        hidden = self.conv_in(sample)
        skips = (hidden,)
        for block in self.down_blocks:
            hidden, residuals = block(hidden, emb)
            skips += residuals
        bottleneck = hidden = self.mid_block(hidden, emb)
        for block in self.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], emb)
            skips = skips[:-count]
        output = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DOutput(sample=output) if return_dict else (output, bottleneck)


def build_unet(config: Any, time_embedding_dim: int, class_embed_type: str | None) -> UNet:
    """A `UNet2DModel` from images to images whose norms are modulated by the (time, z) embedding; see `run_unet`.

    Args:
        config: Of `UNetEnergyModel` or `UNetGeneratorModel`, which describe the settings from ``image_size`` to
            ``dropout``; ``base_channels`` is a multiple of 4.
        time_embedding_dim: Width of the embedding that modulates the norms.
        class_embed_type: ``"identity"`` adds a given embedding (the generator's z) to the time embedding.

    Raises:
        ValueError: If the sizes do not fit each other.
    """
    patch_size, base_channels = config.patch_size, config.base_channels
    image_size, channel_multipliers = config.image_size, config.channel_multipliers
    levels = len(channel_multipliers)
    if levels < 1:
        raise ValueError("channel_multipliers must name at least one level, got none.")
    factor = patch_size * 2 ** (levels - 1)
    if image_size < factor or image_size % factor:
        raise ValueError(
            f"image_size must be divisible by {factor} for patch_size={patch_size} and the {levels} levels of "
            f"channel_multipliers={tuple(channel_multipliers)}, got {image_size}; resize the images or use fewer "
            "levels."
        )
    image_size, in_channels = image_size // patch_size, config.num_channels * patch_size**2
    if base_channels < 4 or base_channels % 4:
        raise ValueError(f"base_channels must be a positive multiple of 4 (group norm), got {base_channels}.")
    widths = [base_channels * multiplier for multiplier in channel_multipliers]
    groups = math.gcd(base_channels, min(32, base_channels // 4))
    at = [image_size // 2**level in set(config.attention_resolutions) for level in range(levels)]
    unet = UNet(
        sample_size=image_size,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=tuple(widths),
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in at),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(at)),
        add_attention=config.mid_attention,
        attention_head_dim=None,  # one head, as wide as the level
        dropout=config.dropout,
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=time_embedding_dim,
        class_embed_type=class_embed_type,
    )
    return use_upsample(unet)


def run_unet(
    unet: UNet, x: Tensor, t: Tensor, patch_size: int, embedding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The U-Net of `build_unet` on images `x` (B, C, H, W), at timesteps `t` (B,).

    Returns:
        The output, of the shape of `x`, and the features of the bottleneck, shape (B, C', h, w).
    """
    if patch_size == 1:
        return unet(x, t, class_labels=embedding, return_dict=False)
    patches = F.pixel_unshuffle(x, patch_size)
    output, bottleneck = unet(patches, t, class_labels=embedding, return_dict=False)
    return F.pixel_shuffle(output, patch_size), bottleneck
