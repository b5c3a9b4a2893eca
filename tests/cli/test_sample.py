"""hf-ebm sample: an image grid determined by the seed."""

import json

import numpy as np
import PIL.Image
import torch

from hf_ebm.cli.main import main
from hf_ebm.evaluation.plots import save_grid


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


def test_sample_takes_the_number_of_steps(dual_folder, tiny_dual_mcmc_pipeline, tmp_path, capsys):
    found = {}
    for steps in (0, 5, None):
        path = tmp_path / f"{steps}.png"
        more = [] if steps is None else ["--num-inference-steps", str(steps)]
        main(["sample", "--model", dual_folder, "--num-images", "1", "--output", str(path), "--json", *more])
        assert json.loads(capsys.readouterr().out)["num_inference_steps"] == steps
        found[steps] = np.asarray(PIL.Image.open(path))
    assert (found[5] == found[None]).all() and (found[0] != found[5]).any()  # 5 in training
    images = tiny_dual_mcmc_pipeline(1, 0, generator=torch.Generator().manual_seed(0)).images
    save_grid(images, tmp_path / "expected.png", 1, scale=8)
    assert (np.asarray(PIL.Image.open(tmp_path / "expected.png")) == found[0]).all()
