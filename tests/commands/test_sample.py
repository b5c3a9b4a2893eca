"""hf-ebm sample: a picture of new images, which the seed decides."""

import json

import numpy as np
import PIL.Image

from hf_ebm.cli import main


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


def test_sample_prints_json(folder, tmp_path, capsys):
    main(["sample", "--model", folder, "--num-images", "2", "--output", str(tmp_path / "s.png"), "--json"])
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "s.png")
