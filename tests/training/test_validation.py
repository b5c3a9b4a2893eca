"""Validation while training: its metrics, the best weights, early stopping, resuming, and what it refuses."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from small_runs import all_weights, assert_same_run
from torch import nn
from torch.multiprocessing import ProcessExitedException

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.hub.upload import RECORDS
from hf_ebm.training import trainer
from hf_ebm.training.validation import PREFIX, Best, Validator, open_features

VALIDATES = {"validate_every": 2, "num_validation_images": 24, "class_conditional": True}


def records(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k.removeprefix(PREFIX): v for k, v in line.items()} for line in lines if PREFIX + "auroc" in line]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(Validator, "frechet_distance", lambda self, pipeline: few_frechet_distance(self, pipeline))


def few_frechet_distance(validator, pipeline):
    """As `Validator.frechet_distance`, of 80 samples."""
    samples = pipeline(batch_size=80, generator=validator.generator(), output_type="latent").images.clamp(-1, 1)
    from hf_ebm.evaluation.sample_metrics import frechet_distance

    return frechet_distance(validator.images, samples, validator.extractor)


def test_a_run_validates(tmp_path, script):
    folder = script.train(tmp_path / "run", **VALIDATES)
    found = records(folder)
    assert [one["step"] for one in found] == [2, 4]
    names = {"step", "frechet_distance", "energy_gap", "auroc"}
    names |= {f"auroc_{name}" for name in ("rotated", "inverted", "shuffled", "mixed")}
    names |= {"reconstruction_error"} if script.name == "dual_mcmc" else {"accuracy"}  # its energy has no classes
    assert all(set(one) == names for one in found) and all(0 <= one["auroc"] <= 1 for one in found)
    summary = json.loads((folder / "train_summary.json").read_text())
    assert summary["num_images"] == 1437 - 24 and summary["validation"]["num_images"] == 24
    assert (folder / "validation.png").stat().st_size > 5000 and "validation.png" in RECORDS
    card = (folder / "README.md").read_text()
    assert "### Validation" in card and "on 24 held-out samples" in card and "](validation.png)" in card


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_validates_as_an_uninterrupted_one(tmp_path, script, processes, monkeypatch):
    """Also its best weights are the same, which may be older than the checkpoint."""
    part, changes = tmp_path / "part", {**VALIDATES, "save_best_by": "frechet_distance", "validate_every": 1}
    changes |= {"max_steps": 3, "checkpoint_every": 2}
    script.train_in(processes, tmp_path / "whole", **changes)
    save_checkpoint = trainer.save_checkpoint

    def die_after(*arguments):
        save_checkpoint(*arguments)
        os._exit(9)

    with monkeypatch.context() as patch, pytest.raises(ProcessExitedException, match="exit code 9"):
        patch.setattr(trainer, "save_checkpoint", die_after)
        script.train_in(processes, part, **changes)
    script.train_in(processes, part, resume="latest", **changes)
    assert_same_run(tmp_path / "whole", part)
    chosen = [json.loads((f / "train_summary.json").read_text())["validation"] for f in (tmp_path / "whole", part)]
    assert chosen[0] == chosen[1] and chosen[0]["chosen"]["metric"] == "frechet_distance"


def test_validation_does_not_change_what_is_trained(tmp_path, script):
    """With a split of its own the training data are the same."""
    plain = script.train(tmp_path / "plain", max_steps=3)
    validated = script.train(tmp_path / "validated", max_steps=3, validate_every=1, validation_split="test")
    before, after = all_weights(plain), all_weights(validated)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def give(monkeypatch, values):
    """The metric of the validations in turn."""
    values = iter(values)
    monkeypatch.setattr(Validator, "__call__", lambda self, pipeline: {"auroc": next(values)})


def test_the_best_weights_become_the_pipeline(tmp_path, script, monkeypatch, capsys):
    give(monkeypatch, [0.5, 0.9, 0.9, 0.7])
    changes = {"validate_every": 1, "checkpoint_every": 1, "checkpoints_total_limit": None}
    folder = script.train(tmp_path / "run", save_best_by="auroc", **changes)
    assert "has the weights of step 2: auroc 0.9" in capsys.readouterr().out
    two, last = script.train(tmp_path / "two", max_steps=4, **{**changes, "validate_every": 0}), all_weights(folder)
    assert any(not torch.equal(last[key], value) for key, value in all_weights(two).items())
    best = load_file(folder / "checkpoints" / "step_00000004" / "best.safetensors")
    assert json.loads((folder / "checkpoints/step_00000004/trainer_state.json").read_text())["best"] == {
        "metric": "auroc",
        "value": 0.9,
        "step": 2,
        "without_improvement": 2,
    }
    saved = [tensor.flatten().tolist() for tensor in last.values()]
    assert all(tensor.flatten().tolist() in saved for name, tensor in best.items() if name.endswith("weight"))
    assert "The weights are those of step 2, chosen by `auroc`" in (folder / "README.md").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_early_stopping(tmp_path, script, monkeypatch, processes):
    give(monkeypatch, [0.6, 0.5, 0.5, 0.7, 0.8])
    changes = {"validate_every": 1, "save_best_by": "auroc", "early_stopping_patience": 2, "max_steps": 5}
    script.train_in(processes, tmp_path / "run", **changes)
    summary = json.loads((tmp_path / "run" / "train_summary.json").read_text())
    assert summary["steps"] == 3 and summary["validation"]["chosen"]["step"] == 1
    before = (tmp_path / "run" / "train_summary.json").read_bytes()
    script.train_in(processes, tmp_path / "run", resume="latest", **changes)  # it is finished
    assert (tmp_path / "run" / "train_summary.json").read_bytes() == before


def test_settings_that_do_not_fit_are_refused(tmp_path, script):
    bad = {
        "there is no metric 'fid' here; this run has frechet_distance, auroc": {"save_best_by": "fid"},
        "there is no metric 'accuracy'": {"save_best_by": "accuracy"},  # without classes
        "save_best_by needs validate_every": {"save_best_by": "auroc", "validate_every": 0},
        "early_stopping_patience needs save_best_by": {"early_stopping_patience": 2},
        "num_validation_images must be >= 20, got 5": {"num_validation_images": 5},
        "validate_every must be >= 0": {"validate_every": -1},
        "early_stopping_patience must be >= 1": {"early_stopping_patience": 0, "save_best_by": "auroc"},
        "at least 20 held-out samples": {"dataset": "pinwheel", "preset": "toy", "num_toy_samples": 100, "models": {}},
    }
    for message, changes in bad.items():
        if script.name == "dual_mcmc" and "dataset" in changes:
            continue  # its networks are of images
        with pytest.raises(ValueError, match=message):
            script.train(tmp_path / "run", **{"validate_every": 2, **changes})
        assert not (tmp_path / "run" / "settings.yaml").exists()


def test_other_held_out_samples_are_refused_on_resume(tmp_path, script):
    script.train(tmp_path / "run", max_steps=2, validate_every=2)
    for changes in ({"num_validation_images": 50}, {"validate_every": 0}, {"validation_split": "test"}):
        name = next(iter(changes))
        with pytest.raises(ValueError, match=f"{name} cannot be changed"):
            script.train(tmp_path / "run", resume="latest", **{"validate_every": 2, **changes})
    script.train(tmp_path / "plain", max_steps=2)
    with pytest.raises(ValueError, match="validate_every cannot be changed from 0 to 2"):
        script.train(tmp_path / "plain", resume="latest", validate_every=2)
    script.train(tmp_path / "plain", resume="latest", validate_every=4, validation_split="test")


def test_a_validation_split_of_training_rows_is_warned_of(tmp_path, script, capsys):
    script.train(tmp_path / "run", max_steps=1, validate_every=1, validation_split="train")
    assert "'train' has rows of the training split 'train'" in capsys.readouterr().out


def test_the_default_features():
    """Principal components for images, the values for vectors; a perfect generator is at the floor."""
    images = to_model_range(load_digits("train")[0])[:200]
    of_images = type("S", (), {"validation_feature_extractor": None, "dataset": "some/images"})
    features = open_features(of_images, images, torch.device("cpu"))
    assert features(images).shape == (200, 64) and features.name.startswith("the first 64 principal components")
    torch.testing.assert_close(features(images).mean(dim=0), torch.zeros(64), atol=1e-4, rtol=0)
    of_vectors = open_features(of_images, torch.randn(30, 2), torch.device("cpu"))
    assert of_vectors(torch.ones(3, 2)).tolist() == [[1.0, 1.0]] * 3


def test_best_follows_its_metric():
    for metric, better, worse in (("frechet_distance", 1.0, 2.0), ("auroc", 0.9, 0.8)):
        best, model = Best(metric), nn.Linear(1, 1)
        for step, value in enumerate((worse, better, better, float("nan")), start=1):
            with torch.no_grad():
                model.weight.fill_(step)
            best.update({metric: value}, step, [model])
        assert best.step == 2 and best.without_improvement == 2 and best.weights[0]["weight"].item() == 2.0
        again = Best.restore(metric, best.facts(), best.tensors())
        assert again == best
        assert Best.restore("energy_gap", best.facts(), best.tensors()).step == 0
