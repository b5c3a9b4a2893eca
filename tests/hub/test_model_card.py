"""Model cards contain what a run folder records, in the Hub's format, and nothing unknown."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from loopback_hub.cards import card_errors
from run_records import INDEX, METRICS, OOD, SUMMARY, evaluation

from hf_ebm.hub.model_card import (
    GENERATED,
    TEMPLATES,
    card_templates,
    evaluation_results,
    hardware_name,
    public_card,
    public_settings,
    public_values,
    read_settings,
    render_card,
    sample_table,
    write_card,
)
from hf_ebm.hub.upload import old_files


def run_folder(tmp_path, metrics=None):
    settings = {"dataset": "digits", "num_timesteps": 4, "batch_size": 8, "seed": 0, "output_dir": str(tmp_path)}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "train_summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    if metrics:
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


@pytest.mark.parametrize(("sample_shape", "shown"), [([1, 8, 8], False), ([2], True)])
def test_settings_of_points_are_on_cards_of_points(tmp_path, sample_shape, shown):
    folder = run_folder(tmp_path)
    (folder / "settings.yaml").write_text(
        yaml.safe_dump({"dataset": "some", "batch_size": 8, "seed": 0, "num_toy_samples": 100})
    )
    (folder / "train_summary.json").write_text(json.dumps({**SUMMARY, "sample_shape": sample_shape}))
    text = write_card(folder).read_text()
    assert ("`num_toy_samples`" in text) == shown and "| `batch_size` | `8` |" in text
    assert ("of shape (B, 2)" in text) == shown


def test_card_with_metrics(tmp_path):
    path = write_card(run_folder(tmp_path, METRICS))
    card = ModelCard.load(path)
    assert card.data.license is None and card.data.library_name == "hf-ebm"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"frechet_distance": 3.5, "auroc": 0.99}
    assert "**3.50**" in card.text and "This is not FID" in card.text and "| noise | 0.9900 |" in card.text
    assert str(tmp_path) not in str(card)


def test_card_without_metrics_omits_them(tmp_path):
    card = ModelCard.load(write_card(run_folder(tmp_path)))
    assert card.data.eval_results is None and "Results" not in card.text and "samples.png" not in card.text
    assert "More information needed" not in card.text and "None" not in card.text


@pytest.mark.parametrize(("preset", "shown"), [("celeba64", True), ("digits", False)])
def test_the_card_of_a_published_preset_lists_the_differences_that_remain(tmp_path, preset, shown):
    folder = run_folder(tmp_path)
    (folder / "settings.yaml").write_text(
        yaml.safe_dump({"dataset": "digits", "preset": preset, "batch_size": 8, "seed": 0})
    )
    assert ("NCSN++" in write_card(folder).read_text()) == shown


def test_card_shows_an_older_records_means_without_intervals(tmp_path):
    folder, record = run_folder(tmp_path), json.loads(json.dumps(OOD))
    for rows in record["metrics"].values():
        rows["mean"] = {metric: figure["value"] for metric, figure in rows["mean"].items()}
    (folder / "ood.json").write_text(json.dumps(record))
    assert "| typicality | 0.910 | 0.910 |" in ModelCard.load(write_card(folder)).text


@pytest.mark.parametrize("pipeline", ["DDAEBMPipeline", "DualMCMCPipeline"])
def test_card_takes_over_what_evaluate_and_eval_ood_wrote(tmp_path, pipeline):
    folder = run_folder(tmp_path, METRICS)
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": pipeline}))
    settings = {"x_num_steps": 3, "x_noise_std": 1, "x_step_size": 1, "z_num_steps": 2}
    with (folder / "settings.yaml").open("a") as file:
        file.write(yaml.safe_dump(settings))
    (folder / "evaluate.json").write_text(json.dumps(evaluation()))
    (folder / "ood.json").write_text(json.dumps(OOD))
    (folder / "histograms.png").write_bytes(b"")
    card = ModelCard.load(write_card(folder))
    results = {result.metric_type: (result.metric_value, result.metric_name) for result in card.data.eval_results}
    assert results["frechet_distance"] == (4.25, "Frechet distance (a network)") and len(card.data.eval_results) == 3
    assert results["kernel_distance"][0] == 0.5 and results["auroc"] == (0.91, "AUROC against noise")
    assert "| Frechet distance | 4.25 | 1.5 |" in card.text and "| MSE | 0.2000 | 0.1000 |" in card.text
    assert "| kernel distance | 0.5 ± 0.1 |  |" in card.text and "Few images." in card.text
    assert "| score | noise | mean |\n|---|---|---|\n| typicality | 0.910 | 0.910 |" in card.text
    assert "| score | AUROC | AUPR, OOD positive | " in card.text and "| 0.9900 |" not in card.text
    assert "| typicality | 0.910 [0.900, 0.920] | 0.820 [0.810, 0.830] | " in card.text
    assert " | 0.340 [0.330, 0.350] |" in card.text  # FPR at 95 % TPR
    assert "3.50" not in card.text and "This is not FID" not in card.text  # one Frechet distance, not a second one
    assert "2 seeds from 0 on" in card.text and "unbiased estimate" not in card.text
    assert "(histograms.png)" in card.text and "(roc.png)" not in card.text


@pytest.mark.parametrize("pipeline", ["DDAEBMPipeline", "DualMCMCPipeline"])
def test_results_have_no_empty_heading(tmp_path, pipeline):
    folder = run_folder(tmp_path, {"modes": 25, "high_quality": 0.9})  # of vectors: the card shows none of them
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": pipeline}))
    assert "## Results" not in str(render_card(folder))
    (folder / "metrics.json").write_text(json.dumps({"auroc": {"noise": 0.5}}))
    assert "## Results" in str(render_card(folder))


def test_every_auroc_is_of_the_data_set_and_names_its_ood_set(tmp_path):
    """Read back, as the Hub does: results of one data set are merged under one name."""
    folder = run_folder(tmp_path, {"auroc": {"noise": 0.9, "inverted": 0.8}})
    found = ModelCard.load(write_card(folder)).data.eval_results
    named = {(result.dataset_name, result.metric_name, result.metric_value) for result in found}
    assert named == {("digits", "AUROC against noise", 0.9), ("digits", "AUROC against inverted", 0.8)}


def test_only_the_standard_inception_gives_an_fid():
    (result, *_) = evaluation_results({}, "digits", evaluation(standard=True), {})
    assert result.metric_name == "FID"


def test_a_kernel_distance_below_zero_is_explained():
    record = evaluation()
    record["metrics"]["kernel_distance"]["samples"] = -0.01
    record["protocol"]["num_seeds"] = 1
    assert "unbiased estimate" in sample_table(record) and "1 seed from" in sample_table(record)


def test_a_local_folders_path_is_not_shown(tmp_path):
    record = evaluation()
    record["protocol"]["reference"]["dataset"] = str(tmp_path)
    assert str(tmp_path.parent) not in sample_table(record) and tmp_path.name in sample_table(record)


@pytest.mark.parametrize("template", sorted(card_templates().values()))
@pytest.mark.parametrize("known", [True, False])
def test_every_card_contains_what_is_known_and_is_valid(tmp_path, template, known):
    """With all that a run leaves, and of a folder that holds a pipeline and nothing else."""
    (name,) = [name for name, file in card_templates().items() if file == template]
    if known:
        run_folder(tmp_path, METRICS)
        settings = yaml.safe_load((tmp_path / "settings.yaml").read_text())
        chain = {
            "x_noise_std": 0.01,
            "x_step_size": 0.1,
            "max_grad_norm": None,
            "push_to_hub": True,
            "hub_model_id": "a/b",
            "license": "cc-by-nc-4.0",
        }
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**settings, **chain}))
        (tmp_path / "samples.png").touch()
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"num_train_timesteps": 8}')
    (tmp_path / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": name}))
    card = str(render_card(tmp_path, "user/name"))
    assert card_errors(card) == []
    data = ModelCard(card).data
    assert data.license == ("cc-by-nc-4.0" if known else None) and (data.eval_results is not None) == known
    for text in (
        "**low energy = likely**",
        "unnormalised",
        "under the licence `cc-by-nc-4.0`" if known else "No licence of the weights is stated",
        'from_pretrained("user/name"',
        "neither a probability",
    ):
        assert text in card
    unwanted = ["More information needed", "None", "unknown", "hub_model_id", "push_to_hub=", "| `license`", "Apache"]
    for text in (*unwanted, str(tmp_path)):
        assert text not in card
    assert ("![samples](samples.png)" in card) == (known and template != "energy_scoring.md")
    assert ("1.0 minutes on a test" in card) == ("`batch_size` | `8`" in card) == known
    assert "no threshold yet" in card and "The threshold holds" not in card
    assert ("x 1 process, seed" in card) == known
    if template == "ddaebm.md":
        assert f"a generator that samples in {'8' if known else 'few'} network calls" in card
    if template == "dual_mcmc.md":
        assert "exp(-E(x) / temperature)" in card and ("training chain, is 0.01." in card) == known


def test_a_missing_value_is_an_error_that_names_it(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "train_summary.json").write_text(json.dumps({key: SUMMARY[key] for key in SUMMARY if key != "hardware"}))
    with pytest.raises(ValueError, match=r"template ddaebm\.md: .*'hardware'"):
        write_card(folder)
    assert not (folder / "README.md").exists()


def test_metadata_that_the_hub_refuses_is_found():
    """The tests' own check, which stands for the Hub's, can fail."""
    assert card_errors("# no metadata") and card_errors("---\nlicense: [1\n---\n")
    for dataset, value in ((None, 1.0), ({"name": "digits", "type": "digits"}, None)):
        result = {"task": {"type": "t"}, "dataset": dataset, "metrics": [{"type": "m", "value": value}]}
        data = {"license": "mit", "model-index": [{"name": "x", "results": [result]}]}
        assert card_errors(f"---\n{yaml.safe_dump(data)}---\n")


def test_cards_contain_nothing_of_this_machine(tmp_path):
    (tmp_path / "my-photos").mkdir()
    settings = {"output_dir": "/home/me", "dataset": str(tmp_path / "my-photos"), "resume": "latest", "seed": 1}
    assert public_settings(settings) == {"dataset": "my-photos", "seed": 1}
    assert public_settings({"dataset": "user/photos"}) == {"dataset": "user/photos"}


def test_paths_are_rewritten_wherever_they_are(tmp_path):
    for name in ("a/ood", "b/ood"):
        (tmp_path / name).mkdir(parents=True)
    found = {"sets": [{f"{tmp_path}/a/ood": 1, f"{tmp_path}/b/ood": 2}], "model": str(tmp_path), "text": "x/" * 2000}
    assert public_values(found) == {"sets": [{"ood": 1, "ood (2)": 2}], "model": tmp_path.name, "text": found["text"]}
    assert public_values({"a": "user/photos", "n": 3, "o": None}) == {"a": "user/photos", "n": 3, "o": None}


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("x/" * 5000, "x/" * 5000),  # longer than any path
        ("é" * 200 + "/x", "é" * 200 + "/x"),  # a part of 400 bytes
        ("a long text, " * 400 + "from /home/me/runs/x: 1/2", "a long text, " * 400 + "from x: 1/2"),
        ("~5 images/s", "~5 images/s"),
        ("~no-such-user/x", "~no-such-user/x"),
        ("~", "~"),
        ("~/photos/cats", "cats"),
        ("... and/or", "... and/or"),
        ("a\0/b", "a\0/b"),
        ("/home/me/my photos/cats", "cats"),
        ("C:\\Users\\me\\cats", "cats"),
        ("cannot read /data/me/a.png: 2 images/s (file:///data/me/b)", "cannot read a.png: 2 images/s (b)"),
        ("https://huggingface.co/user/name and E(x) / 2", "https://huggingface.co/user/name and E(x) / 2"),
        ("first\n/home/me/b\n", "first\nb\n"),
        ({"~no-such-user/x": ["/a/b"]}, {"~no-such-user/x": ["b"]}),
    ],
)
def test_any_text_can_be_made_public(value, public):
    assert public_values(value) == public


def test_a_card_shows_no_path_of_this_machine(tmp_path):
    folder = run_folder(tmp_path)
    changed = ["dataset /home/somebody/photos"]
    (folder / "train_summary.json").write_text(json.dumps({**SUMMARY, "changed_settings": changed}))
    assert "dataset photos" in str(render_card(folder)) and "/home/somebody" not in str(render_card(folder))
    text = f"#!/bin/bash, {Path.home()}/a/b, {folder}/c, [x](/docs/y), ~/d/e"
    assert public_card(text, folder) == "#!/bin/bash, b, c, [x](/docs/y), e"


def test_a_pipeline_without_a_card_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match="holds a DDPMPipeline; there are cards of DDAEBMPipeline"):
        render_card(tmp_path)


def test_what_an_earlier_push_left(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    ours = ["model_index.json", "metrics.json", "energy_model/config.json", "energy_model/model.safetensors"]
    old = [
        "energy_model/model-00001-of-00002.safetensors", "energy_model/model.safetensors.index.json",
        "energy_model/preprocessor_config.json", "ood.json", "roc.png",
    ]  # fmt: skip
    kept = [
        "energy_model/model.fp16.safetensors", "energy_model/model.fp16-00001-of-00002.safetensors",
        "energy_model/model.safetensors.index.fp16.json", "energy_model/notes.md", "energy_model/notes.json",
        "banner.png", "mine.json",
        ".gitattributes", "other/config.json", "train/ood.json",
    ]  # fmt: skip
    assert old_files(tmp_path, ours, [*ours[1:], *old, *kept]) == old
    fp16 = [*ours[:3], "energy_model/model.fp16.safetensors"]
    assert set(old_files(tmp_path, fp16, [*ours, *kept])) == {
        "energy_model/model.fp16-00001-of-00002.safetensors", "energy_model/model.safetensors.index.fp16.json",
    }  # fmt: skip


def test_the_guide_and_the_parts_are_no_templates(tmp_path):
    assert {path.name for path in TEMPLATES.glob("*.md")} >= {"guide.md", *card_templates().values()}
    for name in card_templates().values():
        text = (TEMPLATES / name).read_text()
        assert "{{ generated }}" in text
        for part in re.findall(r'include "(.*?)"', text):
            assert part.startswith("_") and (TEMPLATES / part).is_file()
    assert GENERATED in str(render_card(run_folder(tmp_path)))


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [1"])
def test_settings_that_are_not_a_mapping_are_an_error(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        read_settings(tmp_path)


def test_the_threads_of_several_processes_are_counted_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert hardware_name().endswith(", 2 CPU threads") and hardware_name(2).endswith(", 2 CPU threads each")
