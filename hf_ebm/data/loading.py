"""Data sets as samples for a model: Hub data sets, local folders and the embedded sets.

Samples are tensors, images in [-1, 1], shape (C, H, W). The embedded sets need no network: ``digits`` (the 8x8 gray
digits of scikit-learn, with a fixed split) and the 2-D sets ``25gaussians``, ``pinwheel``, ``swissroll``, which are
sampled with a seed.

A data set is named as ``name[:config][@split]``, such as ``user/set:large@validation`` or ``folder/of/images@test``. A
command has a default split. A set that lacks it and has exactly one split is used whole, and its source reports it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_files import is_gray, open_image
from hf_ebm.data.image_folder import list_files, load_image_folder, splits_of
from hf_ebm.data.image_processor import EBMImageProcessor, to_model_range
from hf_ebm.data.pseudo_labels import assign_labels, class_frequencies, fit_centres
from hf_ebm.data.splits import split_dict, split_ranges
from hf_ebm.data.toy import TOY_NAMES, sample_toy
from hf_ebm.hub.model_card import public_name
from hf_ebm.utils.files import expand_home, hash_image_bytes, hash_tensors
from hf_ebm.utils.validation import did_you_mean

logger = logging.getLogger(__name__)
EMBEDDED_NAMES = ("digits", *TOY_NAMES)  # which need no `datasets`: see `hf_ebm.data.loading`
EMBEDDED_HINT = f"embedded are {EMBEDDED_NAMES}."


def load_hub_dataset(name: str, split: str, config_name: str | None = None, revision: str | None = None) -> Any:
    """A split of a Hub data set, or of a local folder: image files, parquet files, or what `save_to_disk` wrote.

    For an image folder, the numbers of image files found and rows loaded are printed to stderr.

    Raises:
        ValueError: If the data set or its split is missing, empty, or cannot be read.
    """
    import datasets

    if not name.strip():
        raise ValueError(f"dataset must be the name of a data set or a folder, got {name!r}; {EMBEDDED_HINT}")
    name = expand_home(name)
    if Path(name).is_file():
        raise ValueError(f"dataset {name!r} is a file; give a folder of parquet or image files, or a Hub id.")
    shown, is_folder = f"dataset {name!r} (split {split!r})", Path(name).is_dir()
    empty = f"{shown} is empty; choose another split or folder."
    try:
        loaded = load_folder(name, split, config_name) if is_folder else None
        if loaded is None:
            source = plain_path(name) if is_folder else name
            loaded = datasets.load_dataset(source, config_name, split=split, revision=revision)
    except (OSError, ValueError, IndexError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = f"{error} ({error.__cause__})" if str(error.__cause__ or "") else str(error)
        # datasets 5 finds no table to put together in an empty set
        if isinstance(error, IndexError) or "corresponds to no data" in reason:
            raise ValueError(empty) from error
        near = did_you_mean(name.partition("@")[0], EMBEDDED_NAMES, EMBEDDED_HINT)
        raise ValueError(
            f"{shown} cannot be loaded: {reason.rstrip('.')}. Give a Hub id, or a folder of parquet or image files; "
            f"{near}"
        ) from error
    if len(loaded) == 0:
        raise ValueError(empty)
    return loaded


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any(Path(folder, marker).is_file() for marker in ("state.json", "dataset_dict.json"))


def load_folder(name: str, split: str, config_name: str | None) -> Any:
    """A split of a folder of image files, or of one that `save_to_disk` wrote; None for any other folder."""
    if is_saved(name):
        return load_saved(name, split)
    content = list_files(name)
    if not content.images:
        return None
    if config_name is not None:
        raise ValueError(f"a folder of image files has no configurations, got {config_name!r}")
    loaded, found = load_image_folder(name, content, split)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{name}: {found}", file=sys.stderr)
    return loaded


def load_saved(name: str, split: str) -> Any:
    """A split of what `save_to_disk` wrote, or slices of its splits, without the format that it was saved with.

    A data set that was saved without splits is the split "train".
    """
    import datasets

    loaded = datasets.load_from_disk(plain_path(name))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    ranges = split_ranges(split, {name: len(rows) for name, rows in splits.items()})
    parts = [splits[part].with_format(None).select(range(start, stop)) for part, start, stop in ranges]
    rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    rows.info.splits = split_dict({name: len(rows) for name, rows in splits.items()})
    return rows


def plain_path(folder: str) -> str:
    """`folder`, or a folder of links to its files if `datasets` would read its path as a pattern or a protocol.

    The links lie in `datasets`' cache, in a folder named by a hash of the files' paths, sizes and dates, which are what
    `datasets` recognises changed files by.
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


