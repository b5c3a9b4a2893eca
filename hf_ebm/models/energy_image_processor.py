"""What turns a picture into the tensor an energy takes, as transformers' image processors do; saved beside the energy.

Converted to gray or RGB, centre-cropped square, resized, scaled to [-1, 1], padded: the preparation of training data
(`hf_ebm.data.loading.image_transform`), without torchvision.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature

from hf_ebm.data.image_files import open_picture
from hf_ebm.data.loading import column_images, image_transform, is_column
from hf_ebm.models.resnet_energy import ResNetEnergyConfig
from hf_ebm.models.unet_energy import UNetEnergyConfig


class EnergyImageProcessor(PilBackend):
    """Pictures -> ``pixel_values`` in [-1, 1], shape (B, C, S, S).

    Args:
        image_size: S.
        num_channels: 1 (gray) or 3 (RGB).
        padding: Black pixels on each side, of the S.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own form)

    def __init__(self, image_size: int = 32, num_channels: int = 3, padding: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size, self.num_channels, self.padding = image_size, num_channels, padding

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:
        """PIL images, one, a list or a `datasets` column, as ``pixel_values``.

        Raises:
            ValueError: If an image is no PIL image, or is refused by `hf_ebm.data.image_files`.
        """
        if is_column(images):
            images = column_images(images)
        images = images if isinstance(images, list | tuple) else [images]
        for image in images:
            if not hasattr(image, "convert"):
                raise ValueError(f"images must be PIL images, got {type(image).__name__}.")
        transform = image_transform(self.num_channels, self.image_size, self.padding)
        pixel_values = torch.stack([transform(open_picture(image)) for image in images])
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


for _config in (UNetEnergyConfig, ResNetEnergyConfig):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": EnergyImageProcessor}, exist_ok=True)
