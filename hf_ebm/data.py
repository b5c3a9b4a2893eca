"""Training data as tensors: any Hugging Face data set, an image folder, or the embedded sets -> [-1, 1], (C, H, W).

The embedded sets need no network: ``digits`` (the 8x8 gray digits that scikit-learn ships, split once and for all) and
the 2-D sets ``25gaussians``, ``pinwheel``, ``swissroll``, drawn afresh with a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hf_ebm.content_hash import hash_pictures, hash_tensors
from hf_ebm.hub_datasets import EMBEDDED_NAMES, find_image_column, load_hub_dataset, undecoded
from hf_ebm.pictures import fit_picture, is_gray, open_picture
from hf_ebm.toy_data import sample_toy

MOST_HASHED = 10_000  # images of a data set that its fingerprint reads


def load_digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """The 8x8 digits of scikit-learn: images in [-1, 1], shape (N, 1, 8, 8), and labels 0..9, shape (N,).

    Args:
        split: ``"train"`` (1,437 images) or ``"test"`` (360), stratified by digit, the same on every machine.
    """
    from sklearn import datasets, model_selection

    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    pixels, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(pixels, labels, test_size=360, random_state=0, stratify=labels)
    images, targets = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    return (
        torch.from_numpy(images / 8.0 - 1.0).float().reshape(-1, 1, 8, 8),
        torch.from_numpy(np.asarray(targets)).long(),
    )


class HubImages(Dataset):
    """Images of a `datasets.Dataset` as float tensors in [-1, 1], shape (C, H, W); decoded when asked for."""

    def __init__(self, dataset: Any, column: str, transform: Callable[[PIL.Image.Image], Tensor]) -> None:
        self.dataset, self.column, self.transform = undecoded(dataset, column), column, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> PIL.Image.Image:
        """An image as it is in the data set."""
        return open_picture(self.dataset[index][self.column])

    def __getitem__(self, index: int) -> tuple[Tensor]:
        try:
            return (self.transform(self.picture(index)),)
        except ValueError as error:
            source = self.dataset[index][self.column]
            path = source.get("path") if isinstance(source, dict) else None
            name = f"image {index} of column {self.column!r}" + (f" ({path})" if path else "")
            raise ValueError(f"{name} {error}; mend it, or remove it from the data set.") from error


def image_transform(num_channels: int, image_size: int, padding: int = 0) -> Callable[[PIL.Image.Image], Tensor]:
    """PIL image -> tensor in [-1, 1], (C, S, S): converted to gray or RGB, centre-cropped square, resized, padded.

    All but the padding is `hf_ebm.pictures.fit_picture`.

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
    """What `image_transform` does to images for models of `sample_shape` (C, S, S), in words."""
    kind = {1: "gray", 3: "RGB"}.get(sample_shape[0], f"{sample_shape[0]} channels")
    size = f"{sample_shape[1] - 2 * padding}x{sample_shape[2] - 2 * padding}"
    padded = f"padded by {padding} black pixels on each side, " if padding else ""
    resized = f"resized to {size} (bicubic, where another size)"
    return f"converted to {kind}, centre-cropped square, {resized}, {padded}in [-1, 1]"


def describe_change(dataset: Dataset, sample_shape: tuple[int, ...], padding: int = 0) -> str | None:
    """What is lost of the images of a `load_training_data` set on their way to a model, in words.

    Told by its first image; None where that has the size and the colours that the model takes.
    """
    if not isinstance(dataset, HubImages):
        return None
    image, size = dataset.picture(0), sample_shape[1] - 2 * padding
    gray = is_gray(image.mode)
    if image.size == (size, size) and gray == (sample_shape[0] == 1):
        return None
    first = f"{image.width}x{image.height} {'gray' if gray else 'colour'}"
    return f"the first image is {first}; all are {describe_preparation(sample_shape, padding)}"


def draw_rows(number: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of `number` rows, drawn with `seed` without replacement, in ascending order."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:limit]
    return order.sort().values.tolist()


def fingerprint(dataset: Any) -> str:
    """What tells a data set of `load_training_data` from another one: a hash of its content, the same on any machine.

    Of more than `MOST_HASHED` images every second, third, ... is read. `datasets`' own fingerprint would not do: it
    depends on the dates of local files, and a copy of a folder has another one.
    """
    if not isinstance(dataset, HubImages):
        return hash_tensors({"samples": dataset.tensors[0]})[:16]
    return f"{hash_images(dataset.dataset, dataset.column)}:{len(dataset)}:{dataset.column}"


def hash_images(dataset: Any, column: str) -> str:
    """A hash of the images of an undecoded `datasets.Dataset`, of at most `MOST_HASHED` evenly spaced ones."""
    images, number = dataset.select_columns([column]), len(dataset)
    some = images.select(range(0, number, math.ceil(number / MOST_HASHED)))
    return hash_pictures(row[column] for row in some)[:16]


def load_training_data(
    name: str,
    sample_shape: tuple[int, ...],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    padding: int = 0,
    num_samples: int = 100_000,
    seed: int = 0,
) -> Dataset:
    """Training samples as a map-style data set of 1-tuples of tensors, images in [-1, 1].

    Args:
        name: ``"digits"``, a 2-D set, a Hub id, or a local folder.
        sample_shape: What the models take, (C, H, W) or (D,).
        split: Split of the data set.
        config_name: Configuration of a Hub data set.
        revision: Revision of a Hub data set.
        image_column: Column with the images; None = the only image column.
        padding: Black pixels on each side, see `image_transform`.
        num_samples: Points drawn of a 2-D set.
        seed: Seed of that draw.

    Raises:
        ValueError: If the data set is missing, empty, lacks the column, or its samples do not fit `sample_shape`.
    """
    if name in EMBEDDED_NAMES:
        if name == "digits":
            samples = load_digits(split)[0]
        else:
            samples = sample_toy(name, num_samples, torch.Generator().manual_seed(seed))
        if tuple(samples.shape[1:]) != tuple(sample_shape):
            raise ValueError(
                f"dataset {name!r} has samples of shape {tuple(samples.shape[1:])}, but the models take "
                f"{tuple(sample_shape)}; set preset={'digits' if name == 'digits' else 'toy'}, or the models' sizes."
            )
        return TensorDataset(samples)
    if len(sample_shape) != 3:
        raise ValueError(f"dataset {name!r} holds images, but the models take vectors of shape {tuple(sample_shape)}.")
    dataset = load_hub_dataset(name, split, config_name, revision)
    column = find_image_column(dataset, image_column)
    images = HubImages(dataset, column, image_transform(sample_shape[0], sample_shape[1], padding))
    images[0]  # a broken first image shall stop the run now, not after the networks are built
    return images
