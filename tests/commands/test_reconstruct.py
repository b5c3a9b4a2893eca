"""hf-ebm reconstruct: pictures beside their reconstructions, and the errors."""

import json

import numpy as np
import PIL.Image
import pytest

from hf_ebm.cli import main


@pytest.fixture
def digit_files(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return paths


def test_reconstruct_writes_a_picture_or_a_folder(dual_folder, digit_files, tmp_path, capsys):
    arguments = ["reconstruct", "--model", dual_folder, *digit_files, "--num-inference-steps", "4", "--json"]
    main([*arguments, "--output", str(tmp_path / "again.png")])
    found = json.loads(capsys.readouterr().out)
    assert PIL.Image.open(tmp_path / "again.png").size == (3 * 72, 3 * 72)
    main([*arguments, "--output", str(tmp_path / "files")])
    assert json.loads(capsys.readouterr().out)["errors"] == found["errors"]
    for path in digit_files:
        errors = found["errors"][path]["mse"]
        assert errors["z_chain"] < errors["inference_model"]
        original = PIL.Image.open(path).resize((8, 8), PIL.Image.Resampling.BICUBIC)
        again = PIL.Image.open(tmp_path / "files" / path.rsplit("/", 1)[1])
        difference = (np.asarray(original, dtype=float) - np.asarray(again, dtype=float)) / 127.5
        assert (difference**2).mean() == pytest.approx(errors["z_chain"], rel=0.02)  # files hold 8 bits
