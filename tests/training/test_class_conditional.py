"""Training with labels: what a run learns from them, samples, saves and resumes."""

import dataclasses
import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_ebm import DDAEBMPipeline, EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.generation import generate
from hf_ebm.hub.model_card import render_card
from hf_ebm.pipelines.loading import load_pipeline
from hf_ebm.training.digits_demo import evaluate_digits, format_table
from hf_ebm.training.train_ddaebm import METHOD, DDAEBMSettings, train
from hf_ebm.training.trainer import run_training

QUICK = {"sample_every": 0, "checkpoint_every": 0, "num_grid_samples": 4, "log_every": 1, "batch_size": 32}
SMALL = {"unet": {"base_channels": 16}, "inference": {"block_out_channels": [4, 8]}}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the digits' labels, its networks small and its steps few."""
    folder = tmp_path_factory.mktemp("runs") / "labels"
    settings = {
        **QUICK,
        "energy_learning_rate": 2e-3,
        "generator_learning_rate": 2e-3,
        "r1_interval": 4,
        "ema_decay": 0.9,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        return train(
            DDAEBMSettings(output_dir=str(folder), class_conditional=True, max_steps=80, models=SMALL, **settings)
        )


def test_an_energy_with_labels_classifies_samples_and_scores(run):
    pipe = DDAEBMPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.energy_model.config
    assert config.num_classes == 10 and config.id2label[3] == "3" and len(config.class_prior) == 10
    assert pipe.class_names == [str(digit) for digit in range(10)]
    digits, labels = load_digits("test")
    classifier = AutoModelForImageClassification.from_pretrained(run, subfolder="energy_model")
    with torch.no_grad():
        logits = classifier(digits * 2 - 1).logits
    assert (logits.argmax(1) == labels).float().mean() > 0.25  # chance is 0.1
    assert pipe.score(digits[:5]).energies.isfinite().all()  # the marginal
    assert EnergyScoringPipeline.from_pretrained(run).energy_model.config.num_classes == 10
    text = (run / "metrics.jsonl").read_text()
    assert '"classification"' in text


def test_a_grid_has_a_row_for_each_class_and_the_card_describes_them(run):
    with PIL.Image.open(run / "samples.png") as grid:
        width, height = grid.size
    assert height == 10 * (64 + 2 * 4) and width == 4 * (64 + 2 * 4)  # 10 rows, at least 4 columns
    card = (run / "README.md").read_text()
    assert "class-conditional, with 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in card
    assert "class-conditional-image-generation" in card and "unconditional-image-generation" not in card
    assert ".energy_model(2 * samples - 1).logits" in card


def test_the_demo_measures_classes_and_the_page_generates_one(run):
    pipe = load_pipeline(str(run))
    pipe.set_progress_bar_config(disable=True)
    metrics, _, _ = evaluate_digits(pipe)
    assert 0.1 < metrics["classification"]["accuracy"] <= 1.0
    assert 0.0 <= metrics["classification"]["calibration_error"] <= 1.0
    assert 0.0 <= metrics["samples_of_their_class"] <= 1.0
    assert "share of the class asked for" in format_table(metrics)
    (run / "metrics.json").write_text(json.dumps(metrics))
    card = render_card(run)
    assert any(one.metric_name == "accuracy of p(y | x)" for one in card.data.eval_results)
    assert "are of their class for a classifier trained separately" in card.text
    (run / "metrics.json").unlink()

    model = DemoModel("digits", pipe, EnergyScoringPipeline.from_pipe(pipe))
    drawn = generate(model, 3, "DDAEBM (its own)", 4, 7, "3")
    alone = pipe(class_labels=[3] * 3, generator=torch.Generator().manual_seed(7), output_type="pt").images
    assert torch.allclose(drawn.images, alone)
    with pytest.raises(ValueError, match=r"The class must be one of \['0', .*\], got 'x'"):
        generate(model, 3, "DDAEBM (its own)", 4, 7, "x")


def test_class_labels_are_numbers_names_or_the_prior(run):
    pipe = DDAEBMPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)

    def sample(**options):
        return pipe(generator=seeded(), output_type="latent", **options).images

    same = sample(class_labels=[3, 3])
    assert torch.equal(sample(class_labels=["3", "3"]), same) and torch.equal(
        sample(batch_size=2, class_labels=3), same
    )
    assert not torch.allclose(sample(class_labels=[4, 4]), same)
    assert sample(class_labels=[1, 2, 3]).shape[0] == 3  # which sets the batch size
    assert sample(batch_size=4).shape[0] == 4  # from the class frequencies
    guided = sample(class_labels=[3, 3], guidance_scale=2.0)
    assert not torch.allclose(guided, same)
    corrected = sample(class_labels=[3, 3], num_correction_steps=1)
    assert corrected.isfinite().all() and not torch.allclose(corrected, same)
    for labels, message in (
        ([10], r"numbers from 0 to 9 or names among .*, got 10"),
        ("ten", "got 'ten'"),
        ([-1], "got -1"),
        ([], "class_labels must be"),
        ([0.5], "got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(class_labels=labels)
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        sample(class_labels=3, guidance_scale=float("nan"))


def test_the_prior_decides_the_labels(run):
    pipe = DDAEBMPipeline.from_pretrained(run)
    prior = torch.tensor(pipe.generator_model.config.class_prior)
    labels, number = pipe.resolve_class_labels(None, 20_000, seeded())
    frequencies = torch.bincount(labels, minlength=10) / number
    assert (frequencies - prior).abs().max() < 0.01


def test_an_unconditional_model_takes_no_labels(tiny_pipeline):
    with pytest.raises(ValueError, match="class_labels must be None: this model has no classes; got 3"):
        tiny_pipeline(class_labels=3)
    with pytest.raises(ValueError, match=r"guidance_scale must be 1\.0 for a model without classes"):
        tiny_pipeline(guidance_scale=2.0)


def test_resumed_equals_uninterrupted(tmp_path):
    settings = {**QUICK, "class_conditional": True, "models": SMALL, "max_steps": 4, "final_learning_rate": 1e-4}
    whole = train(DDAEBMSettings(output_dir=str(tmp_path / "whole"), **settings))
    part = {**settings, "output_dir": str(tmp_path / "part"), "checkpoint_every": 2}
    train(DDAEBMSettings(**part, max_runtime_seconds=1e-6))
    resumed = train(DDAEBMSettings(**part, resume="latest"))
    for name in ("generator_model", "energy_model"):
        first, second = (
            getattr(DDAEBMPipeline.from_pretrained(folder), name).state_dict() for folder in (whole, resumed)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_clusters_replace_labels(tmp_path, capsys):
    settings = {**QUICK, "pseudo_labels": 4, "models": SMALL, "max_steps": 2, "classification_weight": 0.0}
    folder = train(DDAEBMSettings(output_dir=str(tmp_path / "clusters"), **settings))
    config = DDAEBMPipeline.from_pretrained(folder).energy_model.config
    assert config.num_classes == 4 and len(config.pseudo_label_centres) == 4
    assert sum(config.class_prior) == pytest.approx(1.0)
    assert "note: with classification_weight=0" in capsys.readouterr().out


def test_labels_of_an_image_folder_are_its_class_folders(tmp_path):
    for name, value in (("cat", 30), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.full((8, 8), value + index, dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    settings = {**QUICK, "dataset": str(tmp_path / "images"), "batch_size": 4, "models": SMALL, "max_steps": 1}
    folder = train(DDAEBMSettings(output_dir=str(tmp_path / "run"), class_conditional=True, **settings))
    pipe = DDAEBMPipeline.from_pretrained(folder)
    assert pipe.class_names == ["cat", "dog"] and pipe.energy_model.config.label2id == {"cat": 0, "dog": 1}
    assert len(pipe(class_labels=["cat", "dog", "dog"]).images) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_conditional": True, "dataset": "pinwheel", "preset": "toy"}, "'pinwheel' has no labels"),
        ({"pseudo_labels": 1}, "pseudo_labels must be 0 or at least 2"),
        ({"pseudo_labels": 4, "class_conditional": True}, "pseudo_labels must be 0"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\)"),
        ({"classification_weight": -1.0}, "classification_weight"),
    ],
)
def test_mistakes(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(DDAEBMSettings(output_dir=str(tmp_path / "run"), **{**QUICK, "max_steps": 1, **settings}))
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_a_data_set_without_labels(tmp_path):
    image = PIL.Image.new("L", (8, 8))
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"image": [image] * 4}).to_parquet(tmp_path / "data" / "train.parquet")
    settings = {**QUICK, "dataset": str(tmp_path / "data"), "batch_size": 2, "max_steps": 1, "class_conditional": True}
    for options, message in (
        ({}, "must have one column of type ClassLabel"),
        ({"label_column": "y"}, "label_column 'y'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(DDAEBMSettings(output_dir=str(tmp_path / "run"), **settings, **options))


@pytest.mark.parametrize("labels", [{"class_conditional": True}, {"pseudo_labels": 4}])
def test_a_method_that_takes_no_labels_refuses_them(tmp_path, labels):
    method = dataclasses.replace(METHOD, takes_labels=False)
    with pytest.raises(ValueError, match="ddaebm trains without labels"):
        run_training(method, DDAEBMSettings(output_dir=str(tmp_path / "run"), **labels))
