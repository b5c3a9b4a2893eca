"""A `datasets.Dataset` of images: which split is loaded from where, its column of images, and rows left undecoded."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hf_ebm.image_folder import list_files, load_image_folder, splits_of
from hf_ebm.near_names import did_you_mean
from hf_ebm.pictures import open_picture
from hf_ebm.split_overlap import split_dict, split_ranges
from hf_ebm.toy_data import TOY_NAMES
from hf_ebm.user_paths import expand_home

logger = logging.getLogger(__name__)
FEW_ROWS = 10  # so few may be in order by chance
EMBEDDED_NAMES = ("digits", *TOY_NAMES)  # which need no `datasets`: see `hf_ebm.data`
EMBEDDED_HINT = f"embedded are {EMBEDDED_NAMES}."


def load_hub_dataset(name: str, split: str, config_name: str | None = None, revision: str | None = None) -> Any:
    """A split of a Hub data set, or of a local folder: image files, parquet files, or what `save_to_disk` wrote.

    The numbers of image files found and rows loaded of an image folder (`hf_ebm.image_folder`) are printed to stderr.

    Raises:
        ValueError: If the data set or its split is missing, empty, or cannot be read.
    """
    if not name.strip():
        raise ValueError(f"dataset must be the name of a data set or a folder, got {name!r}; {EMBEDDED_HINT}")
    name = expand_home(name)
    loaded = load_folder(name, split, config_name) if Path(name).is_dir() else None
    if loaded is None:
        loaded = load_with_datasets(name, split, config_name, revision)
    if len(loaded) == 0:
        raise ValueError(empty(name, split))
    if "[" in split and (column := column_in_order(loaded)) is not None:
        logger.warning(
            "The rows %r of %s are in the order of their column %r: such a slice holds few or none of some classes, or "
            "what it leaves out does. To hold out some at random: hf_ebm.hub_datasets.load_hub_dataset(folder, 'train')"
            ".train_test_split(0.1, seed=0).save_to_disk(another), and its splits train and test.",
            split,
            name,
            column,
        )
    return loaded


def empty(name: str, split: str) -> str:
    """The message of a data set without rows."""
    return f"dataset {name!r} (split {split!r}) is empty; choose another split or folder."


def cannot_load(name: str, split: str, reason: object) -> str:
    """The message of a folder that cannot be loaded."""
    return f"dataset {name!r} (split {split!r}) cannot be loaded: {str(reason).rstrip('.')}."


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any(Path(folder, marker).is_file() for marker in ("state.json", "dataset_dict.json"))


def load_folder(name: str, split: str, config_name: str | None) -> Any:
    """A split of a folder of image files, or of one that `save_to_disk` wrote; None for any other folder.

    Raises:
        ValueError: If it cannot be read, or has no such split.
    """
    if is_saved(name):
        return load_saved(name, split)
    try:
        content = list_files(name)
        if not content.images:
            return None
        if config_name is not None:
            raise ValueError(f"a folder of image files has no configurations, got {config_name!r}")
        loaded, found = load_image_folder(name, content, split)
    except (OSError, ValueError) as error:
        raise ValueError(cannot_load(name, split, error)) from error
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{name}: {found}", file=sys.stderr)
    return loaded


def load_saved(name: str, split: str) -> Any:
    """A split of what `save_to_disk` wrote, or slices of its splits, without the format that it was saved with.

    A data set that was saved without splits is the split "train".
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(plain_path(name))
    except IndexError as error:  # datasets 5 finds no table to put together in an empty one
        raise ValueError(empty(name, split)) from error
    except OSError as error:
        raise ValueError(cannot_load(name, split, error)) from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    try:
        ranges = split_ranges(split, {name: len(rows) for name, rows in splits.items()})
    except ValueError as error:
        raise ValueError(cannot_load(name, split, error)) from error
    parts = [splits[part].with_format(None).select(range(start, stop)) for part, start, stop in ranges]
    rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    rows.info.splits = split_dict({name: len(rows) for name, rows in splits.items()})
    return rows


