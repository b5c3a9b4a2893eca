"""Evaluation of run folders with the features of a classifier of their data."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from hf_ebm.cli.main import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_evaluates_as_the_command_and_updates_the_card(tiny_pipeline, tmp_path, monkeypatch, capsys):
    from hf_ebm.hub.model_card import write_card

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    benchmark = importlib.import_module("evaluate_with_classifier")
    model, features = tmp_path / "model", tmp_path / "features"
    tiny_pipeline.save_pretrained(model)
    before = write_card(model).read_text()
    arguments = ["--model", str(model), "--data", "digits", "--num-images", "80", "--features", str(features)]
    monkeypatch.setattr(sys, "argv", ["evaluate_with_classifier.py", *arguments, "--device", "cpu"])
    benchmark.main()
    printed, record = capsys.readouterr().out, json.loads((model / "evaluate.json").read_text())
    main(["evaluate", "--model", str(model), "--dataset", "digits", "--num-images", "80", "--output", str(tmp_path)])
    expected = json.loads((tmp_path / "evaluate.json").read_text())
    assert {**record["protocol"], "model": "model"} == {**expected["protocol"], "model": "model"}
    for name, values in expected["metrics"].items():
        assert record["metrics"][name]["samples"] == pytest.approx(values["samples"], rel=1e-6)
    assert "Frechet distance" in printed and str(model) in printed
    card = (model / "README.md").read_text()
    assert "Frechet distance" not in before and "80 samples against" in card
