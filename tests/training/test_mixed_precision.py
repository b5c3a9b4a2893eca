"""Mixed precision persists: every network uses it at every step, whatever else a run does."""

import json

import mixed_precision
import pytest
import torch
from mixed_precision import DTYPES
from small_runs import all_weights, assert_same_run, in_processes

from hf_ebm.training import trainer

NETWORKS = {
    "ddaebm": {"UNetGeneratorModel", "UNetEnergyModel", "PairInferenceModel"},
    "dual_mcmc": {"ResNetGeneratorModel", "ResNetEnergyModel", "ConvInferenceModel"},
}
CHANGES = {"sample_every": 1, "checkpoint_every": 2, "checkpoints_total_limit": None}


@pytest.mark.parametrize("precision", DTYPES)
def test_every_step_computes_in_it(tmp_path, script, monkeypatch, precision):
    """Through sample grids, checkpoints and a resume, which is bit-exact; saved weights are float32."""
    monkeypatch.setattr(trainer, "Accelerator", mixed_precision.HalfOnCPU)
    record = mixed_precision.record_dtypes(monkeypatch)
    everywhere = {step: {name: {DTYPES[precision]} for name in NETWORKS[script.name]} for step in range(4)}
    whole = script.train(tmp_path / "whole", mixed_precision=precision, **CHANGES)
    assert record == everywhere
    assert len(list((whole / "samples").iterdir())) == 4

    save_checkpoint = trainer.save_checkpoint

    def stop_after(*arguments):
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop_after)
    with pytest.raises(KeyboardInterrupt):
        script.train(tmp_path / "part", mixed_precision=precision, **CHANGES)
    monkeypatch.setattr(trainer, "save_checkpoint", save_checkpoint)
    record.clear()
    part = script.train(tmp_path / "part", mixed_precision=precision, resume="latest", **CHANGES)
    assert record == {step: everywhere[step] for step in (2, 3)}
    assert_same_run(whole, part)
    for grid in (whole / "samples").iterdir():
        assert grid.read_bytes() == (part / "samples" / grid.name).read_bytes()
    assert {value.dtype for value in all_weights(whole).values() if value.is_floating_point()} == {torch.float32}


def test_every_step_of_two_processes_computes_in_it(tmp_path, script, monkeypatch):
    """In fp16, which has a scaler beside what bf16 has."""
    monkeypatch.setattr(trainer, "Accelerator", mixed_precision.HalfOnCPU)
    record = mixed_precision.record_dtypes(monkeypatch)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def train(folder, **changes):
        script.train(folder, mixed_precision="fp16", **CHANGES, **changes)
        everywhere = {name: {"float16"} for name in NETWORKS[script.name]}
        assert record == dict.fromkeys(range(2 if changes else 0, 4), everywhere)

    in_processes(2, train, whole)
    in_processes(2, train, resumed, resume=str(whole / "checkpoints" / "step_00000002"))
    first, second = all_weights(whole), all_weights(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads((whole / "train_summary.json").read_text())["num_processes"] == 2
