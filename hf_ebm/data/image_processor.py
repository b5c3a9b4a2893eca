"""Image preprocessing: what a user has -> ``pixel_values`` in [-1, 1], shape (B, C, S, S).

An image is converted to gray or RGB, cropped to a centred square or by a given box, resized (bicubic), scaled to [-1,
1], and padded with black pixels. An image that has the final size S x S already, such as a sample of the model, is not
padded again. `EBMImageProcessor` is a component of every pipeline and is saved beside an energy
(``preprocessor_config.json``), so that training, scoring, evaluation and `transformers.AutoImageProcessor` prepare an
image identically. Its module and class are part of the file format.

| given | range | layout |
|---|---|---|
| PIL image, path, URL | as `hf_ebm.data.image_files.open_image` reads it | |
| uint8 array | 0..255 | (B, H, W, C), (H, W, C); gray also (B, H, W), (H, W) |
| float array | [0, 1] | the same |
| uint8 or float tensor | 0..255 or [0, 1] | (B, C, H, W), (C, H, W) |

Arrays and tensors of another size or kind (gray, RGB) are converted as 8-bit images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import AutoImageProcessor, ImageProcessingMixin  # noqa: F401 (diffusers looks for it here)
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from hf_ebm.data.image_files import IMAGE_TYPES, fit_image, is_gray, open_image
from hf_ebm.utils.validation import is_integer

RANGE_TOLERANCE = 1e-5
KINDS = {1: "gray", 3: "RGB"}


def check_unit_range(values: Tensor, kind: str) -> None:
    """Raise a `ValueError` unless float images are finite and in [0, 1], up to rounding."""
    if not torch.isfinite(values).all():
        raise ValueError(f"images as {kind} must be finite, got NaN or infinite values.")
    if values.numel() and (values.min() < -RANGE_TOLERANCE or values.max() > 1.0 + RANGE_TOLERANCE):
        raise ValueError(
            f"images as {kind} must lie in [0, 1], got values from {values.min():.4g} to {values.max():.4g}; rescale "
            "them (x * 0.5 + 0.5 from [-1, 1]; x / 255 from 0..255)."
        )


def to_model_range(x: Tensor) -> Tensor:
    """Images 0..255 (uint8) or in [0, 1] (floats) as float32 in the models' range [-1, 1]."""
    return x.float() / 127.5 - 1.0 if x.dtype == torch.uint8 else x.float() * 2.0 - 1.0


def to_unit_range(x: Tensor) -> Tensor:
    """Images in the models' range [-1, 1] as floats in [0, 1]; values outside are clamped."""
    return (x * 0.5 + 0.5).clamp(0.0, 1.0)


def batch_of(images: np.ndarray | Tensor, num_channels: int, size: int) -> Tensor:
    """An array or tensor of the module's table as a tensor (B, C, H, W), uint8 or float32 in [0, 1], checked.

    The expected channels and `size` decide what an array of three dimensions is.
    """
    if isinstance(images, Tensor):
        x = images.detach()
        if x.ndim not in (3, 4):
            raise ValueError(f"images as tensors must have shape (B, C, H, W) or (C, H, W), got {tuple(x.shape)}.")
        x = x if x.ndim == 4 else x[None]
        kind = "tensors"
    else:
        array = images
        if array.ndim == 2:
            array = array[None, ..., None]
        elif array.ndim == 3:  # one image, or gray images without their channel
            gray = num_channels == 1 and array.shape[1:] == (size, size)
            one = array.shape[2] in (1, 3, 4, num_channels) and not gray
            array = array[None] if one else array[..., None] if num_channels == 1 else array
        if array.ndim != 4:
            raise ValueError(f"images as arrays must have shape (B, H, W, C) or (H, W, C), got {images.shape}.")
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype(np.float32, copy=False)
        elif array.dtype != np.uint8:
            raise ValueError(f"images as arrays must be uint8 in 0..255 or floats in [0, 1], got dtype {array.dtype}.")
        x = torch.from_numpy(np.array(array))  # a copy: arrays of PIL images are read-only
        # by their strides gray images are laid out channels last, too, which networks would keep
        x = x.permute(0, 3, 1, 2) if x.shape[3] > 1 else x[..., 0].unsqueeze(1)
        kind = "float arrays"
    if x.is_floating_point():
        x = x.float()
        check_unit_range(x, kind)
    elif x.dtype != torch.uint8:
        raise ValueError(f"images as tensors must be floats in [0, 1] or uint8 in 0..255, got dtype {x.dtype}.")
    if x.shape[1] not in (1, 3, 4, num_channels):
        raise ValueError(f"images must have 1, 3 or 4 channels, got {x.shape[1]} (shape {tuple(images.shape)}).")
    return x


