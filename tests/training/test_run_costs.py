"""Recorded costs of a run: memory and time, across resumes."""

import inspect
import json
import subprocess
import sys

from hf_ebm.training.trainer import peak_memory


def test_peak_memory_is_not_that_of_the_parent():
    held = b"1" * 900_000_000
    code = "from __future__ import annotations\nimport sys, types\nfrom pathlib import Path\n"  # no seconds for torch
    code += inspect.getsource(peak_memory) + "print(peak_memory(types.SimpleNamespace(type='cpu')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5e6 < int(out.stdout) < len(held)


def test_peak_memory_is_written_and_kept_over_resumes(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1)
    read = lambda: json.loads((folder / "train_summary.json").read_text())["peak_memory_bytes"]  # noqa: E731
    assert 50e6 < read() < 50e9  # of this process, torch included
    state = folder / "checkpoints" / "step_00000001" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "peak_memory_bytes": 10**12}))
    script.train(tmp_path / "run", max_steps=2, resume="latest")
    assert read() == 10**12


def test_training_time_adds_up_over_resumes(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=2)
    state = folder / "checkpoints" / "step_00000002" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "seconds": 1000.0}))
    script.train(tmp_path / "run", max_steps=3, resume="latest")
    summary = json.loads((folder / "train_summary.json").read_text())
    assert summary["seconds"] >= 1000.0  # in tenths; the rate is not rounded
    assert summary["steps_per_second"] < 3 / 1000.0
