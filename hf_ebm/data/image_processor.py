"""Image preprocessing: what a user has -> ``pixel_values`` in [-1, 1], shape (B, C, S, S).

An image is converted to gray or RGB, cropped to a centred square, resized (bicubic), scaled to [-1, 1], and padded with
black pixels. `EBMImageProcessor` is saved beside an energy (``preprocessor_config.json``), so that
`transformers.AutoImageProcessor` prepares an image as training did. Its module and class are part of the file format.

| given | range | layout |
|---|---|---|
| PIL image, path, URL | as `hf_ebm.data.image_files.open_picture` reads it | |
| uint8 array | 0..255 | (B, H, W, C), (H, W, C); gray also (B, H, W), (H, W) |
| float array | [0, 1] | the same |
| uint8 or float tensor | 0..255 or [0, 1] | (B, C, H, W), (C, H, W) |

Arrays and tensors of another size are resized as 8-bit images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from hf_ebm.data.image_files import PICTURE_TYPES, fit_picture, open_picture

RANGE_TOLERANCE = 1e-3


def image_transform(num_channels: int, image_size: int, padding: int = 0) -> Callable[[PIL.Image.Image], Tensor]:
    """PIL image -> tensor in [-1, 1], (C, S, S): converted to gray or RGB, centre-cropped square, resized, padded.

    All but the padding is `hf_ebm.data.image_files.fit_picture`.

    Args:
        num_channels: 1 (gray) or 3 (RGB).
        image_size: S, the final size, padding included.
        padding: Black pixels on each side (28x28 images become 32x32 with 2).
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 or 3 to read images, got {num_channels}.")
    if padding < 0 or image_size <= 2 * padding:
        raise ValueError(f"padding must be >= 0 and under half of image_size={image_size}, got {padding}.")
    inner = image_size - 2 * padding

    def transform(image: PIL.Image.Image) -> Tensor:
        image = fit_picture(image, num_channels, inner)
        pixels = torch.from_numpy(np.array(image)).reshape(inner, inner, num_channels).permute(2, 0, 1)
        pixels = pixels.float() / 127.5 - 1.0
        return torch.nn.functional.pad(pixels, (padding,) * 4, value=-1.0) if padding else pixels

    return transform


def describe_preparation(sample_shape: tuple[int, ...], padding: int = 0) -> str:
    """A description of what `image_transform` does to images for models of `sample_shape` (C, S, S)."""
    kind = {1: "gray", 3: "RGB"}.get(sample_shape[0], f"{sample_shape[0]} channels")
    size = f"{sample_shape[1] - 2 * padding}x{sample_shape[2] - 2 * padding}"
    padded = f"padded by {padding} black pixels on each side, " if padding else ""
    resized = f"resized to {size} (bicubic, where another size)"
    return f"converted to {kind}, centre-cropped square, {resized}, {padded}in [-1, 1]"


UNIT_HINT = "x * 0.5 + 0.5 from [-1, 1]; x / 255 from 0..255"


def check_range(values: Tensor, low: float, high: float, kind: str, hint: str = UNIT_HINT) -> None:
    """Raise a `ValueError` unless `values` are finite and in [low, high], up to rounding."""
    if not torch.isfinite(values).all():
        raise ValueError(f"images as {kind} must be finite, got NaN or infinite values.")
    if values.numel() and (values.min() < low - RANGE_TOLERANCE or values.max() > high + RANGE_TOLERANCE):
        raise ValueError(
            f"images as {kind} must lie in [{low:g}, {high:g}], got values from {values.min():.4g} to "
            f"{values.max():.4g}; rescale them ({hint})."
        )


def array_to_tensor(array: np.ndarray, num_channels: int) -> Tensor:
    """An array of images as a tensor in [-1, 1], shape (B, C, H, W); see the module's table.

    Raises:
        ValueError: If its layout, dtype or range is another.
    """
    if num_channels == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1)):
        array = array[..., None]  # gray images may come without their channel
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise ValueError(f"images as arrays must have shape (B, H, W, C) or (H, W, C), got {array.shape}.")
    if array.dtype == np.uint8:
        scaled = array.astype(np.float32)
        scaled /= 255.0
    elif np.issubdtype(array.dtype, np.floating):
        scaled = array.astype(np.float32)
        check_range(torch.from_numpy(scaled), 0.0, 1.0, "float arrays")
    else:
        raise ValueError(f"images as arrays must be uint8 in 0..255 or floats in 0..1, got dtype {array.dtype}.")
    x = torch.from_numpy(scaled).mul_(2.0).sub_(1.0)  # in place: memory is what takes time
    # by their strides gray images are laid out channels last, too, which networks would keep (hf_ebm.utils.torch_utils)
    return x.permute(0, 3, 1, 2) if x.shape[3] > 1 else x[..., 0].unsqueeze(1)