def check_crop(crop_box: Any, crop_from: Any) -> None:
    """Raise a `ValueError` unless both are None, or a box (left, top, right, bottom) in an image (width, height)."""
    if crop_box is None and crop_from is None:
        return
    given = [*(crop_from or ()), *(crop_box or ())]
    fits = len(crop_from or ()) == 2 and len(crop_box or ()) == 4 and all(map(is_integer, given))
    if fits:
        (width, height), (left, top, right, bottom) = crop_from, crop_box
        fits = 0 <= left < right <= width and 0 <= top < bottom <= height
    if not fits:
        raise ValueError(
            "crop_box must be (left, top, right, bottom) in pixels of an image of the size crop_from, (width, height), "
            f"got crop_box={crop_box} and crop_from={crop_from}; give both, or neither for a centred square."
        )


class EBMImageProcessor(BaseImageProcessor):
    """Images -> ``pixel_values`` in [-1, 1], shape (B, C, S, S): the module's table.

    Args:
        size: S, the final height and width, padding included, or ``{"height": S, "width": S}``.
        num_channels: 1 (gray) or 3 (RGB); images of the other kind are converted. With another number, only arrays and
            tensors of that number of channels and of the final size are accepted.
        padding: Black pixels on each side, of the S.
        do_resize: Whether images of other sizes are cropped to a centred square and resized. False refuses them.
        image_size: `size` in files saved before it had that name.
        crop_box: Left, top, right and bottom of the part that is kept of images of the size `crop_from`, in pixels;
            images of other sizes are cropped to a centred square. None = all are.
        crop_from: Width and height of the images that `crop_box` is for.

    Raises:
        ValueError: If one of them is out of range.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own form)
    crop_box: list[int] | None = None  # as class attributes they are saved only where they are set
    crop_from: list[int] | None = None

    def __init__(
        self,
        size: int | dict[str, int] | None = None,
        num_channels: int = 3,
        padding: int = 0,
        do_resize: bool | None = True,
        image_size: int | None = None,
        crop_box: Sequence[int] | None = None,
        crop_from: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{name: value for name, value in kwargs.items() if value is not None})
        length = _square(size if size is not None else 32 if image_size is None else image_size)
        if num_channels < 1:
            raise ValueError(f"num_channels must be >= 1, got {num_channels}.")
        if padding < 0 or length <= 2 * padding:
            raise ValueError(f"padding must be >= 0 and under half of size={length}, got {padding}.")
        self.size, self.num_channels, self.padding = {"height": length, "width": length}, num_channels, padding
        self.do_resize = do_resize is None or do_resize
        check_crop(crop_box, crop_from)
        if crop_box is not None and crop_from is not None:
            self.crop_box, self.crop_from = list(crop_box), list(crop_from)

    @classmethod
    def for_model(cls, sample_shape: tuple[int, ...], padding: int = 0, **crop: Any) -> EBMImageProcessor | None:
        """The processor for a model of images of shape (C, S, S), with `crop_box`, ...; None for a model of vectors."""
        return cls(sample_shape[-1], sample_shape[0], padding, **crop) if len(sample_shape) == 3 else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image, (C, S, S)."""
        return self.num_channels, self.size["height"], self.size["width"]

    def describe(self) -> str:
        """A description of the preparation for records and cards."""
        kind, inner = KINDS.get(self.num_channels, f"{self.num_channels} channels"), self.size["height"]
        inner -= 2 * self.padding
        padded = f"padded by {self.padding} black pixels on each side, " if self.padding else ""
        resized = f"resized to {inner}x{inner} (bicubic, where another size)"
        cropped = "centre-cropped square"
        if self.crop_box is not None and self.crop_from is not None:
            width, height = self.crop_from
            cropped = f"cropped to the box {tuple(self.crop_box)} where {width}x{height}, else {cropped}"
        return f"converted to {kind}, {cropped}, {resized}, {padded}in [-1, 1]"

    def crop(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """The part of `image` in the box, if it has the size that the box is for; else the whole image."""
        if self.crop_box is None or list(image.size) != self.crop_from:
            return image
        left, top, right, bottom = self.crop_box
        return image.crop((left, top, right, bottom))

    def describe_changes(self, size: tuple[int, int], mode: str, transparent: bool, frames: int = 1) -> str:
        """A description of how an image of this size, mode, transparency and number of frames is converted, or ""."""
        (width, height), (num_channels, length, _) = size, self.sample_shape
        inner = length if size == (length, length) else length - 2 * self.padding
        changes = [] if frames == 1 else [f"taken from the first of {frames} frames"]
        if self.crop_box is not None and list(size) == self.crop_from:
            left, top, right, bottom = self.crop_box
            width, height = right - left, bottom - top
            changes.append(f"cropped to the box {tuple(self.crop_box)}")
        if width != height:
            changes.append("cropped to a square")
        if min(width, height) != inner:
            changes.append(f"resized from {width} x {height} to {inner} x {inner} pixels")
        if num_channels == 1 and not is_gray(mode):
            changes.append("converted to gray")
        if transparent:
            changes.append("laid on white where it is transparent")
        return ", ".join(changes)

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
        processor = self
        if size is not None or do_resize is not None:
            resize = self.do_resize if do_resize is None else do_resize
            crop: dict[str, Any] = {"crop_box": self.crop_box, "crop_from": self.crop_from}
            processor = EBMImageProcessor(size or self.size, self.num_channels, self.padding, resize, **crop)
        one = isinstance(images, (np.ndarray, Tensor, *IMAGE_TYPES))
        parts = [processor.prepare(image) for image in ([images] if one else list(images))]
        if not sum(len(part) for part in parts):
            raise ValueError("images is empty; give at least one image.")
        pixel_values = torch.cat(parts)
        data = list(pixel_values) if return_tensors is None else pixel_values
        return BatchFeature(data={"pixel_values": data}, tensor_type=return_tensors)

    def prepare(self, images: Any) -> Tensor:
        """One image, array or tensor of the module's table as a float32 tensor (B, C, S, S) in [-1, 1].

        Raises:
            ValueError: If it does not fit the table, or has another size and `do_resize` is False.
        """
        if not isinstance(images, np.ndarray | Tensor):
            images = self.pixels(images)[None]
        num_channels, size, _ = self.sample_shape
        x, inner = batch_of(images, num_channels, size), size - 2 * self.padding
        if x.shape[1] == num_channels and tuple(x.shape[2:]) in ((size, size), (inner, inner)):
            x, missing = to_model_range(x), (size - x.shape[2]) // 2
            return torch.nn.functional.pad(x, (missing,) * 4, value=-1.0) if missing else x
        if num_channels not in KINDS:
            raise ValueError(
                f"images must have shape (B, {num_channels}, {size}, {size}) in (B, C, H, W) for this model, got "
                f"{tuple(x.shape)}; convert them."
            )
        x = x if x.dtype == torch.uint8 else x.mul(255.0).round().byte()
        arrays = [image[..., 0] if image.shape[-1] == 1 else image for image in x.permute(0, 2, 3, 1).cpu().numpy()]
        if not arrays:
            return torch.empty(0, *self.sample_shape)
        return self.prepare(np.stack([self.pixels(PIL.Image.fromarray(array)) for array in arrays]))

    def pixels(self, image: Any) -> np.ndarray:
        """One PIL image, path, URL or undecoded image as 8-bit pixels, shape (S, S, C).

        Raises:
            ValueError: If it cannot be read or converted, or has another size and `do_resize` is False.
        """
        image = open_image(image)
        num_channels, size, _ = self.sample_shape
        inner, (width, height) = size - 2 * self.padding, image.size
        if num_channels not in KINDS:
            raise ValueError(f"images cannot be PIL images for a model of {num_channels} channels; give arrays.")
        if not self.do_resize and (width, height) not in ((inner, inner), (size, size)):
            raise ValueError(
                f"images must be {inner} x {inner} pixels with do_resize=False, got {width} x {height}; resize them, "
                "or use do_resize=True."
            )
        padding = 0 if (width, height) == (size, size) else self.padding
        pixels = np.array(fit_image(self.crop(image), num_channels, size - 2 * padding)).reshape(
            size - 2 * padding, size - 2 * padding, num_channels
        )
        return np.pad(pixels, [(padding, padding), (padding, padding), (0, 0)]) if padding else pixels


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
