"""EBMImageProcessor: every kind of input gives the same pixel values, and saved processors load, old ones too."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from fresh_process import run_in_fresh_process
from torch.testing import assert_close
from transformers import AutoImageProcessor

from hf_ebm import EBMImageProcessor, ResNetEnergyConfig, UNetEnergyConfig


@pytest.fixture
def pixels():
    """Two 8-bit RGB images, (2, 8, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def test_kinds_of_input(pixels, tmp_path):
    process = EBMImageProcessor(8)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    pictures = [PIL.Image.fromarray(image) for image in pixels]
    pictures[0].save(tmp_path / "0.png")
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    kinds = [pictures, tuple(pictures), pixels, list(pixels), pixels / 255.0, unit, list(unit), (unit * 255).byte()]
    for images in [*kinds, [tmp_path / "0.png", pictures[1]], [str(tmp_path / "0.png"), unit[1]]]:
        assert_close(process(images).pixel_values, expected, rtol=0, atol=1e-6)
    assert_close(process(pictures[0]).pixel_values, expected[:1], rtol=0, atol=1e-6)
    array = process(pictures, return_tensors="np").pixel_values
    assert isinstance(array, np.ndarray)
    assert_close(torch.from_numpy(array), expected, rtol=0, atol=1e-6)
    assert isinstance(process(pictures, return_tensors=None).pixel_values, list)


def test_gray(pixels):
    process, gray = EBMImageProcessor(8, 1), pixels[..., 0]
    expected = torch.from_numpy(gray)[:, None].float() / 127.5 - 1
    for images in (gray, gray[..., None], list(gray), torch.from_numpy(gray)[:, None] / 255):
        assert_close(process(images).pixel_values, expected, rtol=0, atol=1e-6)
    colour = [PIL.Image.fromarray(image) for image in pixels]
    assert_close(process(pixels).pixel_values, process(colour).pixel_values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 2])
def test_sizes(pixels, padding):
    """Arrays and tensors are resized and padded as PIL images are; `size` and `do_resize` of a call come first."""
    process = EBMImageProcessor({"height": 16, "width": 16}, 3, padding)
    wide = np.concatenate([pixels, pixels], axis=2)
    expected = process([PIL.Image.fromarray(image) for image in wide]).pixel_values
    assert expected.shape == (2, 3, 16, 16)
    assert not padding or (expected[:, :, :padding] == -1).all()
    for images in (wide, wide / 255.0, torch.from_numpy(wide).permute(0, 3, 1, 2) / 255):
        assert_close(process(images).pixel_values, expected, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match=r"do_resize=False, got 16 x 8"):
            process(images, do_resize=False)
    same = process(pixels, size=8 + 2 * padding, do_resize=False).pixel_values
    inner = same[:, :, padding : 8 + padding, padding : 8 + padding]
    assert_close(inner, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, rtol=0, atol=1e-6)
    assert_close(process(same * 0.5 + 0.5, size=8 + 2 * padding, do_resize=False).pixel_values, same)


def test_a_crop_box_is_for_images_of_one_size(tmp_path):
    """CelebA's box is PIL's own crop; images of other sizes, also of the model's, are prepared as without it."""
    box, size = (15, 40, 163, 188), (178, 218)
    process, without = EBMImageProcessor(64, crop_box=box, crop_from=size), EBMImageProcessor(64)
    face, other, own = (
        np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for shape in ((218, 178), (200, 178), (64, 64))
    )
    picture = PIL.Image.fromarray(face)
    cut = np.array(picture.crop(box).resize((64, 64), PIL.Image.Resampling.BICUBIC))
    expected = torch.from_numpy(cut).permute(2, 0, 1)[None] / 127.5 - 1
    tensor = torch.from_numpy(face).permute(2, 0, 1) / 255
    for image in (picture, face, tensor):
        assert_close(process(image).pixel_values, expected, rtol=0, atol=1e-6)
    assert not torch.equal(without(picture).pixel_values, expected)
    for image in (other, own):
        assert torch.equal(process(image).pixel_values, without(image).pixel_values)
    assert process(picture, size=32).pixel_values.shape == (1, 3, 32, 32)
    assert_close(process(picture, size=64).pixel_values, expected, rtol=0, atol=1e-6)
    assert "cropped to the box (15, 40, 163, 188) where 178x218, else centre-cropped" in process.describe()
    changes = process.describe_changes(size, "RGB", transparent=False)
    assert changes == "cropped to the box (15, 40, 163, 188), resized from 148 x 148 to 64 x 64 pixels"
    process.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert (again.crop_box, again.crop_from) == ([*box], [*size])
    assert_close(again(picture).pixel_values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 4, 4), None), (None, (8, 8)), ((0, 0, 9, 4), (8, 8)), ((4, 0, 4, 4), (8, 8)), ((0, 0, 4), (8, 8))],
)
def test_crop_boxes_that_cannot_be(box, size):
    with pytest.raises(ValueError, match=r"crop_box must be \(left, top, right, bottom\)"):
        EBMImageProcessor(8, crop_box=box, crop_from=size)