def find_image_column(dataset: Any, column: str | None) -> str:
    """The image column of a `datasets.Dataset`: the named one, or the only one of type Image."""
    from datasets import Image

    if column is not None:
        if column not in dataset.column_names:
            raise ValueError(
                f"image_column {column!r} is not in the data set; it has {dataset.column_names}. A data set with one "
                "column of images needs none: image_column=null."
            )
        return column
    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if len(found) != 1:
        there = found or f"none among {dataset.column_names}"
        raise ValueError(f"the data set must have one column of type Image, or image_column name one; it has {there}.")
    return found[0]


def undecoded(dataset: Any, column: str) -> Any:
    """A `datasets.Dataset` or `IterableDataset` whose images stay undecoded, as bytes or paths.

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
    """The values of a `datasets` column (`is_column`), images as PIL images."""
    from datasets import Image

    source, name = column.source, column.column_name
    if has_transform(source) or not isinstance((getattr(source, "features", None) or {}).get(name), Image):
        return list(column)
    images = []
    for number, row in enumerate(undecoded(source, name).select_columns([name])):
        try:
            images.append(open_image(row[name]))
        except ValueError as error:
            raise ValueError(f"image {number} of column {name!r} {error}") from error
    return images


MOST_CLUSTERED = 20_000  # samples from which pseudo-labels are determined
MOST_HASHED = 10_000  # images of a data set that its fingerprint reads


class HubImages(Dataset):
    """Images of a `datasets.Dataset` as float tensors in [-1, 1], shape (C, H, W), decoded when they are read.

    With `label_column` an item is an image and its label; -1 is that of an image without one (None).
    """

    def __init__(
        self, dataset: Any, column: str, image_processor: EBMImageProcessor, label_column: str | None = None
    ) -> None:
        self.dataset, self.column, self.image_processor = undecoded(dataset, column), column, image_processor
        self.label_column = label_column
        self.labels: Tensor | None = None
        if label_column is not None:
            self.labels = torch.tensor([-1 if label is None else label for label in dataset[label_column][:]])

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> PIL.Image.Image:
        """An image of the data set, unprepared."""
        return open_image(self.dataset[index][self.column])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        try:
            x = self.image_processor.prepare(self.image(index))[0]
            return (x,) if self.labels is None else (x, self.labels[index])
        except ValueError as error:
            source = self.dataset[index][self.column]
            path = source.get("path") if isinstance(source, dict) else None
            name = f"image {index} of column {self.column!r}" + (f" ({path})" if path else "")
            raise ValueError(f"{name} {error}; repair it, or remove it from the data set.") from error


def find_label_column(dataset: Any, column: str | None = None) -> str:
    """The column of class labels of a `datasets.Dataset`: the named one, or the only one of type ClassLabel."""
    from datasets import ClassLabel

    found = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if column is not None and column not in found:
        raise ValueError(
            f"label_column {column!r} must be a column of type ClassLabel; the data set has {found or 'none'} among "
            f"{dataset.column_names}. Cast it with dataset.class_encode_column({column!r})."
        )
    if column is None and len(found) != 1:
        raise ValueError(
            f"the data set must have one column of type ClassLabel, or label_column must name one; it has "
            f"{found or 'none'} among {dataset.column_names}. For data without labels set "
            "class_conditional=false, or with it pseudo_labels=20, say."
        )
    return column or found[0]


@dataclass(frozen=True)
class Classes:
    """The classes of a training set."""

    prior: list[float]  # frequency of each class, from which labels are sampled
    names: list[str] | None = None  # name of each class; None = they are clusters
    centres: list[list[float]] | None = None  # of the clusters (`pseudo_labels`); None = the classes are labels
    unlabelled: bool = False  # whether some samples have no label


def classes_of(dataset: Any) -> Classes:
    """The classes of a `load_training_data` set that was loaded with labels."""
    if isinstance(dataset, HubImages):
        names = dataset.dataset.features[dataset.label_column].names
        labels: Any = dataset.labels
        unlabelled = bool((labels < 0).any())
        return Classes(class_frequencies(labels, len(names)), list(names), unlabelled=unlabelled)
    labels = dataset.tensors[1]
    names = [str(digit) for digit in range(10)]
    return Classes(class_frequencies(labels, len(names)), names)


class PseudoLabelled(Dataset):
    """A data set whose samples are labelled with their nearest centre."""

    def __init__(self, dataset: Any, centres: list[list[float]]) -> None:
        self.dataset, self.centres = dataset, torch.tensor(centres)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.dataset[index][0]
        return x, assign_labels(x[None], self.centres)[0]


def cluster(dataset: Any, num_clusters: int, seed: int) -> tuple[PseudoLabelled, Classes]:
    """Label a data set by k-means clusters, which at most `MOST_CLUSTERED` of its samples determine."""
    rows = draw_rows(len(dataset), MOST_CLUSTERED, seed)
    samples = torch.stack([dataset[row][0] for row in rows])
    centres = fit_centres(samples, num_clusters, seed)
    prior = class_frequencies(assign_labels(samples, centres), num_clusters)
    return PseudoLabelled(dataset, centres), Classes(prior, None, centres)


def describe_change(dataset: Dataset) -> str | None:
    """A description of how the images of a `load_training_data` set are converted, judged by its first image.

    None where that has the size and the colours that the model takes.
    """
    if isinstance(dataset, PseudoLabelled):
        dataset = dataset.dataset
    if not isinstance(dataset, HubImages):
        return None
    image, processor = dataset.image(0), dataset.image_processor
    num_channels, size, _ = processor.sample_shape
    inner, gray = size - 2 * processor.padding, is_gray(image.mode)
    if image.size in ((size, size), (inner, inner)) and gray == (num_channels == 1):
        return None
    first = f"{image.width}x{image.height} {'gray' if gray else 'colour'}"
    return f"the first image is {first}; all are {processor.describe()}"


def draw_rows(number: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of `number` rows, drawn with `seed` without replacement, in ascending order."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:limit]
    return order.sort().values.tolist()


def fingerprint(dataset: Any) -> str:
    """Fingerprint of a `load_training_data` set: a hash of its content, equal on any machine.

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
    return hash_image_bytes(row[column] for row in some)[:16]


