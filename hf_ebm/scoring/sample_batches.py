"""Whatever somebody gives to score (`EnergyScoringPipeline`) as batches of samples in the models' range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from hf_ebm.counting import check_count
from hf_ebm.hub_datasets import column_images, find_image_column, has_transform, is_column, undecoded
from hf_ebm.image_inputs import images_to_tensor
from hf_ebm.pictures import PICTURE_TYPES
from hf_ebm.scoring.rows import (
    Batch,
    HubRows,
    ListRows,
    Rows,
    prepare_rows,
    prepared_batches,
    spans_of,
)


def sample_batches(
    images: Any,
    batch_size: int,
    sample_shape: tuple[int, ...],
    image_column: str | None = None,
    resize: bool = False,
    num_workers: int = 0,
    padding: int = 0,
) -> Iterator[Tensor]:
    """Whatever `EnergyScoringPipeline` takes as samples in the models' range, at most `batch_size` at a time.

    Raises:
        ValueError: If an image cannot be read or does not fit; it names the image.
    """
    if not isinstance(resize, bool):
        raise ValueError(f"resize must be True or False, got {resize!r}.")
    check_count("padding", padding, 0)
    if isinstance(images, dict) and not images.keys() <= {"bytes", "path"}:
        raise ValueError(
            f"images must be samples or a datasets.Dataset, got a {type(images).__name__} of {sorted(images)}; give "
            "one of them."
        )
    if isinstance(images, PICTURE_TYPES):
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
            column = streaming_column(images, image_column)
            if num_workers:
                raise ValueError("num_workers must be 0 for a streaming data set, which is read in its own order.")
            pictures = column_of(undecoded(images, column), column)
            batches = streamed_batches(pictures, batch_size, sample_shape, resize, padding)
            yield from _whole(batches)
            return
    elif isinstance(images, list | tuple) and any(isinstance(image, PICTURE_TYPES) for image in images):
        rows = ListRows(images)
    elif not isinstance(images, list | tuple | np.ndarray | Tensor):
        raise ValueError(
            "images must be PIL images, paths, URLs, arrays, tensors or a datasets.Dataset, got "
            f"{type(images).__name__}."
        )
    else:
        yield from images_to_tensor(images, sample_shape).split(batch_size)
        return
    spans = spans_of(0, len(rows), batch_size)
    batches = prepared_batches(rows, spans, sample_shape, resize, num_workers, padding)
    yield from _whole(batches)


def streamed_batches(
    pictures: Iterator[Any], batch_size: int, sample_shape: tuple[int, ...], resize: bool, padding: int
) -> Iterator[Batch]:
    """The batches of pictures that come one after the other and cannot be read by number."""
    start = 0
    while chunk := list(islice(pictures, batch_size)):
        yield prepare_rows(list(enumerate(chunk, start)), start, sample_shape, resize, padding)
        start += len(chunk)


def streaming_column(dataset: Any, image_column: str | None) -> str:
    """The image column of a streaming data set, whose features may be unknown before it is read.

    Raises:
        ValueError: If it is not there, or cannot be told.
    """
    if dataset.features is not None:
        return find_image_column(dataset, image_column)
    if image_column is None:
        raise ValueError("this streaming data set does not know its columns; name one with image_column=...")
    return image_column


def column_of(rows: Iterable[dict[str, Any]], column: str) -> Iterator[Any]:
    """One column of rows that are read one after the other.

    Raises:
        ValueError: If a row lacks it.
    """
    for row in rows:
        if column not in row:
            raise ValueError(f"image_column {column!r} is not in the data set; its rows have {sorted(row)}.")
        yield row[column]


def _whole(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """The samples of batches that must all be readable."""
    for batch in batches:
        if batch.unreadable:
            first = batch.unreadable[0]
            hint = "; resize=True converts and resizes pictures" if first.resizable else ""
            raise ValueError(f"image {first.name} {first.reason}{hint}")
        yield batch.x
