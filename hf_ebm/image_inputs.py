"""From what a user has (PIL images, arrays, tensors) to what the models take: checked, never guessed.

| given | range | layout |
|---|---|---|
| PIL image, a list of them, a `datasets` column | as is | mode "L" for 1 channel, "RGB" for 3 |
| uint8 array | 0..255 | (B, H, W, C), (H, W, C); (B, H, W), (H, W) for 1 channel |
| float array | 0..1 | the same |
| float tensor | -1..1 | (B, C, H, W), (C, H, W) |
| vector data: float array or tensor | any | (B, D) |

PIL images are turned upright by their EXIF orientation; what `hf_ebm.pictures.open_picture` refuses is an error. A
`datasets` column is ``dataset["image"]``.
Masks have diffusers' convention, 1 (white) = to be filled in, and the module's function `mask_to_tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from hf_ebm.counting import counted
from hf_ebm.hub_datasets import column_images, is_column
from hf_ebm.pictures import UNKNOWN_RANGE, open_picture

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
RANGE_TOLERANCE = 1e-3


def images_to_tensor(images: Any, sample_shape: tuple[int, ...]) -> Tensor:
    """Images (or vectors) as a float32 tensor in the models' own range, (B, C, H, W) in [-1, 1] or (B, D).

    Args:
        images: PIL image, array, tensor, a list of one of these kinds, or a `datasets` column: the module's table.
        sample_shape: What the model takes, (C, H, W) or (D,).

    Raises:
        ValueError: If a size, channel count, mode, type or range does not fit; it names what to change.
    """
    if is_column(images):
        images = column_images(images)
    if isinstance(images, PIL.Image.Image):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        if len(images) == 0:
            raise ValueError("images is empty; give at least one image.")
        if isinstance(images, tuple) and len(images) == 2 and _are_labels(images[1], images[0]):
            raise ValueError("images must be the images alone, got a pair of images and labels; give its first part.")
        parts = [_one_kind(image, sample_shape) for image in images]
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise ValueError(f"images must all have one size, got {shapes}.")
        batch = torch.cat(parts)
    else:
        batch = _one_kind(images, sample_shape)
    if batch.shape[0] == 0:
        raise ValueError("images is empty; give at least one image.")
    if tuple(batch.shape[1:]) != tuple(sample_shape):
        raise ValueError(
            f"images must have shape (B, {', '.join(map(str, sample_shape))}) as (B, {_layout(sample_shape)}) for this "
            f"model, got {tuple(batch.shape)} in that layout; resize them or convert their channels."
        )
    return batch


def _are_labels(labels: Any, images: Any) -> bool:
    """Whether these are whole numbers, one for each image of a batch."""
    if not (isinstance(labels, Tensor | np.ndarray) and isinstance(images, Tensor | np.ndarray)):
        return False
    whole = not torch.as_tensor(labels).is_floating_point()
    return whole and images.ndim > 1 and labels.shape == images.shape[:1]


def _layout(sample_shape: tuple[int, ...]) -> str:
    return "channels, height, width" if len(sample_shape) == 3 else "dimensions"


def _one_kind(images: Any, sample_shape: tuple[int, ...]) -> Tensor:
    """One image or one batch of one kind as a (B, ...) tensor in the models' range."""
    if isinstance(images, PIL.Image.Image):
        return _from_pil(images, sample_shape)
    if isinstance(images, Tensor):
        return _from_tensor(images, sample_shape)
    if isinstance(images, np.ndarray):
        return _from_array(images, sample_shape)
    raise ValueError(f"images must be PIL images, numpy arrays or torch tensors, got {type(images).__name__}.")


def _from_pil(image: PIL.Image.Image, sample_shape: tuple[int, ...]) -> Tensor:
    if len(sample_shape) != 3:
        raise ValueError(f"images must be vectors of shape (B, {sample_shape[0]}) for this model, got a PIL image.")
    mode = PIL_MODES.get(sample_shape[0])
    if mode is None:
        raise ValueError(f"images cannot be PIL images for a model of {sample_shape[0]} channels; give tensors.")
    image = upright(image, "images")
    if image.mode != mode:
        channels = sample_shape[0]
        if image.mode in UNKNOWN_RANGE:
            raise ValueError(
                f"images must have mode {mode!r} for this {channels}-channel model, got {image.mode!r}, whose range is "
                "not known; save them with 8 or 16 bits."
            )
        how = f"image.convert({mode!r})" if channels == 4 else f"hf_ebm.pictures.convert_picture(image, {channels})"
        raise ValueError(
            f"images must have mode {mode!r} for this {channels}-channel model, got {image.mode!r}; convert them with "
            f"{how}."
        )
    return _from_array(np.asarray(image), sample_shape)


def upright(image: PIL.Image.Image, argument: str) -> PIL.Image.Image:
    """A PIL image decoded and turned by its EXIF orientation, as `hf_ebm.pictures.open_picture` opens files."""
    try:
        return open_picture(image)
    except ValueError as error:
        raise ValueError(f"{argument}: a PIL image {error}.") from error


