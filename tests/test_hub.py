"""Model cards: what a run folder knows, in the Hub's own form, and nothing that is not known."""

import json

import yaml
from huggingface_hub import ModelCard

from hf_ebm.hub import write_card

SUMMARY = {
    "steps": 10,
    "seconds": 60.0,
    "steps_per_second": 0.1667,
    "num_images": 1437,
    "num_processes": 1,
    "hardware": "a test",
    "torch_version": "2.13.0",
    "parameters": {"generator_model": 10, "energy_model": 2000, "inference_model": 30},
}
INDEX = {
    "_class_name": "DDAEBMPipeline",
    "energy_model": ["hf_ebm.models.unet_energy", "UNetEnergyModel"],
    "inference_model": [None, None],
}
METRICS = {
    "frechet_distance": {
        "samples": 3.5,
        "floor": 1.5,
        "pixel_gaussian": 24.5,
        "feature_extractor": "an extractor",
        "num_samples": 100,
        "num_reference": 50,
    },
    "auroc": {"noise": 0.99},
}


def run_folder(tmp_path, metrics=None):
    settings = {"dataset": "digits", "num_timesteps": 4, "batch_size": 8, "seed": 0, "output_dir": str(tmp_path)}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "train_summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    if metrics:
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def test_card_with_metrics(tmp_path):
    path = write_card(run_folder(tmp_path, METRICS))
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and card.data.library_name == "hf-ebm"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"frechet_distance": 3.5, "auroc": 0.99}
    assert "**3.50**" in card.text and "This is not FID" in card.text and "| noise | 0.9900 |" in card.text
    assert str(tmp_path) not in str(card)


def test_card_without_metrics_says_nothing_of_them(tmp_path):
    card = ModelCard.load(write_card(run_folder(tmp_path)))
    assert card.data.eval_results is None and "Results" not in card.text and "samples.png" not in card.text
    assert "More information needed" not in card.text and "None" not in card.text
