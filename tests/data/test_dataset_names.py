"""Names of data sets: their parts, the only split of a set, names in records, padding as in training."""

import re

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import DatasetName, load_named
from hf_ebm.evaluation.ood import load_images, load_train_and_test


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make an image folder of white 8x8 images with these splits, 12 each, and return its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name, *splits):
        for split in splits:
            (tmp_path / name / split).mkdir(parents=True)
            for index in range(12):
                PIL.Image.fromarray(np.full((8, 8), 255 - index, np.uint8)).save(
                    tmp_path / name / split / f"{index}.png"
                )
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cifar10", ("cifar10", None, None)),
        ("user/set:large@validation", ("user/set", "large", "validation")),
        ("user/set@test", ("user/set", None, "test")),
        ("user/set:large", ("user/set", "large", None)),
        ("digits@train", ("digits", None, "train")),
    ],
)
def test_parts(text, parts):
    named = DatasetName.parse(text)
    assert (named.name, named.config, named.split) == parts and named.public == text


def test_paths_are_taken_as_they_are_and_shown_by_their_last_part(tmp_path):
    unusual = tmp_path / "a:b@c"
    unusual.mkdir()
    assert DatasetName.parse(str(unusual)) == DatasetName(str(unusual))
    named = DatasetName.parse(f"{unusual}@test")
    assert (named.name, named.split) == (str(unusual), "test") and named.public == "a:b@c@test"


@pytest.mark.parametrize("text", ["a@", ":b", "a:", "@x", "digits:large"])
def test_mistakes(text):
    with pytest.raises(ValueError, match=r"digits|name\[:config\]"):
        DatasetName.parse(text)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Each time takes half a minute of retries."""
    asked = []

    def unreachable(name, *_, **__):
        asked.append(name)
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("datasets.get_dataset_split_names", unreachable)
    with pytest.raises(ValueError, match="Couldn't reach 'alice/set'"):
        load_named("alice/set", (1, 8, 8), "test")
    assert asked == ["alice/set"]


def test_the_only_split_is_used_and_reported(folder):
    one, two = folder("one", "train"), folder("two", "train", "validation")
    images, source = load_images(one, (1, 8, 8), "test", None, 12, 0)
    assert len(images) == 12 and source["split"] == "train" and source["only_split"] and source["dataset"] == "one"
    assert load_named(f"{two}@validation", (1, 8, 8), "test")[1]["split"] == "validation"
    assert "only_split" not in load_named(two, (1, 8, 8), "train")[1]
    with pytest.raises(ValueError, match=r"has no split 'test'; name one of .*'validation'"):
        load_named(two, (1, 8, 8), "test")
    with pytest.raises(ValueError, match=r"'test'.*cannot be loaded"):  # asked for by name: no other one
        load_named(f"{one}@test", (1, 8, 8), "test")
    for name, split in ((one, "train"), (f"{two}@train[:50%]", "train[:50%]"), (f"{two}@validation+train", "val")):
        with pytest.raises(ValueError, match=rf"gives the split '{re.escape(split)}.* has rows of 'train'"):
            load_train_and_test(name, (1, 8, 8), None, 12, 0)
    (_, train), (_, test) = load_train_and_test(f"{two}@validation", (1, 8, 8), None, 12, 0)
    assert (train["split"], test["split"]) == ("train", "validation")


def test_padding_is_black_around_the_resized_image(folder):
    images, _ = load_images(
        folder("one", "test"), (1, 12, 12), "test", None, 12, 0, EBMImageProcessor(12, 1, padding=2)
    )
    assert images.shape == (12, 1, 12, 12) and (images[:, :, 2:-2, 2:-2] > 0.8).all()
    inner = torch.zeros(12, 12, dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    assert (images[..., ~inner] == -1).all()
