"""Inputs of scoring: images, arrays, tensors, folders and data sets as batches in the model's range.

Images are prepared by the pipeline's `hf_ebm.data.image_processor.EBMImageProcessor`, whose table says what is
accepted: PIL images, paths and URLs, arrays, and tensors in [0, 1]. Vector data are float arrays or tensors of any
range, shape (B, D). A `datasets` column is ``dataset["image"]``. Masks have diffusers' convention, 1 (white) = to be
filled in (`mask_to_tensor`).

Rows of a data set (`HubRows`, `ListRows`) are read and prepared in spans, by worker processes where
wanted. An image that cannot be read or does not fit does not stop its batch: it is listed in
`Batch.unreadable`, and the caller decides. `sample_batches` takes everything that
`EnergyScoringPipeline` takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_ebm.data.image_files import IMAGE_TYPES, open_image
from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import column_images, find_image_column, has_transform, is_column, undecoded
from hf_ebm.utils.validation import check_count, counted


def images_to_tensor(
    images: Any, sample_shape: tuple[int, ...], image_processor: EBMImageProcessor | None = None
) -> Tensor:
    """Images (or vectors) as a float32 tensor in the models' own range, (B, C, H, W) in [-1, 1] or (B, D).

    Args:
        images: PIL image, array, tensor, a list of these, or a `datasets` column; see the module.
        sample_shape: Shape of the model's samples, (C, H, W) or (D,).
        image_processor: For models of images; None = one of their size without padding.

    Raises:
        ValueError: If a shape, type or range does not fit; it names what to change.
    """
    if is_column(images):
        images = column_images(images)
    if isinstance(images, PIL.Image.Image):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        if isinstance(images, tuple) and len(images) == 2 and _are_labels(images[1], images[0]):
            raise ValueError("images must be images only, got a pair of images and labels; pass its first part.")
        parts = [_one_kind(image, sample_shape, image_processor) for image in images]
    else:
        parts = [_one_kind(images, sample_shape, image_processor)]
    if not sum(len(part) for part in parts):
        raise ValueError("images is empty; give at least one image.")
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _are_labels(labels: Any, images: Any) -> bool:
    """Whether these are whole numbers, one for each image of a batch."""
    if not (isinstance(labels, Tensor | np.ndarray) and isinstance(images, Tensor | np.ndarray)):
        return False
    whole = not torch.as_tensor(labels).is_floating_point()
    return whole and images.ndim > 1 and labels.shape == images.shape[:1]


def _one_kind(images: Any, sample_shape: tuple[int, ...], image_processor: EBMImageProcessor | None) -> Tensor:
    """One image or one batch of one kind as a (B, ...) tensor in the models' range."""
    if not isinstance(images, PIL.Image.Image | np.ndarray | Tensor):
        raise ValueError(f"images must be PIL images, numpy arrays or torch tensors, got {type(images).__name__}.")
    if len(sample_shape) == 3:
        processor = image_processor or EBMImageProcessor(sample_shape[-1], sample_shape[0])
        try:
            return processor.prepare(images)
        except ValueError as error:
            if not isinstance(images, PIL.Image.Image):
                raise
            raise ValueError(f"images: a PIL image {error}") from error
    if isinstance(images, PIL.Image.Image):
        raise ValueError(f"images must be vectors of shape (B, {sample_shape[0]}) for this model, got a PIL image.")
    return _vectors(images, sample_shape[0])


def _vectors(values: np.ndarray | Tensor, dim: int) -> Tensor:
    """Vector data as a float32 tensor, shape (B, D)."""
    x = torch.as_tensor(np.asarray(values, dtype=np.float32) if isinstance(values, np.ndarray) else values)
    if not x.is_floating_point():
        raise ValueError(f"images (vector data) must be floats, got dtype {x.dtype}; use .float().")
    if x.ndim not in (1, 2) or x.shape[-1] != dim:
        raise ValueError(f"images must have shape (B, {dim}) for this model of vectors, got {tuple(x.shape)}.")
    if not torch.isfinite(x).all():
        raise ValueError("images (vector data) must be finite, got NaN or infinite values.")
    return x.detach().float().reshape(-1, dim)


