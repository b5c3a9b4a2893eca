"""A training run there has the losses of the CPU's."""

import json

import pytest
import second_device  # noqa: F401 (makes the device)
from accelerate.state import AcceleratorState
from small_runs import SCRIPTS, Script

import hf_ebm


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_losses = [line for line in lines if "learning_rate" in line]
    return [{key: value for key, value in line.items() if "second" not in key} for line in of_losses]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_training_there_has_the_losses_of_the_cpu(tmp_path, name, monkeypatch):
    """A step, a checkpoint, and two more after a start from it: samples, averages, the pipeline that is left behind."""
    script, settings = Script(name), {"max_steps": 3, "sample_every": 2, "checkpoint_every": 2}
    runs = {"here": [{}], "there": [{"max_runtime_seconds": 0.001}, {"resume": "latest"}]}
    for folder, starts in runs.items():
        device = ("ACCELERATE_TORCH_DEVICE", "second") if folder == "there" else ("ACCELERATE_USE_CPU", "true")
        with monkeypatch.context() as patch:
            patch.setenv(*device)
            for changes in starts:
                AcceleratorState._reset_state(reset_partial_state=True)
                script.train(tmp_path / folder, **settings, **changes)
    here, there = (read_losses(tmp_path / folder) for folder in runs)
    assert len(here) == len(there) == 3
    for expected, found in zip(here, there, strict=True):  # an optimizer's first steps enlarge what rounding does
        assert found == pytest.approx(expected, rel=0.1, abs=0.02)
    pipeline = getattr(hf_ebm, script.pipeline).from_pretrained(tmp_path / "there")
    assert len(pipeline(2).images) == 2
