"""Whether two splits of one data set have rows in common, each a name, slices of it, or a sum of such.

train    train[:90%]    train[1000:]+validation
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def split_sizes(dataset: Any) -> dict[str, int]:
    """Rows of each whole split of what `load_training_data` gives; empty where they are not known."""
    info = getattr(getattr(dataset, "dataset", None), "info", None)
    return {name: split.num_examples for name, split in (getattr(info, "splits", None) or {}).items()}


def share_rows(first: str, second: str, sizes: Mapping[str, int]) -> bool:
    """Whether two splits have a row in common; of one whose size is not in `sizes`, all slices count as the whole."""
    return first == second or any(
        name == other and start < other_end and other_start < end
        for name, start, end in row_ranges(first, sizes)
        for other, other_start, other_end in row_ranges(second, sizes)
    )


def row_ranges(split: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a split as (name, first row, row after the last); of an unknown one, all slices are the whole."""
    names = [part.partition("[")[0] for part in split.split("+")]
    if split not in sizes and not all(sizes.get(name) for name in names):
        return [(name, 0, 1) for name in names]
    return split_ranges(split, sizes)


def split_ranges(split: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a split as (name, first row, row after the last)."""
    import datasets

    if split in sizes:  # whatever its name
        return [(split, 0, sizes[split])]
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return [(part.splitname, part.from_, part.to) for part in ranges]


def split_dict(sizes: Mapping[str, int]) -> Any:
    """Rows of each whole split as a `datasets.DatasetInfo` holds them."""
    import datasets

    return datasets.SplitDict(
        {name: datasets.splits.SplitInfo(name, num_examples=size) for name, size in sizes.items()}
    )