def upright(image: PIL.Image.Image, argument: str) -> PIL.Image.Image:
    """A PIL image decoded and turned by its EXIF orientation, as `hf_ebm.data.image_files.open_image` opens files."""
    try:
        return open_image(image)
    except ValueError as error:
        raise ValueError(f"{argument}: a PIL image {error}.") from error


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


Row = tuple[Any, Any]  # (id, image)
Span = tuple[int, int]  # rows start..stop-1


@dataclass(frozen=True)
class Unreadable:
    """A row without a score: its number, its id, its name in messages, and the reason."""

    row: int
    id: Any
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The rows of a span."""

    stop: int  # end of the span
    ids: list[Any]  # of the rows in `x`
    x: Tensor  # samples in the models' range, shape (len(ids), ...)
    unreadable: list[Unreadable]  # the rows that are not in `x`


class Rows(Protocol):
    """A data set whose rows are read by number."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        ...


class ListRows:
    """Rows of a list of images, with their indices as ids."""

    def __init__(self, sources: Sequence[Any] | Tensor) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        return list(enumerate(self.sources[start:stop], start))


class HubRows:
    """Rows of a `datasets.Dataset`, undecoded.

    Ids are those of `id_column`, whole numbers or strings, or else the paths of an image folder, relative to `root`
    if there is one, or else the row numbers.
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
        self.dataset = undecoded(dataset.select_columns(list(columns)), self.column)
        self.files = id_column is None and len(dataset) > 0 and self._path(self.dataset[0][self.column]) is not None

    def _path(self, source: Any) -> str | None:
        """The file of a row that is one: in an image folder, not in a parquet file that holds the bytes."""
        if not isinstance(source, dict) or source.get("bytes") or not source["path"]:
            return None
        return os.path.relpath(source["path"], self.root) if self.root else source["path"]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1."""
        part = self.dataset[start:stop]
        sources = part[self.column]
        ids: Iterable[Any] = range(start, stop)
        if self.id_column is not None:
            ids = part[self.id_column]
        elif self.files:
            ids = [self._path(source) for source in sources]
        return list(zip(ids, sources, strict=True))


def prepare_sample(source: Any, sample_shape: tuple[int, ...], image_processor: EBMImageProcessor | None) -> Tensor:
    """One source, array or tensor in the models' range, shape (1, ...)."""
    try:
        if not isinstance(source, np.ndarray | Tensor) and len(sample_shape) == 3:
            return (image_processor or EBMImageProcessor(sample_shape[-1], sample_shape[0])).prepare(source)
        if not isinstance(source, np.ndarray | Tensor):
            source = open_image(source)
        x = images_to_tensor(source, sample_shape, image_processor)
        if len(x) != 1:
            raise ValueError(f"a row holds one image, got {len(x)}")
        return x
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(reason if reason.startswith("cannot be read") else f"does not fit ({reason})") from error


def prepare_rows(
    rows: Sequence[Row], start: int, sample_shape: tuple[int, ...], image_processor: EBMImageProcessor | None
) -> Batch:
    """The batch of `rows`, whose first is number `start`."""
    ids, samples, unreadable = [], [], []
    for number, (id_, source) in enumerate(rows, start):
        try:
            samples.append(prepare_sample(source, sample_shape, image_processor))
            ids.append(id_)
        except ValueError as error:
            unreadable.append(Unreadable(number, id_, image_name(source, number, id_), str(error)))
    x = torch.cat(samples) if samples else torch.empty(0, *sample_shape)
    return Batch(start + len(rows), ids, x, unreadable)


def image_name(source: Any, number: int, id_: Any) -> str:
    """The name of an image in messages: its path if it has one, else its row number."""
    path = source.get("path") if isinstance(source, dict) else source
    if isinstance(path, str) or hasattr(path, "__fspath__"):
        return str(path)
    return f"{number}" if id_ == number else f"{number} (id {id_!r})"


