"""Folders of image files: every image is loaded once, whatever its name, place or date."""

import os
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_ebm.data.loading import find_splits, fingerprint, load_hub_dataset, load_named, load_training_data
from hf_ebm.evaluation.bulk_scoring import ScoringSettings, load_rows
from hf_ebm.scoring.inputs import HubRows

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(root, *names):
    """Gray 8x8 images, each of its own brightness."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    return root


def rows(folder, split="train"):
    """The files of a split, in their order, relative to the folder."""
    loaded = load_hub_dataset(str(folder), split)
    hub_rows = HubRows(loaded, root=str(folder))
    return [id_ for id_, _ in hub_rows.read(0, len(hub_rows))]


NAMES = {
    "the name of a split within": [
        *(f"train_station_{n}.png" for n in range(4)),
        *(f"beach_{n}.png" for n in range(9)),
    ],
    "the name of a split": ["train.png", *(f"{n}.png" for n in range(9))],
    "another split's": [*(f"pic-test-{n}.png" for n in range(4)), *(f"pic-{n}.png" for n in range(9))],
    "extensions of any case": ["a.png", "b.PNG", "c.Png", "d.jpg", "e.JPG", "f.JpG", "g.jpeg", "h.Tiff", "i.bmp"],
    "nested": ["a.png", "inner/b.png", "inner/train/c.png", "inner/test/d.png"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_image_is_loaded_whatever_its_name(tmp_path, kind, capsys):
    folder = write(tmp_path / "m", *NAMES[kind])
    assert sorted(rows(folder)) == sorted(NAMES[kind])
    number = len(NAMES[kind])
    assert f"found {number} image files, loaded {number} rows of split 'train'" in capsys.readouterr().err
    assert len(load_training_data(str(folder), SHAPE)) == number
    settings = ScoringSettings(model="", dataset=str(folder), output=tmp_path)
    assert len(load_rows(settings)[0]) == number


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Train", "Test"), {"train": "Train", "test": "Test"}),
        (("training", "val"), {"train": "training", "validation": "val"}),
        (("TRAIN", "dev", "testing"), {"train": "TRAIN", "validation": "dev", "test": "testing"}),
        (("eval",), {"validation": "eval"}),
    ],
)
def test_top_level_folders_with_the_names_of_splits_are_splits(tmp_path, folders, splits):
    folder = write(tmp_path, *(f"{name}/{number}.png" for name in folders for number in range(3)))
    (folder / "notes").mkdir()  # a folder without images does not count
    (folder / "notes" / "a.txt").write_text("words")
    assert find_splits(str(folder)) == sorted(splits)
    for split, name in splits.items():
        assert rows(folder, split) == [f"{name}/{number}.png" for number in range(3)]
    with pytest.raises(ValueError, match=r"Unknown split \"other\""):
        rows(folder, "other")


def test_slices_and_sums_of_splits(tmp_path):
    folder = write(tmp_path, *(f"{split}/{number}.png" for split in ("train", "test") for number in range(4)))
    assert rows(folder, "train[:50%]+test[3:]") == ["train/0.png", "train/1.png", "test/3.png"]
    loaded = load_hub_dataset(str(folder), "train[1:]")
    assert {name: split.num_examples for name, split in loaded.info.splits.items()} == {"train": 4, "test": 4}


def test_other_top_level_folders_are_classes(tmp_path):
    folder = write(tmp_path, "train/0.png", "plane/0.png", "plane/inner/test/1.png", "boat/0.png")
    loaded = load_hub_dataset(str(folder), "train")
    names = loaded.features["label"].names
    assert [names[label] for label in loaded["label"]] == ["boat", "plane", "plane", "train"]
    assert find_splits(str(folder)) == ["train"]
    split = write(tmp_path / "split", "Train/cat/0.png", "Train/dog/0.png", "Test/dog/0.png")
    for name, labels in (("train", [0, 1]), ("test", [1])):  # one numbering for all splits
        loaded = load_hub_dataset(str(split), name)
        assert loaded.features["label"].names == ["cat", "dog"] and list(loaded["label"]) == labels
    write(split, "Train/2.png")  # an image without a class
    assert "label" not in load_hub_dataset(str(split), "train").features


def test_what_would_mix_or_lose_images_is_an_error(tmp_path):
    same = write(tmp_path / "same", "val/0.png", "dev/0.png")
    with pytest.raises(ValueError, match=r"\['dev', 'val'\] are all the split 'validation'; merge"):
        rows(same, "validation")
    beside = write(tmp_path / "beside", "train/0.png", "cover.png")
    with pytest.raises(ValueError, match=r"1 image file \(cover.png\) beside the folders of splits, \['train'\]"):
        rows(beside)
    both = write(tmp_path / "both", "a.png")
    (both / "data").mkdir()
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(both / "data" / "train.parquet")
    with pytest.raises(ValueError, match=r"1 image file and 1 data file \(data/train.parquet\); give a folder"):
        rows(both)
    with pytest.raises(ValueError, match=r"no configurations, got 'large'"):
        load_hub_dataset(str(same), "train", "large")


def test_links_are_followed_and_broken_ones_named(tmp_path):
    write(tmp_path / "elsewhere", "0.png", "1.png")
    folder = write(tmp_path / "m", "cat/0.png")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (folder / "cat" / "all").symlink_to(folder)  # a cycle
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "cat")  # and another one through both
    found = rows(folder)
    assert {"cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"} <= set(found) and len(found) < 20
    (folder / "dog" / "2.png").symlink_to(tmp_path / "no-such-file.png")
    with pytest.raises(ValueError, match=r"it holds \d+ broken links? \(.*dog/2\.png.*repair or remove"):
        rows(folder)


def test_other_files_are_counted_and_hidden_ones_are_not(tmp_path, capsys):
    folder = write(tmp_path, "a.png", ".hidden.png", ".cache/b.png")
    (folder / "a.heic").write_bytes(b"")
    (folder / "labels.csv").write_text("file,label\na.png,1\n")
    assert rows(folder) == ["a.png"]
    assert (
        "found 1 image file, loaded 1 row of split 'train'; skipped 2 files of other formats (.csv: 1, .heic: 1)\n"
        in (capsys.readouterr().err)
    )
    (folder / "metadata.csv").write_text("file_name,label\nb.png,1\n")
    assert rows(folder) == ["a.png"] and "metadata.csv is not read" in capsys.readouterr().err


def test_fingerprints_depend_on_the_images_and_neither_on_their_place_nor_on_dates(tmp_path):
    def both(folder):
        rows_of_run, of_run = load_rows(ScoringSettings(model="", dataset=str(folder), output=tmp_path / "out"))
        assert len(rows_of_run) == len(load_training_data(str(folder), SHAPE))
        return fingerprint(load_training_data(str(folder), SHAPE)), of_run

    folder = write(tmp_path / "a", "x.png", "y.png", "train_0.png")
    expected = both(folder)
    shutil.copytree(folder, tmp_path / "b" / "copy")
    for file in (tmp_path / "b" / "copy").iterdir():
        os.utime(file, (0, 0))
    assert both(tmp_path / "b" / "copy") == expected
    (tmp_path / "link").symlink_to(folder)
    assert both(tmp_path / "link") == expected
    (folder / "x.png").rename(folder / "w.png")
    renamed = both(folder)
    assert renamed[1] != expected[1]  # the ids of the scored rows are other ones
    write(folder, "w.png", "y.png", "z.png")
    assert both(folder)[0] != renamed[0] and both(folder)[1] != renamed[1]


@pytest.mark.parametrize("name", ["[brackets] x", "x::y", "a*b", "q?z"])
@pytest.mark.parametrize("kind", ["images", "parquet", "saved"])
def test_folders_with_glob_characters_in_their_names(tmp_path, name, kind):
    folder = tmp_path / name / "inner"
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image()})
    stored = datasets.Dataset.from_dict({"image": [PIL.Image.new("L", (8, 8))] * 3}, features=features)
    if kind == "images":
        write(folder, "0.png", "1.png", "2.png")
    elif kind == "parquet":
        stored.to_parquet(tmp_path / "p")
        (tmp_path / "p").rename(folder / "train-00000.parquet")
    else:
        datasets.DatasetDict({"train": stored}).save_to_disk(tmp_path / "s")
        for file in (tmp_path / "s").iterdir():
            file.rename(folder / file.name)
    images, source = load_named(str(folder), SHAPE, "test")  # the only split is found, too
    assert len(images) == 3 and source["split"] == "train" and source["only_split"]
    assert images[0][0].shape == SHAPE
    if kind == "parquet":  # changed files are read again
        stored.select([0]).to_parquet(tmp_path / "p")
        (tmp_path / "p").rename(folder / "train-00000.parquet")
        assert len(load_training_data(str(folder), SHAPE)) == 1


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
def test_sets_that_were_saved_with_a_format_are_read(tmp_path, kind):
    image = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    features = datasets.Features({"image": datasets.Image(), "row": datasets.Value("int64")})
    stored = datasets.Dataset.from_dict({"image": [image] * 3, "row": [5, 6, 7]}, features=features)
    stored.with_format(kind, columns=["row"]).save_to_disk(tmp_path / "d")
    (x,) = load_training_data(str(tmp_path / "d"), SHAPE)[2]
    assert np.array_equal(((x + 1) * 127.5).round().numpy()[0], np.asarray(image))
    read = HubRows(load_hub_dataset(str(tmp_path / "d"), "train"), id_column="row")
    assert [id_ for id_, _ in read.read(0, 3)] == [5, 6, 7]


def test_a_set_saved_without_splits_is_the_split_train_and_no_other(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    stored = datasets.Dataset.from_dict({"image": [PIL.Image.new("L", (8, 8))] * 4}, features=features)
    stored.save_to_disk(tmp_path / "d")
    assert len(load_training_data(str(tmp_path / "d"), SHAPE, split="train[:50%]")) == 2
    with pytest.raises(ValueError, match="Unknown split"):
        load_training_data(str(tmp_path / "d"), SHAPE, split="test")
    assert load_named(str(tmp_path / "d"), SHAPE, "test")[1]["only_split"]


def test_an_empty_name_is_refused():
    for name in ("", " "):
        with pytest.raises(ValueError, match="dataset must be the name of a data set or a folder, got"):
            load_training_data(name, SHAPE)
