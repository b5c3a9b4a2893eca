"""The command line: pictures, energies, and one clear line for a mistake."""

import json

import numpy as np
import PIL.Image
import pytest

from hf_ebm.cli import main


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_sample_writes_a_grid_that_the_seed_decides(folder, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(
            [
                "sample",
                "--model",
                folder,
                "--num-images",
                "6",
                "--seed",
                seed,
                "--output",
                str(tmp_path / f"{name}.png"),
            ]
        )
    a, b, c = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape[:2] == (2 * 72, 3 * 72) and (a == b).all() and (a != c).any()


def test_score_prints_the_energies(folder, tmp_path, capsys, tiny_pipeline):
    images = [PIL.Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 200)]
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    main(["score", "--model", folder, "--json", *paths])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = tiny_pipeline.score(images).energies.tolist()
    assert printed == pytest.approx(dict(zip(paths, expected, strict=True)), rel=1e-4)


def test_eval_ood_writes_table_protocol_and_picture(folder, tmp_path, capsys):
    out = tmp_path / "ood"
    arguments = ["eval-ood", "--model", folder, "--id", "digits", "--ood", "noise,constant", "--output", str(out)]
    main([*arguments, "--max-images", "40", "--resamples", "10", "--scores", "energy,typicality"])
    record = json.loads((out / "ood.json").read_text())
    assert set(record["metrics"]) >= {"energy", "typicality", "pixel_gaussian", "nearest_neighbour"}
    assert set(record["metrics"]["energy"]) == {"noise", "constant", "mean"}
    assert record["protocol"]["in_distribution"] == "digits, split test, 40 images"
    assert (out / "roc.png").is_file()
    assert "pixel_gaussian" in capsys.readouterr().out


def test_likelihood_prints_the_bracket(folder, capsys):
    arguments = ["likelihood", "--model", folder, "--dataset", "digits", "--max-images", "10", "--num-chains", "4"]
    arguments += ["--num-temperatures", "4", "--equilibration-steps", "2"]
    main([*arguments, "--num-conditionals", "1", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["log_z"]["gap"] == pytest.approx(record["log_z"]["upper"] - record["log_z"]["lower"])
    assert record["num_held_out"] == 10 and record["num_levels"] == 17 and len(record["chain"]["steps"]) == 4
    main(arguments)
    printed = capsys.readouterr().out
    assert f"at least {record['log_z']['lower']:.2f}" in printed and "bits/dim" in printed  # the same seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--base", "none"], "base must be one of"),
        (["likelihood", "--model", "FOLDER", "--dataset", "25gaussians"], "2-D points"),
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--num-conditionals", "-1"], "--num-conditionals"),
        (["sample", "--model", "FOLDER", "--num-images", "0"], "--num-images"),
        (["score", "--model", "FOLDER", "no-such-file.png"], "no-such-file.png"),
        (["sample", "--model", "no-such-folder/a/b"], "no-such-folder"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--scores", "combined"], "'combined'"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--max-images", "2"], "max_images"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        main([folder if argument == "FOLDER" else argument for argument in arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