def load_training_data(
    name: str,
    sample_shape: tuple[int, ...],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    image_processor: EBMImageProcessor | None = None,
    num_samples: int = 100_000,
    seed: int = 0,
    with_labels: bool = False,
    label_column: str | None = None,
) -> Dataset:
    """Training samples as a map-style data set of tuples of tensors: images in [-1, 1], and on request their labels.

    Args:
        name: ``"digits"``, a 2-D set, a Hub id, or a local folder.
        sample_shape: What the models take, (C, H, W) or (D,).
        split: Split of the data set.
        config_name: Configuration of a Hub data set.
        revision: Revision of a Hub data set.
        image_column: Column with the images; None = the only image column.
        image_processor: Preparation of images; None = one of the models' size without padding.
        num_samples: Points drawn of a 2-D set.
        seed: Seed of that draw.
        with_labels: Whether to load labels.
        label_column: Column with the labels; None = the only one of type ClassLabel.

    Raises:
        ValueError: If the data set is missing, empty, lacks the column, or its samples do not fit `sample_shape`.
    """
    if name in EMBEDDED_NAMES:
        if name == "digits":
            samples, labels = load_digits(split)
            samples = to_model_range(samples)
        else:
            samples = sample_toy(name, num_samples, torch.Generator().manual_seed(seed))
        if tuple(samples.shape[1:]) != tuple(sample_shape):
            raise ValueError(
                f"dataset {name!r} has samples of shape {tuple(samples.shape[1:])}, but the models take "
                f"{tuple(sample_shape)}; set preset={'digits' if name == 'digits' else 'toy'}, or the models' sizes."
            )
        if with_labels and name != "digits":
            raise ValueError(f"dataset {name!r} has no labels; set pseudo_labels=20, say, or class_conditional=false.")
        return TensorDataset(samples, labels) if with_labels else TensorDataset(samples)
    if len(sample_shape) != 3:
        raise ValueError(f"dataset {name!r} holds images, but the models take vectors of shape {tuple(sample_shape)}.")
    dataset = load_hub_dataset(name, split, config_name, revision)
    column = find_image_column(dataset, image_column)
    processor = image_processor or EBMImageProcessor(sample_shape[1], sample_shape[0])
    images = HubImages(dataset, column, processor, find_label_column(dataset, label_column) if with_labels else None)
    images[0]  # a broken first image shall stop the run now, not after the networks are built
    return images