class _Spans(Dataset):
    """``span -> Batch``, for a `DataLoader` whose workers read and prepare."""

    def __init__(self, rows: Rows, *preparation: Any) -> None:
        self.rows, self.preparation = rows, preparation

    def __getitem__(self, span: Span) -> Batch:
        return prepare_rows(self.rows.read(*span), span[0], *self.preparation)


def prepared_batches(
    rows: Rows,
    spans: Iterable[Span],
    sample_shape: tuple[int, ...],
    image_processor: EBMImageProcessor | None,
    num_workers: int,
) -> Iterator[Batch]:
    """The batches of `spans`, in their order; `num_workers` processes prepare them, or none for a single batch."""
    check_count("num_workers", num_workers, 0)
    spans = list(spans)
    workers = num_workers if len(spans) > 1 else 0
    dataset = _Spans(rows, sample_shape, image_processor)
    return iter(DataLoader(dataset, batch_size=None, sampler=spans, num_workers=workers))


def spans_of(start: int, stop: int, batch_size: int) -> Iterator[Span]:
    """Rows start..stop-1 in spans of `batch_size`; the last one may be shorter."""
    for first in range(start, stop, batch_size):
        yield first, min(first + batch_size, stop)


def sample_batches(
    images: Any,
    batch_size: int,
    sample_shape: tuple[int, ...],
    image_processor: EBMImageProcessor | None = None,
    image_column: str | None = None,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Whatever `EnergyScoringPipeline` takes as samples in the models' range, at most `batch_size` at a time.

    Raises:
        ValueError: If an image cannot be read or does not fit; it names the image.
    """
    if isinstance(images, dict) and not images.keys() <= {"bytes", "path"}:
        raise ValueError(
            f"images must be samples or a datasets.Dataset, got a {type(images).__name__} of {sorted(images)}; give "
            "one of them."
        )
    if isinstance(images, IMAGE_TYPES):
        images = [images]
    if is_column(images):  # read batch by batch, as a data set is
        if hasattr(images.source, "column_names") and not has_transform(images.source):
            images, image_column = images.source, images.column_name
        else:
            images = column_images(images)
    if hasattr(images, "column_names") and hasattr(images, "features"):
        if hasattr(images, "__len__"):
            rows: Rows = HubRows(images, image_column)
        else:
            if num_workers:
                raise ValueError("num_workers must be 0 for a streaming data set, which is read in its own order.")
            yield from _whole(streamed_batches(images, image_column, batch_size, sample_shape, image_processor))
            return
    elif isinstance(images, list | tuple) and any(isinstance(image, IMAGE_TYPES) for image in images):
        rows = ListRows(images)
    elif not isinstance(images, list | tuple | np.ndarray | Tensor):
        raise ValueError(
            "images must be PIL images, paths, URLs, arrays, tensors or a datasets.Dataset, got "
            f"{type(images).__name__}."
        )
    else:
        yield from images_to_tensor(images, sample_shape, image_processor).split(batch_size)
        return
    spans = spans_of(0, len(rows), batch_size)
    batches = prepared_batches(rows, spans, sample_shape, image_processor, num_workers)
    yield from _whole(batches)


def streamed_batches(
    dataset: Any,
    image_column: str | None,
    batch_size: int,
    sample_shape: tuple[int, ...],
    image_processor: EBMImageProcessor | None,
) -> Iterator[Batch]:
    """Batches of a streaming data set, whose features may be unknown before it is read."""
    if dataset.features is None and image_column is None:
        raise ValueError("this streaming data set does not know its columns; name one with image_column=...")
    column: Any = image_column if dataset.features is None else find_image_column(dataset, image_column)
    rows = enumerate(undecoded(dataset, column))
    while chunk := list(islice(rows, batch_size)):
        for _, row in chunk:
            if column not in row:
                raise ValueError(f"image_column {column!r} is not in the data set; its rows have {sorted(row)}.")
        images = [(number, row[column]) for number, row in chunk]
        yield prepare_rows(images, chunk[0][0], sample_shape, image_processor)


def _whole(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """The samples of batches that must all be readable."""
    for batch in batches:
        if batch.unreadable:
            first = batch.unreadable[0]
            raise ValueError(f"image {first.name} {first.reason}")
        yield batch.x