def load_with_datasets(name: str, split: str, config_name: str | None, revision: str | None) -> Any:
    """A split that `datasets.load_dataset` loads: of the Hub, or of a folder of parquet files."""
    import datasets

    path = Path(name)
    if path.is_file():
        raise ValueError(f"dataset {name!r} is a file; give a folder of parquet or image files, or a Hub id.")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
        raise ValueError(f"dataset {name!r} is no folder here, and a path can be no Hub id; check the path.")
    near = did_you_mean(name, EMBEDDED_NAMES, "")
    if not path.exists() and (near or ("/" in name and path.parent.is_dir())):
        logger.warning("%r is no folder here; the Hub is asked for it%s", name, f"; {near}" if near else ".")
    try:
        source = plain_path(name) if path.is_dir() else name
        return datasets.load_dataset(source, config_name, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = f"{error} ({error.__cause__})" if str(error.__cause__ or "") else str(error).rstrip(".")
        if "corresponds to no data" in reason:
            raise ValueError(empty(name, split)) from error
        reason = reason.replace(" (LocalEntryNotFoundError)", " (is there a network?)")  # the client's own class
        meant = near or EMBEDDED_HINT
        if "@" in name:
            meant = "name its split apart (training: dataset_split=...), not after an @."
        what = "cannot be loaded" if path.exists() else "is no folder here, and cannot be loaded from the Hub"
        raise ValueError(
            f"dataset {name!r} (split {split!r}) {what}: {reason}. Give a Hub id, or a folder of parquet or image "
            f"files; {meant}"
        ) from error


def plain_path(folder: str) -> str:
    """`folder`, or a folder of links to its files if `datasets` would read its path as a pattern or a protocol.

    The links lie in `datasets`' cache, in a folder named by a hash of the files' paths, sizes and dates, which are what
    `datasets` recognises changed files by.

    Raises:
        OSError: If a file cannot be read, or the system allows no links.
    """
    import datasets

    root = os.path.abspath(folder)
    if "::" not in root and not any(character in root for character in "*?["):
        return folder
    content = list_files(root)
    files = [*("/".join(image.parts) for image in content.images), *content.others]
    digest = hashlib.sha256(root.encode())
    for name in files:
        status = os.stat(os.path.join(root, name))
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    links = Path(datasets.config.HF_DATASETS_CACHE) / "hf_ebm_links" / digest.hexdigest()[:16]
    for name in files:
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (links / name).symlink_to(os.path.join(root, name))
    return str(links)


def find_splits(name: str, config_name: str | None = None) -> list[str]:
    """The splits of a Hub data set or a local folder; empty if they are not known."""
    import datasets

    name = expand_home(name)
    try:
        if is_saved(name):
            loaded = datasets.load_from_disk(plain_path(name))
            return sorted(loaded) if isinstance(loaded, datasets.DatasetDict) else ["train"]
        if Path(name).is_dir():
            if (content := list_files(name)).images:
                return sorted(splits_of(content))
            name = plain_path(name)
        return datasets.get_dataset_split_names(name, config_name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return []


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

    Whoever reads a row then gets the reason why one image is corrupt, and opens it by our rules. A format that makes
    arrays or tensors of images ("torch", "numpy", ...) is left out; a transform of the caller's own stays.
    """
    from datasets import Image

    if has_transform(dataset) or not isinstance((dataset.features or {}).get(column), Image):
        return dataset
    return dataset.with_format(None).cast_column(column, Image(decode=False))


def has_transform(dataset: Any) -> bool:
    """Whether the rows of a `datasets.Dataset` pass through a function of the caller's own (`set_transform`)."""
    return (getattr(dataset, "format", None) or {}).get("type") == "custom"


def is_column(images: Any) -> bool:
    """Whether `images` is one column of a `datasets.Dataset`, ``dataset["image"]``, or of a streaming one."""
    return hasattr(images, "column_name") and hasattr(images, "source")


def column_images(column: Any) -> list[Any]:
    """The values of a `datasets` column (`is_column`), images as PIL images.

    Raises:
        ValueError: If an image cannot be read.
    """
    from datasets import Image

    source, name = column.source, column.column_name
    if has_transform(source) or not isinstance((getattr(source, "features", None) or {}).get(name), Image):
        return list(column)
    images = []
    for number, row in enumerate(undecoded(source, name).select_columns([name])):
        try:
            images.append(open_picture(row[name]))
        except ValueError as error:
            raise ValueError(f"image {number} of column {name!r} {error}") from error
    return images
