"""Hashes of images: what they depend on, and what they do not depend on."""

import numpy as np
import PIL.Image
import pytest

from hf_ebm.utils.files import hash_image_bytes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "one.png"
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path


def test_a_file_counts_by_its_bytes_however_it_is_given(file):
    expected = hash_image_bytes([file])
    content = file.read_bytes()
    for same in (str(file), content, {"bytes": content, "path": "elsewhere.png"}, {"bytes": None, "path": str(file)}):
        assert hash_image_bytes([same]) == expected
    assert hash_image_bytes([content + b" "]) != expected


def test_order_number_and_bounds_count(file):
    one, two = b"ab", b"c"
    assert len({hash_image_bytes(pictures) for pictures in ([one, two], [two, one], [b"a", b"bc"], [one], [])}) == 5


def test_images_without_a_file_are_hashed_by_mode_size_and_pixels(file):
    picture = PIL.Image.open(file)
    wide = PIL.Image.frombytes("L", (16, 4), picture.tobytes())
    palette = PIL.Image.frombytes("P", (8, 8), picture.tobytes())
    assert hash_image_bytes([picture]) == hash_image_bytes([picture.copy()])
    assert len({hash_image_bytes([image]) for image in (picture, wide, palette, picture.rotate(90))}) == 4


def test_a_file_that_cannot_be_read_counts_by_its_name(tmp_path):
    missing = hash_image_bytes([{"bytes": None, "path": str(tmp_path / "missing.png")}])
    assert missing == hash_image_bytes(["missing.png"]) != hash_image_bytes(["other.png"])
