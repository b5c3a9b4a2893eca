"""A local folder of image files as a `datasets.Dataset`: every image counts, and no file name decides anything.

| in the folder | what it is |
|---|---|
| image files only | the split "train" |
| folders such as ``cat/``, ``dog/`` | the split "train" with the column ``label``: each top-level folder is a class |
| only folders with a split's name (`SPLIT_NAMES`, any case) | one split each; the folders inside a split are classes |

Folders without images do not count. Links are followed; files and folders whose names begin with a dot are skipped.
`datasets`' own ``imagefolder`` takes splits from file names, knows extensions in all-lower or all-upper case only and
does not follow linked folders: images are lost without a message.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ebm.data.image_files import image_extensions
from hf_ebm.data.splits import split_dict, split_ranges
from hf_ebm.utils.validation import counted

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DATA_EXTENSIONS = (".parquet", ".arrow")  # files that may hold images themselves
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MOST_NAMED = 3  # files in a message


@dataclass(frozen=True)
class ImageFile:
    """An image file."""

    parts: tuple[str, ...]  # the folders below the data set's folder, and the file's name
    size: int  # in bytes


@dataclass
class FolderContent:
    """The files of a folder at any depth."""

    images: list[ImageFile] = field(default_factory=list)  # the image files, sorted by name, folder by folder
    others: list[str] = field(default_factory=list)  # files that are not images, sorted likewise
    broken: list[str] = field(default_factory=list)  # links to nothing, sorted likewise


def list_files(folder: str | Path) -> FolderContent:
    """Find the files of a folder at any depth, through links; a link back to a folder around it is not entered."""
    found, extensions, root = FolderContent(), image_extensions(), Path(folder)

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        here = Path(place).relative_to(root)
        around = {os.path.realpath(root / inner) for inner in (here, *here.parents)}
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in around
        ]
        for name in [name for name in names if not name.startswith(".")]:
            path, parts = os.path.join(place, name), (*here.parts, name)
            if os.fsencode(name).decode("utf-8", "replace") != name:
                raise ValueError(f"the name of {'/'.join(parts)!r} is not UTF-8; rename it")
            if not os.path.exists(path):
                found.broken.append("/".join(parts))
            elif os.path.isfile(path) and os.path.splitext(name)[1].lower() in extensions:
                found.images.append(ImageFile(parts, os.path.getsize(path)))
            else:
                found.others.append("/".join(parts))
    found.images.sort(key=lambda image: image.parts)
    found.others.sort()
    found.broken.sort()
    return found


def split_of_folders(images: Sequence[ImageFile]) -> dict[str, str]:
    """The split of each top-level folder; empty if these folders are classes, or there are none."""
    folders = dict.fromkeys(image.parts[0] for image in images if len(image.parts) > 1)
    if not folders or not all(name.lower() in SPLIT_NAMES for name in folders):
        return {}
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders}
    for name, split in splits.items():
        same = [other for other in splits if splits[other] == split]
        if len(same) > 1:
            raise ValueError(f"the folders {same} are all the split {split!r}; merge them, or rename all but {name!r}")
    beside = [image.parts[0] for image in images if len(image.parts) == 1]
    if beside:
        raise ValueError(
            f"{counted(len(beside), 'image file')} ({', '.join(beside[:MOST_NAMED])}) beside the folders of splits, "
            f"{list(splits)}; move each into the folder of its split"
        )
    return splits


def splits_of(content: FolderContent) -> dict[str, list[ImageFile]]:
    """The images of each split, by its name."""
    folders = split_of_folders(content.images)
    if not folders:
        return {"train": content.images}
    splits: dict[str, list[ImageFile]] = {split: [] for split in folders.values()}
    for image in content.images:
        splits[folders[image.parts[0]]].append(image)
    return splits


def check_content(content: FolderContent) -> None:
    """Raise a `ValueError` if images would be lost: links to nothing, or files of two kinds that may hold images."""
    if content.broken:
        shown = ", ".join(content.broken[:MOST_NAMED]) + (", ..." if len(content.broken) > MOST_NAMED else "")
        raise ValueError(f"it holds {counted(len(content.broken), 'broken link')} ({shown}); repair or remove them")
    data = [name for name in content.others if name.lower().endswith(DATA_EXTENSIONS)]
    data = [name for name in data if os.path.basename(name).lower() not in METADATA]
    if data:
        raise ValueError(
            f"it holds both {counted(len(content.images), 'image file')} and {counted(len(data), 'data file')} "
            f"({', '.join(data[:MOST_NAMED])}); give a folder with one of the two kinds, such as {Path(data[0]).parent}"
        )


def load_image_folder(folder: str, content: FolderContent, split: str) -> tuple[Any, str]:
    """The rows of a split, sorted by file name, and a description of what was found and loaded.

    A `datasets.Dataset` with the column ``image``, and ``label`` if every image is in a class folder. Its fingerprint
    depends on names and sizes of the files but neither on the folder's place nor on dates. `split` may be slices of
    splits as `datasets` writes them: ``"train[:90%]"``, ``"train+test"``.
    """
    import datasets

    check_content(content)
    splits = splits_of(content)
    sizes = {name: len(images) for name, images in splits.items()}
    ranges = split_ranges(split, sizes)
    chosen = [image for name, start, stop in ranges for image in splits[name][start:stop]]

    depth = 1 if split_of_folders(content.images) else 0  # of the class folders
    features = datasets.Features({"image": datasets.Image()})
    root = os.path.abspath(folder)
    columns: dict[str, list[Any]] = {"image": [os.path.join(root, *image.parts) for image in chosen]}
    if all(len(image.parts) > depth + 1 for image in content.images):
        names = sorted({image.parts[depth] for image in content.images})
        features["label"] = datasets.ClassLabel(names=names)
        numbers = {name: number for number, name in enumerate(names)}
        columns["label"] = [numbers[image.parts[depth]] for image in chosen]
    loaded = datasets.Dataset.from_dict(columns, features)
    loaded.info.splits = split_dict(sizes)
    digest = hashlib.sha256()
    for image in chosen:
        digest.update(f"{'/'.join(image.parts)}\0{image.size}\0".encode())
    loaded._fingerprint = digest.hexdigest()[:16]
    return loaded, describe(content, sizes, split, len(loaded))


def describe(content: FolderContent, sizes: dict[str, int], split: str, rows: int) -> str:
    """Describe the numbers of files found and rows loaded, and the skipped files."""
    found = counted(len(content.images), "image file")
    if len(sizes) > 1:
        found += f" ({', '.join(f'{name}: {size:,}' for name, size in sizes.items())})"
    text = f"found {found}, loaded {counted(rows, 'row')} of split {split!r}"
    kinds = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in content.others)
    if kinds:
        shown = ", ".join(f"{kind}: {number:,}" for kind, number in sorted(kinds.items()))
        text += f"; skipped {counted(len(content.others), 'file')} of other formats ({shown})"
    metadata = [name for name in content.others if os.path.basename(name).lower() in METADATA]
    if metadata:
        text += (
            f". {metadata[0]} is not read: only the image files count. To use its columns, save the data set with "
            "datasets.load_dataset('imagefolder', ...).save_to_disk(folder)"
        )
    return text
