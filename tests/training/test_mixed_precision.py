"""Mixed precision persists: every network uses it at every step, whatever else a run does."""

import json
from pathlib import Path

import mixed_precision
import pytest
import torch
from mixed_precision import DTYPES
from small_runs import all_weights, assert_same_run

from hf_ebm.training import trainer

NETWORKS = {
    "ddaebm": {"UNetGeneratorModel", "UNetEnergyModel", "PairInferenceModel"},
    "dual_mcmc": {"ResNetGeneratorModel", "ResNetEnergyModel", "ConvInferenceModel"},
}
CHANGES = {"sample_every": 1, "checkpoint_every": 2, "push_every_checkpoint": True, "checkpoints_total_limit": None}


@pytest.mark.parametrize("precision", DTYPES)
def test_every_step_computes_in_it(tmp_path, script, monkeypatch, precision):
    """Through sample grids, checkpoints, their pushes and a resume, which is bit-exact; saved weights are float32."""
    monkeypatch.setattr(trainer, "Accelerator", mixed_precision.HalfOnCPU)
    pushed = mixed_precision.push_nowhere(monkeypatch)
    record = mixed_precision.record_dtypes(monkeypatch)
    everywhere = {step: {name: {DTYPES[precision]} for name in NETWORKS[script.name]} for step in range(4)}
    whole = script.train(tmp_path / "whole", mixed_precision=precision, **CHANGES)
    assert record == everywhere
    assert len(pushed) == 2 and all("model_index.json" in files for files in pushed)
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


def test_every_step_of_two_processes_computes_in_it(tmp_path, script):
    config = script.config_file(tmp_path, **CHANGES)
    done = script.launch([script.name, config, str(tmp_path)], 2, script=Path(mixed_precision.__file__))
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        record = json.loads((tmp_path / f"{rank}.json").read_text())
        for precision, dtype in DTYPES.items():
            step = {network: [dtype] for network in NETWORKS[script.name]}
            assert record[precision] == {str(number): step for number in range(4)}
            assert record[f"{precision}-resumed"] == {str(number): step for number in (2, 3)}
    for precision in DTYPES:
        whole, resumed = all_weights(tmp_path / precision), all_weights(tmp_path / f"{precision}-resumed")
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
        summary = json.loads((tmp_path / precision / "train_summary.json").read_text())
        assert summary["num_processes"] == 2
