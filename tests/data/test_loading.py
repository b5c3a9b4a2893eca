"""Data loading: embedded sets, Hugging Face folders, transforms, and invalid input."""

import os
import shutil

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import (
    classes_of,
    describe_change,
    draw_rows,
    fingerprint,
    load_training_data,
    sample_toy,
)
from hf_ebm.data.toy import TOY_NAMES


@pytest.mark.parametrize("name", TOY_NAMES)
def test_toy_sets_are_seeded_and_of_unit_scale(name):
    x = sample_toy(name, 5000, torch.Generator().manual_seed(3))
    assert x.shape == (5000, 2) and x.dtype == torch.float32
    assert torch.equal(x, sample_toy(name, 5000, torch.Generator().manual_seed(3)))
    assert not torch.equal(x, sample_toy(name, 5000, torch.Generator().manual_seed(4)))
    assert 0.5 < x.std() < 1.2 and x.abs().max() < 3


def test_25gaussians_modes():
    x = sample_toy("25gaussians", 50_000, torch.Generator().manual_seed(0))
    cell = (x * 2.828 / 2).round()
    assert len(torch.unique(cell, dim=0)) == 25 and cell.abs().max() == 2
    residual = x - cell * 2 / 2.828
    assert abs(residual.std().item() / (0.05 / 2.828) - 1) < 0.02
    counts = torch.unique(cell, dim=0, return_counts=True)[1]
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


def test_digits_splits_are_disjoint_and_complete():
    (train, train_labels), (test, test_labels) = load_digits("train"), load_digits("test")
    assert train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8)
    assert train.min() == 0 and train.max() == 1
    assert torch.bincount(test_labels).min() >= 34 and len(train_labels) == 1437
    with pytest.raises(ValueError, match="split"):
        load_digits("validation")


def pictures(count, mode="RGB", size=(10, 6)):
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return [PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def save_parquet(folder, columns):
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {
            k: datasets.Image() if isinstance(v[0], PIL.Image.Image) else datasets.Value("int64")
            for k, v in columns.items()
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000.parquet")
    return str(folder)


def test_parquet_folder_with_any_column_name(tmp_path):
    folder = save_parquet(tmp_path / "p", {"photo": pictures(3), "label": [0, 1, 2]})
    data = load_training_data(folder, (3, 8, 8))
    (x,) = data[0]
    assert len(data) == 3 and x.shape == (3, 8, 8) and x.dtype == torch.float32 and -1 <= x.min() < 0 < x.max() <= 1
    (gray,) = load_training_data(folder, (1, 8, 8), image_column="photo")[0]
    assert gray.shape == (1, 8, 8)


def test_image_folder_and_disk_folder(tmp_path):
    (tmp_path / "f" / "train").mkdir(parents=True)
    for index, picture in enumerate(pictures(2, "L")):
        picture.save(tmp_path / "f" / "train" / f"{index}.png")
    assert load_training_data(str(tmp_path / "f"), (1, 4, 4))[1][0].shape == (1, 4, 4)
    datasets.Dataset.from_dict(
        {"image": pictures(2)}, features=datasets.Features({"image": datasets.Image()})
    ).save_to_disk(tmp_path / "d")
    assert len(load_training_data(str(tmp_path / "d"), (3, 4, 4))) == 2


def test_transform_values():
    """No resize: the pixels are v / 127.5 - 1, in place; padding is black; a wide image is cropped in the middle."""
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    image = PIL.Image.fromarray(pixels)
    expected = torch.from_numpy(pixels).float()[None] / 127.5 - 1
    assert_close(EBMImageProcessor(4, 1).prepare(image)[0], expected)
    padded = EBMImageProcessor(8, 1, padding=2).prepare(image)[0]
    assert_close(padded[:, 2:6, 2:6], expected)
    assert (padded[:, :2] == -1).all() and (padded[..., 6:] == -1).all()
    wide = PIL.Image.fromarray(np.pad(pixels, ((0, 0), (2, 2))))
    assert_close(EBMImageProcessor(4, 1).prepare(wide)[0], expected)
    with pytest.raises(ValueError, match="padding"):
        EBMImageProcessor(4, 1, padding=2)


def test_missing_column_several_columns_and_empty(tmp_path):
    folder = save_parquet(tmp_path / "p", {"a": pictures(2), "b": pictures(2)})
    with pytest.raises(ValueError, match=r"image_column 'c' is not in the data set.*image_column=null"):
        load_training_data(folder, (3, 8, 8), image_column="c")
    with pytest.raises(ValueError, match=r"one column of type Image, .*it has \['a', 'b'\]"):
        load_training_data(folder, (3, 8, 8))
    with pytest.raises(ValueError, match=r"one column of type Image, .*none among \['label'\]"):
        load_training_data(save_parquet(tmp_path / "q", {"label": [1, 2]}), (3, 8, 8))
    with pytest.raises(ValueError, match=r"\(split 'train\[:0\]'\) is empty"):
        load_training_data(folder, (3, 8, 8), image_column="a", split="train[:0]")


def test_empty_sets(tmp_path):
    nothing = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    nothing.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    nothing.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    for name in ("disk", "parquet"):
        with pytest.raises(ValueError, match="is empty; choose another"):
            load_training_data(str(tmp_path / name), (1, 4, 4))


def test_corrupt_images_and_missing_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # it would try again, for seconds
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "f" / "train").mkdir(parents=True)
    (tmp_path / "f" / "train" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"(cannot be read|cannot be loaded)"):
        load_training_data(str(tmp_path / "f"), (1, 4, 4))
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "train-00000.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_training_data(str(tmp_path / "q"), (1, 4, 4))
    for path in ("nothing-here", tmp_path / "nothing-here", "./nothing-here", "~/nothing-here"):
        with pytest.raises(ValueError, match=r"nothing-here' \(split 'train'\) cannot be loaded"):
            load_training_data(str(path), (1, 4, 4))
    with pytest.raises(ValueError, match=r"did you mean digits\?"):
        load_training_data("digits@train", (1, 8, 8))


def test_training_images_follow_the_rules_of_image_files(tmp_path):
    """16 bits are scaled, not clipped; an animation is named and refused."""
    (tmp_path / "deep").mkdir()
    PIL.Image.fromarray(np.full((4, 4), 32_896, dtype=np.uint16)).save(tmp_path / "deep" / "0.png")
    (x,) = load_training_data(str(tmp_path / "deep"), (1, 4, 4))[0]
    assert_close(x, torch.full((1, 4, 4), 128 / 127.5 - 1))
    (tmp_path / "moving").mkdir()
    first, second = pictures(2)
    first.save(tmp_path / "moving" / "0.gif", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=r"image 0 of column 'image' \(.*/0\.gif\) cannot be read \(it has 2 frames"):
        load_training_data(str(tmp_path / "moving"), (3, 4, 4))


def test_what_images_lose_in_preparation_is_reported(tmp_path):
    image = PIL.Image.new("RGB", (32, 32))
    folder = save_parquet(tmp_path / "p", {"image": [image, image]})
    for shape, padding, said in (
        ((3, 32, 32), 0, None),
        ((3, 36, 36), 2, None),
        ((1, 32, 32), 0, "the first image is 32x32 colour; all are converted to gray"),
        ((3, 8, 8), 0, "resized to 8x8"),
        ((3, 32, 32), 2, None),  # the final size: it has its padding already
        ((3, 28, 28), 2, "resized to 24x24"),
    ):
        processor = EBMImageProcessor.for_model(shape, padding)
        found = describe_change(load_training_data(folder, shape, image_processor=processor))
        assert found is said is None or said in found
    assert describe_change(load_training_data("digits", (1, 8, 8))) is None


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="samples of shape"):
        load_training_data("digits", (3, 8, 8))
    with pytest.raises(ValueError, match="samples of shape"):
        load_training_data("pinwheel", (3,))
    with pytest.raises(ValueError, match="vectors"):
        load_training_data("some/images", (2,))
    with pytest.raises(ValueError, match="name must be"):
        sample_toy("spiral", 3)
    with pytest.raises(ValueError, match="num_samples"):
        sample_toy("pinwheel", 0)