def test_saved(tmp_path):
    EBMImageProcessor(16, 1, padding=2, do_resize=False).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {
        "do_resize": False,
        "image_processor_type": "EBMImageProcessor",
        "num_channels": 1,
        "padding": 2,
        "size": {"height": 16, "width": 16},
    }
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EBMImageProcessor and loaded.to_dict() == saved
    assert AutoImageProcessor.from_pretrained(tmp_path, size=20, do_resize=True).size == {"height": 20, "width": 20}


def test_a_file_of_the_former_name_loads(tmp_path):
    old = {"image_processor_type": "EnergyImageProcessor", "image_size": 16, "num_channels": 1, "padding": 2}
    old |= {"do_resize": None, "size": None, "default_to_square": True, "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EBMImageProcessor
    assert loaded(PIL.Image.new("RGB", (30, 30), "white")).pixel_values.shape == (1, 1, 16, 16)
    loaded.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["image_processor_type"], saved["padding"]) == ("EBMImageProcessor", 2)


@pytest.mark.parametrize("module", ["hf_ebm.models", "hf_ebm.pipelines.pipeline_energy_scoring"])
def test_energies_are_registered_by_one_import(tmp_path, module):
    configs = (UNetEnergyConfig, ResNetEnergyConfig)
    for config in configs:
        config().save_pretrained(tmp_path / config.__name__)
        # identified by the config
        (tmp_path / config.__name__ / "preprocessor_config.json").write_text('{"size": 8, "num_channels": 1}')
    code = f"import sys, transformers, {module}\nload = transformers.AutoImageProcessor.from_pretrained\n"
    code += "print(*(type(load(folder)).__name__ for folder in sys.argv[1:]))"
    out = run_in_fresh_process(code, *(str(tmp_path / config.__name__) for config in configs))
    assert out.splitlines()[-1].split() == ["EBMImageProcessor"] * 2


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(1, 3, 8, 8) - 0.5, {}, r"\[0, 1\], got values from -0.5 .*x \* 0\.5 \+ 0\.5 from \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), 200.0), {}, r"\[0, 1\].*x / 255"),
        (np.zeros((8, 8, 3)) - 1, {}, r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), {}, "finite"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), {}, "dtype torch.int64"),
        (np.zeros((3, 8, 8)), {}, r"\(H, W, C\)"),
        (np.zeros(8), {}, r"\(H, W, C\)"),
        ([], {}, "empty"),
        ([3], {}, "got int"),
        (np.zeros((8, 8, 3)), {"do_resise": False}, "do_resise"),
        (np.zeros((8, 8, 3)), {"size": {"height": 8, "width": 9}}, "size must be"),
        (np.zeros((1, 8, 8, 2)), {}, "channels, got 2"),
    ],
)
def test_mistakes(images, options, message):
    with pytest.raises(ValueError, match=message):
        EBMImageProcessor(8)(images, **options)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8, "num_channels": 0}, {"size": 8, "padding": 4}])
def test_impossible_processors(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        EBMImageProcessor(**options)
