"""Dual-MCMC Teaching with labels: what a run learns from them, saves and resumes."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from small_runs import Script, assert_same_run
from torch.testing import assert_close

import hf_ebm
from hf_ebm import DualMCMCPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.data.loading import Classes
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models
from hf_ebm.training.train_dual_mcmc import make_model_settings, make_train_state, refresh_statistics, train_step

SCRIPT = Script("dual_mcmc")


def load(folder):
    pipe = DualMCMCPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_by_default_only_generator_and_inference_model_see_the_labels(tmp_path):
    """A run learns them: the most likely label, which is the best reconstruction's, is the digit's."""
    rates = {"generator_learning_rate": 1e-2, "energy_learning_rate": 1e-3, "inference_learning_rate": 1e-2}
    folder = SCRIPT.train(
        tmp_path / "run", class_conditional=True, max_steps=150, batch_size=32, sample_weight=1.0, x_step_size=8.0,
        x_noise_std=0.01, noised_negatives=0.25, energy_negatives="first_chain", **rates,
    )  # fmt: skip
    pipe = load(folder)
    config = pipe.energy_model.config
    assert config.num_classes == 10 and config.id2label[3] == "3" and not config.class_scores
    assert config.energy_temperature == pytest.approx((0.01 / 8) ** 2) == pytest.approx(pipe.temperature)
    assert config.class_prior == pipe.generator_model.config.class_prior and pipe.class_names[3] == "3"
    assert pipe.inference_model.config.num_classes == 10
    digits, labels = load_digits("test")
    assert pipe.energy_model(digits * 2 - 1).logits is None and "classification" not in records(folder)[-1]
    found = pipe.reconstruct(digits, 0, sample_latents=False, output_type="latent").class_labels
    assert (found == labels).float().mean() > 0.4  # chance is 0.1
    assert pipe.score(digits[:5]).energies.isfinite().all()


@pytest.mark.parametrize("where", [{"class_scores": True}, {"models": {"energy": {"class_scores": True}}}])
def test_class_scores_are_optional(tmp_path, where):
    parts = {part: dict(values) for part, values in SCRIPT.tiny["models"].items()}
    for part, values in where.get("models", {}).items():
        parts[part].update(values)
    folder = SCRIPT.train(tmp_path / "run", class_conditional=True, **{**where, "models": parts})
    energy_model = load(folder).energy_model
    assert energy_model.config.class_scores and energy_model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)
    assert all(record["classification"] > 0 for record in records(folder))


@pytest.mark.parametrize("changes", [{"class_scores": True, "noised_negatives": 0.5}, {"class_scores": False}])
def test_resumed_equals_uninterrupted(tmp_path, changes):
    options = {"class_conditional": True, **changes}
    whole = SCRIPT.train(tmp_path / "whole", **options)
    SCRIPT.train(tmp_path / "part", **options, max_runtime_seconds=1e-6)
    resumed = SCRIPT.train(tmp_path / "part", **options, resume="latest")
    assert_same_run(whole, resumed)


def test_clusters_replace_labels_and_new_images_get_that_of_the_nearest_centre(tmp_path):
    pipe = load(SCRIPT.train(tmp_path / "run", pseudo_labels=4))
    centres = torch.tensor(pipe.energy_model.config.pseudo_label_centres)
    digits = load_digits("test")[0][:20]
    expected = torch.cdist((digits * 2 - 1).flatten(1), centres).argmin(dim=1)
    assert torch.equal(pipe.reconstruct(digits, output_type="pt").class_labels, expected)
    assert pipe(class_labels=[0, 3]).class_labels.tolist() == [0, 3]


@pytest.mark.parametrize("name", ["ddaebm", "dual_mcmc"])
def test_guidance_needs_a_null_class(tmp_path, name):
    """Which dropped labels train, or samples without a label."""
    script = Script(name)
    folder = script.train(tmp_path / "run", class_conditional=True, label_dropout=0.0, max_steps=1)
    pipe = getattr(hf_ebm, script.pipeline).from_pretrained(folder)
    assert len(pipe(class_labels=[3, 1]).images) == 2
    with pytest.raises(ValueError, match=r"guidance_scale must be 1\.0 for a model without a null class, got 2\.0"):
        pipe(class_labels=[3, 1], guidance_scale=2.0)
    for label_dropout, unlabelled, expected in ((0.0, False, False), (0.0, True, True), (0.1, False, True)):
        settings = script.settings("unused", label_dropout=label_dropout)
        parts = script.module.make_model_settings(settings, Classes([0.5, 0.5], unlabelled=unlabelled))
        assert parts["generator"].get("null_class", True) is expected


def test_vectors_learn_clusters(tmp_path):
    toy = {"preset": "toy", "dataset": "25gaussians", "num_toy_samples": 200, "models": {}, "latent_dim": 2}
    pipe = load(SCRIPT.train(tmp_path / "run", pseudo_labels=5, class_scores=True, x_step_size=0.1, **toy))
    assert pipe(class_labels=[0, 4], guidance_scale=2.0, output_type="pt").images.shape == (2, 2)


def test_partly_labelled_data_train_the_null_class_and_the_marginal():
    """A batch without labels has no classification term, and of the embeddings only the null class learns."""
    s = SCRIPT.settings("unused", class_conditional=True, class_scores=True, label_dropout=0.0, weight_decay=0.0)
    models = build_dual_mcmc_models(make_model_settings(s, Classes([0.5, 0.5])))
    before = [models[i].class_embedding.weight.clone() for i in (0, 2)]
    scores = models[1].class_scores.weight.clone()
    state, _ = make_train_state(s, Accelerator(cpu=True), models, steps_per_epoch=1)
    terms = train_step(torch.rand(8, 1, 8, 8), 0, state, s, torch.full((8,), -1))
    assert terms["classification"] == 0.0
    for i, old in zip((0, 2), before, strict=True):
        moved = (models[i].class_embedding.weight - old).norm(dim=1)
        assert moved[2] > 1e-4 and moved[:2].max() == 0.0
    assert (models[1].class_scores.weight - scores).norm() > 1e-4  # of the marginal


def test_running_statistics_are_refreshed_under_the_labels_of_the_data():
    """With one class that never occurs, those of the other one; the null class has no part in them."""
    s = SCRIPT.settings("unused", class_conditional=True)
    generator_model, energy_model, _ = build_dual_mcmc_models(make_model_settings(s, Classes([0.0, 1.0])))
    generator_model.class_embedding.weight.data *= 30.0
    refresh_statistics(generator_model.train(), energy_model)
    z = torch.randn(4000, 4)
    with torch.no_grad():
        x_running = generator_model.eval()(z, 1).sample
        x_batch = generator_model.train()(z, 1).sample
    assert_close(x_running.std(), x_batch.std(), rtol=0.1, atol=0)
    assert (x_running - x_batch).abs().mean() < 0.05 * x_batch.std()


def test_a_labelled_run_initialises_its_networks_once(tmp_path, monkeypatch):
    built, method = [], SCRIPT.module.METHOD

    def count(model_settings):
        models = method.build_models(model_settings)
        built.append(models[0].device.type)
        return models

    monkeypatch.setattr(SCRIPT.module, "METHOD", dataclasses.replace(method, build_models=count))
    SCRIPT.train(tmp_path / "run", class_conditional=True, max_steps=1)
    assert built == ["meta", "cpu"]  # the first for the shape of a sample, without memory