class EBMImageProcessor(BaseImageProcessor):
    """Images -> ``pixel_values`` in [-1, 1], shape (B, C, S, S): the module's table.

    Args:
        size: S, the final height and width, padding included, or ``{"height": S, "width": S}``.
        num_channels: 1 (gray) or 3 (RGB); images of the other kind are converted.
        padding: Black pixels on each side, of the S.
        do_resize: Whether images of other sizes are cropped to a centred square and resized. False refuses them;
            an image of the final size then has its padding already.
        image_size: `size` in files saved before it had that name.

    Raises:
        ValueError: If one of them is out of range.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        size: int | dict[str, int] | None = None,
        num_channels: int = 3,
        padding: int = 0,
        do_resize: bool | None = True,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{name: value for name, value in kwargs.items() if value is not None})
        length = _square(size if size is not None else 32 if image_size is None else image_size)
        image_transform(num_channels, length, padding)  # checks them
        self.size, self.num_channels, self.padding = {"height": length, "width": length}, num_channels, padding
        self.do_resize = do_resize is None or do_resize

    def preprocess(
        self,
        images: Any,
        size: int | dict[str, int] | None = None,
        do_resize: bool | None = None,
        return_tensors: str | None = "pt",
        **unknown: Any,
    ) -> BatchFeature:
        """``{"pixel_values"}`` of one image, a batch, a list or another sequence of images.

        Args:
            images: The module's table.
            size: Instead of the processor's.
            do_resize: Instead of the processor's.
            return_tensors: ``"pt"``, ``"np"``, or None for a list of tensors.

        Raises:
            ValueError: If an image does not fit the module's table, has another size and `do_resize` is False, or
                there is none, or an argument is unknown.
        """
        if set_ := sorted(name for name, value in unknown.items() if value is not None):
            raise ValueError(f"EBMImageProcessor takes size=, do_resize= and return_tensors=, got {set_}; remove them.")
        length = _square(self.size if size is None else size)
        resize = self.do_resize if do_resize is None else do_resize
        one = isinstance(images, (np.ndarray, Tensor, *PICTURE_TYPES))
        parts = [self._prepare(image, length, resize) for image in ([images] if one else list(images))]
        if not sum(len(part) for part in parts):
            raise ValueError("images is empty; give at least one image.")
        pixel_values = torch.cat(parts)
        data = list(pixel_values) if return_tensors is None else pixel_values
        return BatchFeature(data={"pixel_values": data}, tensor_type=return_tensors)

    def _prepare(self, images: Any, size: int, resize: bool) -> Tensor:
        """One image, array or tensor as (B, C, S, S), in [-1, 1]."""
        if isinstance(images, np.ndarray | Tensor):
            if isinstance(images, Tensor):
                images = _channels_last(images)
            if images.ndim not in (2, 3, 4) or (
                images.ndim == 3 and self.num_channels == 3 and images.shape[-1] not in (1, 3, 4)
            ):
                raise ValueError(f"images as arrays must have shape (B, H, W, C) or (H, W, C), got {images.shape}.")
            channels = images.shape[-1] if images.ndim == 4 or images.shape[-1] in (3, 4) else 1
            x = array_to_tensor(images, channels)
            inner = size - 2 * self.padding
            if channels == self.num_channels and tuple(x.shape[2:]) == (inner, inner):
                return torch.nn.functional.pad(x, (self.padding,) * 4, value=-1.0)
            if channels == self.num_channels and tuple(x.shape[2:]) == (size, size) and not resize:
                return x
            if channels not in (1, 3, 4):
                raise ValueError(f"images must have 1, 3 or 4 channels, got {channels} (shape {tuple(images.shape)}).")
            pixels = x.add(1.0).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
            pictures = [PIL.Image.fromarray(image[..., 0] if channels == 1 else image) for image in pixels]
        else:
            pictures = [open_picture(images)]
        return torch.stack([self._fit(picture, size, resize) for picture in pictures]) if pictures else torch.empty(0)

    def _fit(self, picture: PIL.Image.Image, size: int, resize: bool) -> Tensor:
        inner = size - 2 * self.padding
        if not resize and picture.size not in ((inner, inner), (size, size)):
            width, height = picture.size
            raise ValueError(
                f"images must be {inner} x {inner} pixels with do_resize=False, got {width} x {height}; resize them, "
                "or use do_resize=True."
            )
        padding = 0 if not resize and picture.size == (size, size) else self.padding
        return image_transform(self.num_channels, size, padding)(picture)


class EnergyImageProcessor(EBMImageProcessor):
    """The former name of `EBMImageProcessor`, which saved files may have."""


def register_image_processor(config_class: type) -> None:
    """Make `AutoImageProcessor` load an `EBMImageProcessor` for energies of this config, by its former name too."""
    classes = {"pil": EBMImageProcessor, "torchvision": EBMImageProcessor, "former name": EnergyImageProcessor}
    AutoImageProcessor.register(config_class, image_processor_classes=classes, exist_ok=True)


def _square(size: Any) -> int:
    """S of ``S`` or ``{"height": S, "width": S}``."""
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    if sides[0] != sides[1] or not isinstance(sides[0], int) or isinstance(sides[0], bool) or sides[0] < 1:
        raise ValueError(f"size must be S or {{'height': S, 'width': S}} of whole pixels, got {size!r}.")
    return sides[0]


def _channels_last(tensor: Tensor) -> np.ndarray:
    """A tensor (B, C, H, W), (C, H, W) or (H, W) as an array (B, H, W, C)."""
    if tensor.ndim not in (2, 3, 4):
        raise ValueError(f"images as tensors must have shape (B, C, H, W) or (C, H, W), got {tuple(tensor.shape)}.")
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor  # bfloat16 has no array
    return tensor.reshape(-1, *tensor.shape[-3:] if tensor.ndim > 2 else (1, *tensor.shape)).movedim(1, -1).numpy()
