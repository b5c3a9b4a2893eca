"""Image preparation: every route gives the same values, EXIF orientation and `datasets` columns included."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close
from transformers import pipeline

import hf_ebm.pipelines.ood_detection  # noqa: F401 (registers the task)
from hf_ebm import EnergyScoringPipeline
from hf_ebm.cli.main import main
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.data.loading import load_training_data
from hf_ebm.scoring.inputs import images_to_tensor, mask_to_tensor

ORIENTATION = 0x112
SHAPE = (1, 8, 8)


@pytest.fixture
def pixels():
    """Four digits, as uint8, (4, 8, 8)."""
    return load_digits("test")[0][:4, 0].mul(255).round().byte().numpy()


def save_turned(pixels, path):
    """Save an image as a camera that was turned does: the pixels on their side, and how to hold them."""
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise by 90 degrees
    PIL.Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif)
    return path


@pytest.fixture(params=["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def pipe(request):
    return request.getfixturevalue(request.param)


def test_every_route_scores_the_image_upright(pipe, pixels, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    files = [str(save_turned(image, tmp_path / "images" / f"{number}.png")) for number, image in enumerate(pixels)]
    expected = pipe.score(pixels).energies
    pipe.save_pretrained(tmp_path / "model")
    scorer = EnergyScoringPipeline.from_pipe(pipe)
    scorer.set_progress_bar_config(disable=True)
    detect = pipeline("ood-detection", model=str(tmp_path / "model" / "energy_model"))

    def opened():
        return [PIL.Image.open(file) for file in files]

    column = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())["image"]
    training = load_training_data(str(tmp_path / "images"), SHAPE)
    found = {
        "score": pipe.score(opened()).energies,
        "score of a column": pipe.score(column).energies,
        "score of training data": pipe.score(to_unit_range(torch.stack([x for (x,) in training]))).energies,
        "scorer": scorer(opened()).energies,
        "scorer of files": scorer(files).energies,
        "scorer of a column": scorer(column).energies,
        "transformers": torch.tensor([row["energy"] for row in detect(opened())]),
        "transformers of a column": torch.tensor([row["energy"] for row in detect(column)]),
        "transformers of a tuple": torch.tensor([row["energy"] for row in detect(tuple(files))]),
    }
    main(["score", "--model", str(tmp_path / "model"), *files])
    found["command"] = torch.tensor([float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:]])
    for route, energies in found.items():
        assert_close(energies, expected, rtol=1e-4, atol=1e-4, msg=lambda text, route=route: f"{route}: {text}")
    assert (pipe.score(np.rot90(pixels, axes=(1, 2)).copy()).energies - expected).abs().max() > 0.01


def test_reconstruct_and_inpaint_take_the_image_upright(tiny_dual_mcmc_pipeline, pixels, tmp_path):
    pipe = tiny_dual_mcmc_pipeline
    files = [save_turned(image, tmp_path / f"{number}.png") for number, image in enumerate(pixels)]
    stored = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", datasets.Image())
    mask = np.triu(np.full((8, 8), 255, dtype=np.uint8))
    turned_mask = save_turned(mask, tmp_path / "mask.png")

    def same_noise():
        return {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}

    again = pipe.reconstruct(pixels, **same_noise()).images
    filled = pipe.inpaint(pixels, mask > 0, **same_noise()).images
    for images in ([PIL.Image.open(file) for file in files], stored["image"]):
        assert torch.equal(pipe.reconstruct(images, **same_noise()).images, again)
        assert torch.equal(pipe.inpaint(images, PIL.Image.open(turned_mask), **same_noise()).images, filled)
    assert torch.equal(mask_to_tensor(PIL.Image.open(turned_mask), 1, SHAPE)[0, 0], torch.from_numpy(mask > 0))


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_a_column_of_any_format_is_its_images(pipe, pixels, kind):
    images = [PIL.Image.fromarray(image) for image in pixels]
    features = datasets.Features({"image": datasets.Image(), "row": datasets.Value("int64")})
    stored = datasets.Dataset.from_dict({"image": images, "row": [0, 1, 2, 3]}, features).with_format(kind)
    scorer = EnergyScoringPipeline.from_pipe(pipe)
    scorer.set_progress_bar_config(disable=True)
    expected = scorer(images).energies
    streamed = stored.with_format(None).to_iterable_dataset().with_format(kind)
    for given in (stored, stored["image"], streamed, streamed["image"]):
        assert_close(scorer(given, batch_size=3).energies, expected, rtol=0, atol=1e-5)
    assert_close(images_to_tensor(stored["image"], SHAPE), images_to_tensor(images, SHAPE), rtol=0, atol=0)
    scorer.calibrate(stored["image"], target_fpr=0.3)


def test_columns_of_arrays_and_of_transforms(pipe, pixels):
    vectors = datasets.Dataset.from_dict({"x": (pixels / 255.0).tolist()}).with_format("numpy")
    expected = images_to_tensor(pixels, SHAPE)
    assert_close(images_to_tensor(vectors["x"], SHAPE), expected, rtol=0, atol=1e-6)
    images = datasets.Dataset.from_dict({"image": [PIL.Image.fromarray(image) for image in pixels], "n": [1, 2, 3, 4]})

    def invert(rows):
        return {"image": [PIL.Image.fromarray(255 - np.asarray(image)) for image in rows["image"]], "n": rows["n"]}

    transformed = images.with_transform(invert)
    assert_close(images_to_tensor(transformed["image"], SHAPE), -expected, rtol=0, atol=1e-6)
    scorer = EnergyScoringPipeline.from_pipe(pipe)
    scorer.set_progress_bar_config(disable=True)
    for given in (transformed["image"], vectors["x"]):
        assert scorer(given).energies.shape == (4,)


def test_an_image_that_cannot_be_read_is_named(pipe, tmp_path):
    (tmp_path / "0.png").write_bytes(b"not an image")
    column = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.png")]}).cast_column("image", datasets.Image())
    for call in (pipe.score, EnergyScoringPipeline.from_pipe(pipe)):
        with pytest.raises(ValueError, match=r"image .*cannot be read \(it is not an image of a known format"):
            call(column["image"])