def test_sampled_rows_are_ordered_and_depend_on_the_seed():
    rows = draw_rows(100, 30, seed=1)
    assert len(set(rows)) == 30 and rows == sorted(rows) and max(rows) < 100
    assert rows == draw_rows(100, 30, seed=1) != draw_rows(100, 30, seed=2)
    assert draw_rows(5, 30, seed=1) == [0, 1, 2, 3, 4]


def test_fingerprints_distinguish_data_sets(tmp_path):
    train, test = (load_training_data("digits", (1, 8, 8), split=split) for split in ("train", "test"))
    again = load_training_data("digits", (1, 8, 8), split="test")
    assert fingerprint(test) == fingerprint(again) != fingerprint(train)
    found = set()
    for name, value in (("a", 0), ("b", 1)):
        pixels = [PIL.Image.fromarray(np.full((8, 8), value, dtype=np.uint8))]
        features = datasets.Features({"image": datasets.Image(), "other": datasets.Image()})
        stored = datasets.Dataset.from_dict({"image": pixels, "other": pixels}, features=features)
        stored.save_to_disk(tmp_path / name)
        for column in ("image", "other"):
            loaded = [load_training_data(str(tmp_path / name), (1, 8, 8), image_column=column) for _ in range(2)]
            assert fingerprint(loaded[0]) == fingerprint(loaded[1])
            found.add(fingerprint(loaded[0]))
    assert len(found) == 4


def image_folder(path, pixels):
    path.mkdir(parents=True)
    for number, value in enumerate(pixels):
        PIL.Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(path / f"{number}.png")
    return path


def test_fingerprints_are_of_the_content_and_not_of_place_or_date(tmp_path):
    def fingerprint_of(folder):
        return fingerprint(load_training_data(str(folder), (1, 8, 8)))

    folder = image_folder(tmp_path / "a", [1, 2, 3])
    expected = fingerprint_of(folder)
    shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (0, 0))
    assert fingerprint_of(tmp_path / "copy") == expected
    others = [image_folder(tmp_path / "b", [1, 2, 4]), image_folder(tmp_path / "c", [2, 1, 3])]
    others.append(image_folder(tmp_path / "d", [1, 2, 3, 3]))
    assert len({expected, *map(fingerprint_of, others)}) == 4


def test_a_fingerprint_reads_no_more_images_than_stated(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ebm.data.loading.MOST_HASHED", 3)  # of five: the first, third, fifth
    found = [
        fingerprint(load_training_data(str(image_folder(tmp_path / name, pixels)), (1, 8, 8)))
        for name, pixels in (("a", [1, 2, 3, 4, 5]), ("b", [1, 9, 3, 9, 5]), ("c", [1, 2, 9, 4, 5]))
    ]
    assert found[0] == found[1] != found[2]


def test_samples_without_a_label_have_the_label_minus_one(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": pictures(4), "label": [1, None, 0, 1]}
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p" / "train.parquet")
    loaded = load_training_data(str(tmp_path / "p"), (3, 8, 8), with_labels=True)
    assert [int(loaded[index][1]) for index in range(4)] == [1, -1, 0, 1]
    assert classes_of(loaded).prior == pytest.approx([1 / 3, 2 / 3]) and classes_of(loaded).unlabelled
