"""A `datasets.Dataset` of images: which split is loaded from where, its column of images, and rows left undecoded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from hf_ebm.near_names import did_you_mean
from hf_ebm.toy_data import TOY_NAMES

logger = logging.getLogger(__name__)
FEW_ROWS = 10  # so few may be in order by chance
EMBEDDED_NAMES = ("digits", *TOY_NAMES)  # which need no `datasets`: see `hf_ebm.data`


def load_hub_dataset(name: str, split: str, config_name: str | None = None, revision: str | None = None) -> Any:
    """A split of a Hub data set, a local folder of parquet files, an image folder, or a `save_to_disk` folder."""
    import datasets

    path, empty = Path(name), f"dataset {name!r} (split {split!r}) is empty; choose another split or folder."
    if path.is_dir() and any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        try:
            loaded = datasets.load_from_disk(name)
        except IndexError as error:  # datasets 5 finds no table to put together in an empty one
            raise ValueError(empty) from error
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"split {split!r} is not in {name}; it has {sorted(loaded)}.")
            loaded = loaded[split]
    else:
        if path.is_file():
            raise ValueError(f"dataset {name!r} is a file; give a folder of parquet or image files, or a Hub id.")
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
            raise ValueError(f"dataset {name!r} is no folder here, and a path can be no Hub id; check the path.")
        near = did_you_mean(name, EMBEDDED_NAMES, "")
        if not path.exists() and (near or ("/" in name and path.parent.is_dir())):
            logger.warning("%r is no folder here; the Hub is asked for it%s", name, f"; {near}" if near else ".")
        try:
            loaded = datasets.load_dataset(name, config_name, split=split, revision=revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = f"{error} ({error.__cause__})" if str(error.__cause__ or "") else str(error).rstrip(".")
            if "corresponds to no data" in reason:
                raise ValueError(empty) from error
            reason = reason.replace(" (LocalEntryNotFoundError)", " (is there a network?)")  # the client's own class
            meant = near or f"embedded are {EMBEDDED_NAMES}."
            if "@" in name:
                meant = "name its split apart (training: dataset_split=...), not after an @."
            what = "cannot be loaded" if path.exists() else "is no folder here, and cannot be loaded from the Hub"
            raise ValueError(
                f"dataset {name!r} (split {split!r}) {what}: {reason}. Give a Hub id, or a folder of parquet or image "
                f"files; {meant}"
            ) from error
    if len(loaded) == 0:
        raise ValueError(empty)
    if "[" in split and (column := column_in_order(loaded)) is not None:
        logger.warning(
            "The rows %r of %s are in the order of their column %r: such a slice holds few or none of some classes, or "
            "what it leaves out does. To hold out some at random: load_dataset(...).train_test_split(0.1, seed=0)"
            ".save_to_disk(folder), and its splits train and test.",
            split,
            name,
            column,
        )
    return loaded


def column_in_order(dataset: Any) -> str | None:
    """The column of class labels that a `datasets.Dataset`'s rows are sorted by; None: there is none, or few rows."""
    from datasets import ClassLabel

    for column, feature in dataset.features.items():
        if isinstance(feature, ClassLabel) and feature.num_classes > 1 and len(dataset) >= FEW_ROWS:
            labels = np.asarray(dataset[column])
            if (labels[1:] >= labels[:-1]).all():
                return column
    return None


def find_image_column(dataset: Any, column: str | None) -> str:
    """The image column of a `datasets.Dataset`: the named one, or the only one of type Image."""
    from datasets import Image

    if column is not None:
        if column not in dataset.column_names:
            raise ValueError(
                f"image_column {column!r} is not in the data set; it has {dataset.column_names}. A data set with one "
                "column of images, as a folder of image files, needs no image_column: where a config sets one, "
                "image_column=null."
            )
        return column
    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if not found:
        raise ValueError(
            f"the data set has no column of type Image among {dataset.column_names}; give a folder of image files, or "
            "cast the column of pictures: dataset.cast_column(name, datasets.Image())."
        )
    if len(found) > 1:
        raise ValueError(
            f"the data set has {len(found)} image columns, {found}; name one: image_column=..., for a command "
            "--image-column."
        )
    return found[0]


def undecoded(dataset: Any, column: str) -> Any:
    """A `datasets.Dataset` or `IterableDataset` whose images stay bytes and paths, for `hf_ebm.pictures.open_picture`.

    Whoever reads a row then meets a corrupt image by itself, and opens it by our rules. A data set with a format or a
    transform of its own is left as it is.
    """
    from datasets import Image

    formatted = (getattr(dataset, "format", None) or {}).get("type") is not None
    if formatted or not isinstance((dataset.features or {}).get(column), Image):
        return dataset
    return dataset.cast_column(column, Image(decode=False))
