"""Rows of a data set as batches that a model can score: read and prepared a span at a time, by workers where wanted.

A row is ``(id, picture)``. A picture that cannot be prepared does not stop the batch: it is named in its `Batch`, and
who asked for the batch decides. Nothing here grows with the number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_ebm.counting import check_count
from hf_ebm.hub_datasets import find_image_column, undecoded
from hf_ebm.image_inputs import PIL_MODES, images_to_tensor
from hf_ebm.pictures import UNKNOWN_RANGE, fit_picture, open_picture

Row = tuple[Any, Any]  # (id, picture)
Span = tuple[int, int]  # rows start..stop-1


@dataclass(frozen=True)
class Unreadable:
    """A row without a score: its number, its id, the name to look for, and why."""

    row: int
    id: Any
    name: str
    reason: str
    resizable: bool = False  # it would have a score with resize=True


class ResizableError(ValueError):
    """A picture of another size or mode than the model's, which ``resize=True`` would make fit."""


@dataclass(frozen=True)
class Batch:
    """The rows of a span.

    Attributes:
        stop: End of the span.
        ids: Of the rows in `x`.
        x: Samples in the models' range, shape (len(ids), ...).
        unreadable: The rows that are not in `x`.
    """

    stop: int
    ids: list[Any]
    x: Tensor
    unreadable: list[Unreadable]


class Rows(Protocol):
    """What can be scored: rows that are read by their numbers, the same ones every time."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        ...


class ListRows:
    """Pictures of a list, whose ids are their places."""

    def __init__(self, pictures: Sequence[Any] | Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        return list(enumerate(self.pictures[start:stop], start))


class HubRows:
    """Rows of a `datasets.Dataset`, undecoded.

    Args:
        dataset: The data set.
        image_column: Of the pictures; None = the only one.
        id_column: Of the ids, whole numbers or strings; None = the paths of an image folder, else the row numbers.
        root: The folder that such paths are told from; None = they stay whole.

    Raises:
        ValueError: If a column is not there or is of a type that it cannot have.
    """

    def __init__(
        self, dataset: Any, image_column: str | None = None, id_column: str | None = None, root: str | None = None
    ) -> None:
        self.column, self.id_column, self.root = find_image_column(dataset, image_column), id_column, root
        if id_column is not None:
            if id_column not in dataset.column_names:
                raise ValueError(f"id_column {id_column!r} is not in the data set; it has {dataset.column_names}.")
            kind = str(getattr(dataset.features[id_column], "dtype", None))
            if not kind.startswith(("int", "uint", "string", "large_string")):
                raise ValueError(f"id_column {id_column!r} must hold whole numbers or strings, got {kind}.")
        columns = dict.fromkeys([self.column] if id_column is None else [self.column, id_column])
        self.fingerprint: str = dataset._fingerprint
        self.dataset = undecoded(dataset.select_columns(list(columns)), self.column)
        self.files = id_column is None and len(dataset) > 0 and self._path(self.dataset[0][self.column]) is not None

    def _path(self, picture: Any) -> str | None:
        """The file of a row that is one: in an image folder, not in a parquet file that holds the bytes."""
        if not isinstance(picture, dict) or picture.get("bytes") or not picture["path"]:
            return None
        return os.path.relpath(picture["path"], self.root) if self.root else picture["path"]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        part = self.dataset[start:stop]
        pictures = part[self.column]
        ids: Iterable[Any] = range(start, stop)
        if self.id_column is not None:
            ids = part[self.id_column]
        elif self.files:
            ids = [self._path(picture) for picture in pictures]
        return list(zip(ids, pictures, strict=True))


def prepare_sample(picture: Any, sample_shape: tuple[int, ...], resize: bool, padding: int = 0) -> np.ndarray | Tensor:
    """One picture, array or tensor as pixels 0..255 of the model's size, uint8, (H, W) or (H, W, C), or as a tensor.

    Args:
        picture: What `hf_ebm.pictures.open_picture` takes, or an array or a tensor of `hf_ebm.image_inputs`.
        sample_shape: What the model takes, (C, H, W) or (D,).
        resize: Whether a picture is converted to gray or RGB, cropped square and resized; else it must fit.
        padding: Black pixels that a picture is given on each side; one of the model's size has them already, unless it
            is resized.

    Returns:
        Pixels of a picture; a tensor in the models' range, shape (1, ...), from an array or a tensor.

    Raises:
        ValueError: If it cannot be read or does not fit, in words that follow its name.
    """
    if isinstance(picture, np.ndarray | Tensor):
        return _fitting(picture, sample_shape)
    image = open_picture(picture)
    if not resize:
        fits = image.mode == PIL_MODES.get(sample_shape[0])
        if fits and image.size[::-1] == sample_shape[1:]:
            return np.asarray(image)
        if fits and padding and image.size[::-1] == tuple(size - 2 * padding for size in sample_shape[1:]):
            return _padded(image, padding)
        if sample_shape[0] in (1, 3) and len(sample_shape) == 3 and image.mode not in UNKNOWN_RANGE:
            channels, height, width = sample_shape
            bare = f" or {width - 2 * padding}x{height - 2 * padding}" if padding else ""
            raise ResizableError(
                f"does not fit (the model takes mode {PIL_MODES[channels]!r} of {width}x{height}{bare} pixels, got "
                f"{image.mode!r} of {image.width}x{image.height})"
            )
        return _fitting(image, sample_shape)  # which says what does not fit
    try:
        return _padded(fit_picture(image, sample_shape[0], sample_shape[-1] - 2 * padding), padding)
    except ValueError as error:
        raise ValueError(f"does not fit ({str(error).rstrip('.')})") from error


def _padded(image: Any, padding: int) -> np.ndarray:
    """The pixels of a PIL image with black ones around, (H, W) or (H, W, C)."""
    pixels = np.asarray(image)
    return np.pad(pixels, [(padding, padding)] * 2 + [(0, 0)] * (pixels.ndim - 2)) if padding else pixels


def _fitting(sample: Any, sample_shape: tuple[int, ...]) -> Tensor:
    try:
        x = images_to_tensor(sample, sample_shape)
        if len(x) != 1:
            raise ValueError(f"a row holds one image, got {len(x)}")
        return x
    except ValueError as error:
        raise ValueError(f"does not fit ({str(error).rstrip('.')})") from error


def _stacked(samples: list[np.ndarray | Tensor], sample_shape: tuple[int, ...]) -> np.ndarray:
    """Prepared samples as one array: pixels, uint8, if all are; else in the models' range, float32, (B, ...)."""
    if not samples:
        return np.empty((0, *sample_shape), dtype=np.float32)
    if all(isinstance(sample, np.ndarray) for sample in samples):
        return np.stack(samples)
    tensors = (s if isinstance(s, Tensor) else images_to_tensor(s, sample_shape) for s in samples)
    return torch.cat(list(tensors)).numpy()


