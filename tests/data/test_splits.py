"""Splits that share rows, compared with their sets of rows."""

import itertools

import datasets

from hf_ebm.data.splits import row_ranges, share_rows

SIZES = {"train": 40, "test": 10}
SPLITS = ("train", "test", "train[:50%]", "train[50%:]", "train[-5:]", "test+train[:1]", "train[10:20]+test[:2]")


def test_splits_share_rows_as_what_datasets_gives_for_them(tmp_path):
    for name, size in SIZES.items():
        datasets.Dataset.from_dict({"row": [f"{name}{row}" for row in range(size)]}).to_csv(tmp_path / f"{name}.csv")
    files = {name: str(tmp_path / f"{name}.csv") for name in SIZES}
    found = datasets.load_dataset("csv", data_files=files, split=list(SPLITS), cache_dir=str(tmp_path / "cache"))
    rows = {split: set(loaded["row"]) for split, loaded in zip(SPLITS, found, strict=True)}
    for first, second in itertools.product(SPLITS, SPLITS):
        assert share_rows(first, second, SIZES) is bool(rows[first] & rows[second]), (first, second)


def test_where_sizes_are_not_known_a_slice_counts_as_the_whole():
    assert share_rows("train[:10]", "test+train[20:]", {}) and not share_rows("train", "test[:5]", {})
    assert row_ranges("train[:10]", {}) == [("train", 0, 1)]
    assert not share_rows("a-b", "a-c", {"a-b": 3, "a-c": 3}) and share_rows("a.b[:2]", "a.b", {})