@dataclass(frozen=True)
class DatasetName:
    """A data set that somebody named."""

    name: str  # ``"digits"``, a 2-D set, a Hub id, or a folder
    config: str | None = None  # configuration of a Hub data set
    split: str | None = None  # None = the command's own

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """The parts of ``name[:config][@split]``; a path that exists is a name as it stands."""
        text = expand_home(text)
        if text and Path(text).exists():
            return cls(text)
        rest, at, split = text.rpartition("@") if "@" in text else (text, "", "")
        name, colon, config = (rest, "", "") if Path(rest).exists() else rest.partition(":")
        if not name or (at and not split) or (colon and not config):
            raise ValueError(f"a data set must be named as name[:config][@split], got {text!r}.")
        if config and name in EMBEDDED_NAMES:
            raise ValueError(f"the embedded data set {name!r} has no configurations, got {text!r}.")
        return cls(name, config or None, split or None)

    def choose_split(self, asked: str | None, default: str) -> str:
        """The name's split, or the one that an option asks for, or the `default`."""
        if self.split and asked and self.split != asked:
            raise ValueError(f"--split {asked} and the data set's name, {self.name}@{self.split}, differ; give one.")
        return self.split or asked or default

    @property
    def public(self) -> str:
        """The name in records: only the last part of a local folder."""
        config, split = f":{self.config}" if self.config else "", f"@{self.split}" if self.split else ""
        return f"{public_name(self.name)}{config}{split}"


def load_named(
    dataset: str | DatasetName,
    sample_shape: tuple[int, ...],
    default_split: str,
    image_column: str | None = None,
    image_processor: EBMImageProcessor | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """A named data set as `hf_ebm.data.loading.load_training_data` gives it, and its source.

    Args:
        dataset: ``name[:config][@split]``, or its parts.
        sample_shape: What the model takes.
        default_split: Used if the name contains none.
        image_column: Column with the images; None = the only image column.
        image_processor: The pipeline's; None = one of the model's size without padding.

    Returns:
        The data set, and ``{"dataset", "split", "fingerprint"}``, with ``"config"`` where there is one and
        ``"only_split": True`` if the default split does not exist and the only one was used.

    Raises:
        ValueError: If the data set is missing or does not fit, or lacks the split and has several others.
    """
    named = DatasetName.parse(dataset) if isinstance(dataset, str) else dataset
    split, only = named.split or default_split, False

    def load(split: str) -> Any:
        return load_training_data(
            named.name,
            sample_shape,
            split=split,
            config_name=named.config,
            image_column=image_column,
            image_processor=image_processor,
        )

    try:
        loaded = load(split)
    except ValueError as error:
        # a Hub that was not reached is not asked again
        no_more = named.split or named.name in EMBEDDED_NAMES or isinstance(error.__cause__, ConnectionError)
        splits = [] if no_more else find_splits(named.name, named.config)
        if not splits or split in splits:
            raise
        if len(splits) > 1:
            raise ValueError(
                f"data set {named.name!r} has no split {split!r}; name one of {splits} as {named.name}@{splits[0]}."
            ) from error
        split, only = splits[0], True
        loaded = load(split)
    source = {"dataset": public_name(named.name), "split": split, "fingerprint": fingerprint(loaded)}
    source |= {"config": named.config} if named.config else {}
    return loaded, source | ({"only_split": True} if only else {})
