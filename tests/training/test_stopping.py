"""How a training script stops before its end: a loss that diverges, Ctrl-C, a mistake in its settings."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from small_runs import Script

from hf_ebm.training.checkpoints import list_checkpoints
from hf_ebm.training.loop import TrainingDivergedError


def test_diverging_loss_stops_with_step_and_term(tmp_path, script, monkeypatch):
    folder, (function, term) = tmp_path / "run", script.loss
    original = getattr(script.module, function)
    calls = []

    def explode(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(script.module, function, explode)
    with pytest.raises(TrainingDivergedError, match=f"step 3: loss term '{term}' is not finite"):
        script.train(folder)
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    weights = load_file(checkpoint / "model.safetensors")
    assert checkpoint.name == "step_00000002" and all(torch.isfinite(value).all() for value in weights.values())
    with pytest.raises(TrainingDivergedError, match=r"passed its limit of 1e-06"):
        script.train(tmp_path / "other", loss_limit=1e-6)


@pytest.mark.parametrize(
    ("number", "said"), [(4, "step_00000002: go on with resume=latest."), (1, "no checkpoint yet")]
)
def test_ctrl_c_ends_a_script_with_one_line_and_130(tmp_path, script, monkeypatch, capsys, number, said):
    config, (function, _) = script.config_file(tmp_path), script.loss
    original, calls = getattr(script.module, function), []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(script.module, function, interrupt)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may have it ignored
    try:
        with pytest.raises(SystemExit) as end:
            script.module.main(["--config", config, f"output_dir={tmp_path / 'run'}"])
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr().err
    assert end.value.code == 130 and "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith(f"hf-ebm: stopped by the user at step {number - 1}; ") and said in last


def start_and_wait(tmp_path):
    """`hf-ebm train` in a session of its own, as from a shell, once it has a checkpoint; what it says is in `log`."""
    script, run = Script("ddaebm"), tmp_path / "run"
    config = script.config_file(tmp_path, max_steps=100_000, checkpoint_every=1)
    command = [sys.executable, "-m", "hf_ebm.cli", "train", "ddaebm", "--config", config, f"output_dir={run}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path / "home")}
    with (tmp_path / "log").open("w") as file:
        started = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list_checkpoints(run / "checkpoints") and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return script, run, started


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_under_hf_ebm_train(tmp_path):
    """The launcher and the script both get it, as from a terminal: the script's line is all that is said."""
    _, _, started = start_and_wait(tmp_path)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=120) == 130
    said = (tmp_path / "log").read_text()
    assert re.search(r"\nhf-ebm: stopped by the user at step \d+; the last checkpoint is .*latest\.\n$", said)
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_terminated_hf_ebm_train_leaves_no_script_behind(tmp_path):
    """A SIGTERM reaches the launcher alone, as from `kill`: the script ends with it, and the folder is free again."""
    script, run, started = start_and_wait(tmp_path)
    with pytest.raises(ValueError, match="is being written by another run"):
        script.train(run, max_steps=100_000, resume="latest")
    started.terminate()
    assert started.wait(timeout=120) == 1
    with pytest.raises(ProcessLookupError):  # nobody is left of its session
        os.killpg(started.pid, 0)
    step = int(list_checkpoints(run / "checkpoints")[-1].name.removeprefix("step_"))
    script.train(run, max_steps=step + 1, resume="latest")


def test_the_script_reports_mistakes_in_one_line(tmp_path, script):
    out = script.launch([f"output_dir={tmp_path / 'run'}", "max_stpes=3"])
    assert out.returncode != 0 and "unknown setting 'max_stpes'; did you mean max_steps" in out.stderr