def _read_rows(
    rows: Sequence[Row], start: int, sample_shape: tuple[int, ...], resize: bool, padding: int = 0
) -> tuple[int, list[Any], np.ndarray, list[Unreadable]]:
    """The parts of a `Batch` of `rows`, whose first is number `start`, with its samples as `_stacked` makes them."""
    ids, samples, unreadable = [], [], []
    for number, (id_, picture) in enumerate(rows, start):
        try:
            samples.append(prepare_sample(picture, sample_shape, resize, padding))
            ids.append(id_)
        except ValueError as error:
            name, resizable = picture_name(picture, number, id_), isinstance(error, ResizableError)
            unreadable.append(Unreadable(number, id_, name, str(error), resizable))
    return start + len(rows), ids, _stacked(samples, sample_shape), unreadable


def _as_batch(parts: tuple[int, list[Any], np.ndarray, list[Unreadable]], sample_shape: tuple[int, ...]) -> Batch:
    """The batch of these parts; its pixels are converted all at once, which is much faster."""
    stop, ids, array, unreadable = parts
    x = images_to_tensor(array, sample_shape) if array.dtype == np.uint8 else torch.from_numpy(array)
    return Batch(stop, ids, x, unreadable)


def prepare_rows(
    rows: Sequence[Row], start: int, sample_shape: tuple[int, ...], resize: bool, padding: int = 0
) -> Batch:
    """The batch of `rows`, whose first is number `start`."""
    return _as_batch(_read_rows(rows, start, sample_shape, resize, padding), sample_shape)


def picture_name(picture: Any, number: int, id_: Any) -> str:
    """What a picture is called in a message: its path where it has one, else the number of its row."""
    path = picture.get("path") if isinstance(picture, dict) else picture
    if isinstance(path, str) or hasattr(path, "__fspath__"):
        return str(path)
    return f"{number}" if id_ == number else f"{number} (id {id_!r})"


class _Spans(Dataset):
    """``span -> parts of a Batch``, for a `DataLoader` whose workers read and prepare.

    Arrays travel from a worker as bytes. For a tensor, its memory is asked for by a handshake with a thread of the
    worker, which waits for Python's lock while the worker is busy with the next span: 5 ms and more for each.
    """

    def __init__(self, rows: Rows, *preparation: Any) -> None:
        self.rows, self.preparation = rows, preparation

    def __getitem__(self, span: Span) -> tuple[int, list[Any], np.ndarray, list[Unreadable]]:
        return _read_rows(self.rows.read(*span), span[0], *self.preparation)


def _as_it_is(parts: Any) -> Any:
    """For a `DataLoader`, which would make tensors of arrays."""
    return parts


def prepared_batches(
    rows: Rows,
    spans: Iterable[Span],
    sample_shape: tuple[int, ...],
    resize: bool,
    num_workers: int,
    padding: int = 0,
) -> Iterator[Batch]:
    """The batches of `spans`, in their order; `num_workers` processes prepare the next ones meanwhile.

    The first one is prepared here while the workers start, and none starts for the sake of a single batch.
    """
    check_count("num_workers", num_workers, 0)
    if padding < 0 or (padding and min(sample_shape[1:], default=0) <= 2 * padding):
        raise ValueError(f"padding must be >= 0 and under half of the model's size {sample_shape}, got {padding}.")
    parts = _parts_of_spans(_Spans(rows, sample_shape, resize, padding), iter(spans), num_workers)
    return (_as_batch(batch_parts, sample_shape) for batch_parts in parts)


def _parts_of_spans(dataset: _Spans, spans: Iterator[Span], num_workers: int) -> Iterator[Any]:
    """The parts of each span's batch, in their order."""
    if (first := next(spans, None)) is None:
        return
    if (second := next(spans, None)) is None:
        yield dataset[first]
        return
    rest = chain([second], spans)
    loader = DataLoader(dataset, batch_size=None, sampler=rest, num_workers=num_workers, collate_fn=_as_it_is)
    others = iter(loader)  # starts the workers
    yield dataset[first]
    yield from others


def spans_of(start: int, stop: int, batch_size: int) -> Iterator[Span]:
    """Rows start..stop-1 in spans of `batch_size`; the last one may be shorter."""
    for first in range(start, stop, batch_size):
        yield first, min(first + batch_size, stop)
