"""hf-ebm reconstruct: images beside their reconstructions, and the errors."""

import json

import numpy as np
import PIL.Image
import pytest

from hf_ebm.cli.main import main


@pytest.fixture
def digit_files(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return paths


def test_reconstruct_writes_an_image_or_a_folder(dual_folder, digit_files, tmp_path, capsys):
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


def test_reconstruct_reports_how_it_resized_images(dual_folder, file_server, tmp_path, capsys):
    for name, mode, size in (("fits", "L", 8), ("big", "L", 28), ("big2", "L", 28), ("red", "RGB", 8)):
        PIL.Image.new(mode, (size, size)).save(tmp_path / f"{name}.png")
    fits, big, red = (str(tmp_path / f"{name}.png") for name in ("fits", "big", "red"))
    big2 = f"{file_server}/big2.png"
    arguments = ["reconstruct", "--model", dual_folder, "--num-inference-steps", "1"]
    arguments += ["--output", str(tmp_path / "again.png"), "--overwrite"]
    main([*arguments, fits, big, big2, red])
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "to fit the model" in line] == [
        f"{big}, {big2}: resized from 28 x 28 to 8 x 8 pixels, to fit the model",
        f"{red}: converted to gray, to fit the model",
    ]
    assert [line.split()[-1] for line in printed.out.splitlines()[2:-1]] == [fits, big, big2, red]