def _from_array(array: np.ndarray, sample_shape: tuple[int, ...]) -> Tensor:
    if len(sample_shape) == 1:
        return _from_tensor(torch.from_numpy(np.asarray(array, dtype=np.float32)), sample_shape)
    if sample_shape[0] == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1)):
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
        _check_range(torch.from_numpy(scaled), 0.0, 1.0, "float arrays")
    else:
        raise ValueError(f"images as arrays must be uint8 in 0..255 or floats in 0..1, got dtype {array.dtype}.")
    x = torch.from_numpy(scaled).mul_(2.0).sub_(1.0)  # in place: memory is what takes time
    # by their strides gray images are laid out channels last, too, which networks would keep: see hf_ebm.memory_format
    return x.permute(0, 3, 1, 2) if x.shape[3] > 1 else x[..., 0].unsqueeze(1)


def _from_tensor(tensor: Tensor, sample_shape: tuple[int, ...]) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(
            f"images as tensors must be floats in [-1, 1], got dtype {tensor.dtype}; use images / 127.5 - 1."
        )
    if tensor.ndim == len(sample_shape):
        tensor = tensor[None]
    if len(sample_shape) == 3:
        _check_range(tensor, -1.0, 1.0, "tensors")
    elif not torch.isfinite(tensor).all():
        raise ValueError("images (vector data) must be finite, got NaN or infinite values.")
    return tensor.detach().float()


def _check_range(values: Tensor, low: float, high: float, kind: str) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"images as {kind} must be finite, got NaN or infinite values.")
    if values.numel() and (values.min() < low - RANGE_TOLERANCE or values.max() > high + RANGE_TOLERANCE):
        raise ValueError(
            f"images as {kind} must lie in [{low:g}, {high:g}], got values from {values.min():.4g} to "
            f"{values.max():.4g}; rescale them (tensors: x * 2 - 1 from [0, 1]; arrays: uint8, or x / 255)."
        )


def mask_to_tensor(mask: Any, batch_size: int, sample_shape: tuple[int, ...]) -> Tensor:
    """A mask, 1 (white) = to be filled in, as a boolean tensor that broadcasts to (B, C, H, W) or (B, D).

    Args:
        mask: PIL image of mode "L" or "1" (gray is rounded to black or white), a list of them, or an array or a tensor
            of zeros and ones, of shape (H, W), (B, H, W), (B, 1, H, W), where B may be 1; vector data (D,), (B, D).
        batch_size: B, the number of images.
        sample_shape: (C, H, W) or (D,).

    Raises:
        ValueError: If the type, a shape or a value does not fit.
    """
    if is_column(mask):
        mask = column_images(mask)
    if isinstance(mask, PIL.Image.Image):
        mask = [mask]
    if isinstance(mask, Sequence) and not isinstance(mask, str | bytes) and len(mask) > 0:
        mask = _pil_masks(mask)
    if not isinstance(mask, np.ndarray | Tensor):
        raise ValueError(f"mask must be a PIL image, a numpy array or a torch tensor, got {type(mask).__name__}.")
    values = torch.as_tensor(mask)
    size = tuple(sample_shape[-2:])
    shapes = [size, (1, *size), (batch_size, *size)]
    if len(sample_shape) == 3:
        shapes += [(1, 1, *size), (batch_size, 1, *size)]
    if tuple(values.shape) not in shapes:
        allowed = ", ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise ValueError(
            f"mask must have one of the shapes {allowed} for {counted(batch_size, 'image')} of this model, got "
            f"{tuple(values.shape)}; resize it like the images."
        )
    if not ((values == 0) | (values == 1)).all():
        raise ValueError(
            f"mask must hold only 0 (keep) and 1 (fill in), got values from {values.min().item():.4g} to "
            f"{values.max().item():.4g}; make it with mask > threshold."
        )
    channels = (1,) if len(sample_shape) == 3 else ()
    return (values == 1).reshape(-1, *channels, *size)


def _pil_masks(masks: Sequence[Any]) -> np.ndarray:
    """Black-and-white PIL images as one boolean array (B, H, W)."""
    for mask in masks:
        if not isinstance(mask, PIL.Image.Image):
            raise ValueError(f"mask as a list must hold PIL images, got {type(mask).__name__}; stack arrays instead.")
        if mask.mode not in ("1", "L"):
            raise ValueError(f"mask must have mode '1' or 'L', got {mask.mode!r}; convert it with mask.convert('L').")
    masks = [upright(mask, "mask") for mask in masks]
    sizes = sorted({mask.size for mask in masks})
    if len(sizes) > 1:
        raise ValueError(f"mask images must all have one size, got {sizes}.")
    return np.stack([np.asarray(mask.convert("L")) >= 128 for mask in masks])
