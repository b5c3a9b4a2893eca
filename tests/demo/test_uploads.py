"""Uploads: how files given to the page are handled, and which are rejected."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from hf_ebm import EBMImageProcessor
from hf_ebm.demo import limits, uploads
from hf_ebm.demo.demo_models import load_demo_model
from hf_ebm.demo.uploads import read_upload

GRAY, COLOUR = EBMImageProcessor(8, 1), EBMImageProcessor(8, 3)


def save_png(path, pixels, **options):
    PIL.Image.fromarray(pixels).save(path, format="png", **options)
    return str(path)


def test_an_upload_of_the_models_size_is_taken_pixel_for_pixel(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    given = read_upload(save_png(tmp_path / "a.png", pixels), GRAY)
    torch.testing.assert_close(given.x[0, 0], torch.from_numpy(pixels).float() / 255, rtol=0, atol=1e-7)
    assert given.changes == ""


def test_an_upload_is_padded_as_in_training(tiny_pipeline, tmp_path):
    tiny_pipeline.image_processor = EBMImageProcessor(8, 1, padding=2)
    tiny_pipeline.save_pretrained(tmp_path / "m")
    model = load_demo_model(str(tmp_path / "m"))
    path = save_png(tmp_path / "a.png", np.full((4, 4), 255, dtype=np.uint8))
    given = read_upload(path, model.pipeline.image_processor)
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1.0
    assert torch.equal(given.x[0, 0], expected) and given.changes == ""


def test_a_photograph_is_turned_upright_cropped_and_resized(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20] = 255  # white above; the camera was held so that this is the right side
    exif = PIL.Image.Exif()
    exif[274] = 6
    given = read_upload(save_png(tmp_path / "a.png", pixels, exif=exif), GRAY)
    assert given.x[0, 0, :, 5:].min() > 0.9 and given.x[0, 0, :, :3].max() < 0.05
    assert given.changes == "cropped to a square, resized from 40 x 60 to 8 x 8 pixels, converted to gray"


def test_a_gray_image_of_sixteen_bits_is_not_converted(tmp_path):
    """And keeps its values: 65535 is white."""
    given = read_upload(save_png(tmp_path / "a.png", np.full((8, 8), 65535, dtype=np.uint16)), GRAY)
    assert given.changes == "" and given.x.min() == 1.0


def test_transparency_is_reported(tmp_path):
    clear = save_png(tmp_path / "a.png", np.zeros((8, 8, 4), dtype=np.uint8))
    assert read_upload(clear, COLOUR).changes == "laid on white where it is transparent"
    given = read_upload(clear, GRAY)
    assert given.changes == "converted to gray, laid on white where it is transparent" and given.x.min() == 1.0


def test_the_first_frame_of_an_animation_is_used_and_reported(tmp_path):
    frames = [PIL.Image.new("L", (8, 8), value) for value in (255, 0, 128)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    given = read_upload(str(tmp_path / "a.gif"), GRAY)
    assert given.x.min() == 1.0 and "taken from the first of 3 frames" in given.changes


def broken_files(folder):
    """Name -> (file, what the message must say)."""
    whole = save_png(folder / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    with open(whole, "rb") as file:
        data = file.read()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    PIL.Image.new("L", (8, 8)).save(folder / "other.png", format="tiff")  # a kind that is not on the list
    with open(folder / "long.png", "wb") as file:
        file.truncate(limits.MAX_UPLOAD_BYTES + 1)
    PIL.Image.new("1", (8000, 7000)).save(folder / "bomb.png")
    said = {"cut": "damaged", "text": "damaged", "empty": "damaged", "other": "damaged"}
    said |= {"long": "10 MB are allowed", "bomb": "8000 x 7000 pixels"}
    return {name: (str(folder / f"{name}.png"), words) for name, words in said.items()}


@pytest.mark.parametrize("name", ["cut", "text", "empty", "other", "long", "bomb"])
def test_a_file_that_cannot_be_taken_is_named_plainly(tmp_path, name):
    path, words = broken_files(tmp_path)[name]
    with pytest.raises(ValueError, match=words) as error:
        read_upload(path, GRAY)
    assert str(tmp_path) not in str(error.value)


def test_more_pixels_than_pillow_opens_are_not_called_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow refuses above twice as many
    with pytest.raises(ValueError, match="it has too many pixels, at most 50 million are allowed"):
        read_upload(broken_files(tmp_path)["bomb"][0], GRAY)


def test_a_bomb_is_refused_without_a_warning_in_the_terminal(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40_000_000)  # Pillow warns above it
    with pytest.raises(ValueError, match="8000 x 7000 pixels"):
        read_upload(broken_files(tmp_path)["bomb"][0], GRAY)
    assert not [warning for warning in recwarn if "DecompressionBomb" in str(warning.category)]


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    def decoded(*_):
        raise AssertionError("decoded")

    path, _ = broken_files(tmp_path)["bomb"]
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decoded)
    with pytest.raises(ValueError, match="pixels"):
        read_upload(path, GRAY)
    monkeypatch.setattr(uploads, "MAX_UPLOAD_PIXELS", 10**9)
    with pytest.raises(AssertionError, match="decoded"):
        read_upload(path, GRAY)


def test_no_file_asks_for_one():
    with pytest.raises(ValueError, match="Choose the image first"):
        read_upload(None, GRAY)


def test_links_are_not_followed(tmp_path):
    import gradio as gr

    from hf_ebm.demo import upload_field
    from hf_ebm.demo.upload_field import make_upload_field

    with gr.Blocks():
        field = make_upload_field("a")
    again = field.__class__(**field.constructor_args, render=False)  # as Gradio does when an example is taken
    (tmp_path / "text.png").write_text("no picture")
    for one in (field, again):
        for link in ("http://127.0.0.1:9/a.png", "data:image/png;base64,AAAA", str(tmp_path / "none.png")):
            with pytest.raises(gr.Error, match="links are not followed"):
                asyncio.run(one.async_move_resource_to_block_cache(link))
        assert one.preprocess(SimpleNamespace(path=str(tmp_path / "text.png"))) == str(tmp_path / "text.png")
        assert one.preprocess(None) is None and one.get_block_name() == "image"
    assert not list(Path(upload_field.__file__).parent.glob("*.pyi"))
