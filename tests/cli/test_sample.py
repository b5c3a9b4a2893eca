"""hf-ebm sample: an image grid determined by the seed."""

import json

import numpy as np
import PIL.Image
import pytest
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
    save_grid(images, tmp_path / "expected.png", 1)
    assert (np.asarray(PIL.Image.open(tmp_path / "expected.png")) == found[0]).all()


def test_sample_a_class(tmp_path, capsys):
    from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
    from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

    torch.manual_seed(0)
    settings = ddaebm_model_settings("digits", num_classes=2, class_names=["cat", "dog"])
    generator, energy, inference = build_ddaebm_models(settings)
    DDAEBMPipeline(generator, DDAEBMScheduler(), energy, inference).save_pretrained(tmp_path / "model")
    found = {}
    for label in ("dog", "1", "cat"):
        path = tmp_path / f"{label}.png"
        main(["sample", "--model", str(tmp_path / "model"), "--class", label, "--output", str(path)])
        found[label] = np.asarray(PIL.Image.open(path))
    assert (found["dog"] == found["1"]).all() and (found["dog"] != found["cat"]).any()
    with pytest.raises(SystemExit):
        main(["sample", "--model", str(tmp_path / "model"), "--class", "bird", "--output", str(tmp_path / "x.png")])
    assert "names among ['cat', 'dog'], got 'bird'" in capsys.readouterr().err


def test_a_class_of_a_model_without_classes(dual_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--model", dual_folder, "--class", "3", "--output", str(tmp_path / "x.png")])
    assert "was trained without classes" in capsys.readouterr().err
