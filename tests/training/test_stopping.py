"""How a training script stops early: a diverging loss, Ctrl-C, invalid settings."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import PIL.Image
import pytest
import torch
from fresh_process import run_in_fresh_process
from safetensors.torch import load_file
from small_runs import ROOT, Script, assert_same_run, in_processes, launcher

from hf_ebm.training import launch, run_folder
from hf_ebm.training.checkpointing import list_checkpoints, read_state
from hf_ebm.training.trainer import TrainingDivergedError


def test_diverging_loss_stops_with_step_and_term(tmp_path, script, monkeypatch):
    folder, (function, term) = tmp_path / "run", script.loss
    original = getattr(script.module, function)
    calls = []

    def explode(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(script.module, function, explode)
    expected = f"step 3: loss term '{term}' is not finite.*step_00000002: resume with a smaller .* and resume=latest"
    with pytest.raises(TrainingDivergedError, match=expected):
        script.train(folder)
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    weights = load_file(checkpoint / "model.safetensors")
    assert checkpoint.name == "step_00000002" and all(torch.isfinite(value).all() for value in weights.values())
    with pytest.raises(TrainingDivergedError, match=r"passed its limit of 1e-06.*no checkpoint yet: restart"):
        script.train(tmp_path / "at once", loss_limit=1e-6)


@pytest.mark.parametrize("max_steps", [4, 6])
def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, script, monkeypatch, max_steps):
    """An update of finite losses spoils the step of a checkpoint, which may be the last one: the good one stays."""
    step, calls, updates = torch.optim.Adam.step, [], {"ddaebm": 2, "dual_mcmc": 3}[script.name]

    def spoil(self, *arguments, **kwargs):
        calls.append(1)
        result = step(self, *arguments, **kwargs)
        if len(calls) == 4 * updates:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    expected = r"step 4: after the step '.*' of .*Model is not finite; .*is .*step_00000002: resume with "
    with pytest.raises(TrainingDivergedError, match=expected):
        script.train(tmp_path / "run", checkpoint_every=2, checkpoints_total_limit=1, max_steps=max_steps)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002"]
    assert not (tmp_path / "run" / "model_index.json").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_loses_no_step(tmp_path, script, num_workers):
    """The run stops when it reads the image, keeps the steps before, and resumes once the image is repaired."""
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(40):
        PIL.Image.new("L", (8, 8), number).save(folder / f"{number:02}.png")
    (folder / "20.png").write_bytes(b"no picture")
    changes = {"dataset": str(tmp_path / "images"), "checkpoint_every": 0, "num_workers": num_workers, "batch_size": 4}
    with pytest.raises(
        ValueError, match=r"20\.png.* cannot be read .* steps learned is in a checkpoint: repair"
    ) as end:
        script.train(tmp_path / "run", max_steps=20, **changes)
    assert "Traceback" not in str(end.value)
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    done = read_state(checkpoint)["step"]
    assert 0 < done < 20
    PIL.Image.new("L", (8, 8), 20).save(folder / "20.png")
    script.train(tmp_path / "run", max_steps=done + 2, resume="latest", **changes)
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_a_diverging_run_ends_with_one_line_and_1(tmp_path, script, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments = ["--config", script.config_file(tmp_path), f"output_dir={tmp_path / 'run'}", "loss_limit=1e-6"]
    with pytest.raises(SystemExit) as end:
        script.module.main(arguments)
    printed = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("hf-ebm: error: training diverged at step 0: loss term ")


def stop_by_ctrl_c(script, tmp_path, monkeypatch, capsys, step, presses=1, **changes):
    """Run the script's `main`, pressing Ctrl-C while it works on its `step`-th step; the last line of its output."""
    config, (function, _) = script.config_file(tmp_path, **changes), script.loss
    original, calls = getattr(script.module, function), []

    def interrupt(*arguments):
        calls.append(1)
        for _ in range(presses if len(calls) == step else 0):
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may have it ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(script.module, function, interrupt)
            patch.setenv("ACCELERATE_USE_CPU", "true")
            with pytest.raises(SystemExit) as end:
                script.module.main(["--config", config, f"output_dir={tmp_path / 'run'}"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr().err
    assert end.value.code == 130 and "Traceback" not in printed and "stopping after this step" in printed
    return printed.splitlines()[-1]


@pytest.mark.parametrize("step", [1, 3])
def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path, script, monkeypatch, capsys, step):
    run = tmp_path / "run"
    last = stop_by_ctrl_c(script, tmp_path, monkeypatch, capsys, step, num_workers=1)
    checkpoint = run / "checkpoints" / f"step_{step:08}"
    assert last == (
        f"hf-ebm: stopped by the user at step {step}; the last checkpoint is {checkpoint}: resume with the same "
        "settings and resume=latest."
    )
    script.train(run, resume="latest")
    script.train(tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("step", "said"), [(4, "step_00000002: resume with the same settings and resume=latest."), (1, "no checkpoint yet")]
)
def test_ctrl_c_again_ends_it_at_once(tmp_path, script, monkeypatch, capsys, step, said):
    monkeypatch.setattr(launch, "ONE_PRESS", -1.0)
    last = stop_by_ctrl_c(script, tmp_path, monkeypatch, capsys, step, presses=2)
    assert last.startswith(f"hf-ebm: stopped by the user at step {step - 1}; ") and said in last


def start_and_wait(tmp_path, *command, **changes):
    """A training in a session of its own, as from a shell, once it has made a step; its output is in `log`."""
    script, run = Script("ddaebm"), tmp_path / "run"
    config = script.config_file(tmp_path, max_steps=100_000, checkpoint_every=0, **changes)
    command = [sys.executable, "-m", *command, "--config", config, f"output_dir={run}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path / "home")}
    with (tmp_path / "log").open("w") as file:
        started = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
    wait_for_a_step(run, lambda: started.poll() is None)
    return script, run, started


def wait_for_a_step(run, running):
    deadline, metrics = time.monotonic() + 300, run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and running() and time.monotonic() < deadline:
        time.sleep(0.1)


HF_EBM_TRAIN = ("hf_ebm.cli.main", "train", "ddaebm")


def assert_stopped_with_a_checkpoint(tmp_path, run, processes):
    said = (tmp_path / "log").read_text()
    (step,) = set(re.findall(r"hf-ebm: stopped by the user at step (\d+); the last checkpoint is .*latest\.\n", said))
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    assert checkpoint.name == f"step_{int(step):08}" and read_state(checkpoint)["num_processes"] == processes
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_under_hf_ebm_train(tmp_path):
    """The launcher and the script both get it, as from a terminal: the script's lines are all that is said."""
    _, run, started = start_and_wait(tmp_path, *HF_EBM_TRAIN)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=120) == 130
    said = assert_stopped_with_a_checkpoint(tmp_path, run, processes=1)
    assert all(line.startswith(("hf-ebm: ", "ddaebm: ")) for line in said.splitlines() if line.strip())


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_stops_two_processes_at_one_step(tmp_path):
    """Each gets it twice, as from the terminal and from the launcher."""
    script, run = Script("ddaebm"), tmp_path / "run"
    config = script.config_file(tmp_path, max_steps=100_000, checkpoint_every=0)

    def train():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        script.module.main(["--config", config, f"output_dir={run}"])

    def launch():
        os.setsid()
        os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, lambda *_: None)
        in_processes(2, train)

    started = multiprocessing.get_context("fork").Process(target=launch)
    started.start()
    wait_for_a_step(run, started.is_alive)
    for _ in range(2):
        os.killpg(started.pid, signal.SIGINT)
        time.sleep(0.2)
    started.join(120)
    assert started.exitcode not in (None, 0)
    assert_stopped_with_a_checkpoint(tmp_path, run, processes=2)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminated_training_leaves_a_checkpoint_and_no_process(tmp_path, processes):
    """A SIGTERM reaches only the launcher, as from `kill`: the scripts end with it, and the folder is free again."""
    command = HF_EBM_TRAIN if processes == 1 else (*launcher(2), "-m", "hf_ebm.training.train_ddaebm")
    script, run, started = start_and_wait(tmp_path, *command, num_workers=1)
    with pytest.raises(ValueError, match="is being written by another run"):
        script.train(run, max_steps=100_000, resume="latest")
    started.terminate()
    assert started.wait(timeout=120) == (130 if processes == 1 else 1)
    with pytest.raises(ProcessLookupError):  # nobody is left of its session
        os.killpg(started.pid, 0)
    assert_stopped_with_a_checkpoint(tmp_path, run, processes)
    step = int(list_checkpoints(run / "checkpoints")[-1].name.removeprefix("step_"))
    script.train(run, max_steps=step + 1, resume="latest")


def test_the_script_trains_and_reports_mistakes_in_one_line(tmp_path, script, capsys):
    """It is started as users do, by its file."""
    arguments = ["--config", script.config_file(tmp_path), f"output_dir={tmp_path / 'run'}"]
    file = ROOT / "training" / f"train_{script.name}.py"
    code = "import os, runpy, sys\nfile = sys.argv[0] = sys.argv.pop(1)\n"
    code += "sys.path[0] = os.path.dirname(file)\nrunpy.run_path(file, run_name='__main__')"
    run_in_fresh_process(code, str(file), *arguments, "max_steps=1", ACCELERATE_USE_CPU="true")
    assert (tmp_path / "run" / "model_index.json").is_file()
    with pytest.raises(SystemExit) as end:
        script.module.main([*arguments, "max_stpes=3"])
    (said,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "unknown setting 'max_stpes'; did you mean max_steps" in said


# --- at the very end, while the run is being written ---------------------------------------------------------------


def press_at_the_end(script, tmp_path, monkeypatch, presses, *arguments):
    """Run the script's `main`, pressing Ctrl-C when its folder is a pipeline already and lacks its summary and card."""
    name, run = run_folder.hardware_name, tmp_path / "run"
    config = script.config_file(tmp_path)

    def interrupt(*numbers):
        assert (run / "model_index.json").is_file() and not (run / "train_summary.json").exists()
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        return name(*numbers)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "hardware_name", interrupt)
            patch.setenv("ACCELERATE_USE_CPU", "true")
            script.module.main(["--config", config, f"output_dir={run}", *arguments])
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_the_run_is_written_lets_it_be_written(tmp_path, script, monkeypatch, capsys):
    press_at_the_end(script, tmp_path, monkeypatch, 1)
    printed = capsys.readouterr()
    assert "the run is being written, and ends then (again: at once)" in printed.err and "wrote " in printed.out
    assert (tmp_path / "run" / "README.md").is_file() and (tmp_path / "run" / "train_summary.json").is_file()


def test_a_run_that_was_not_written_to_its_end_is_not_finished(tmp_path, script, monkeypatch, capsys):
    """A second Ctrl-C stops the writing at once, and resuming does it anew."""
    monkeypatch.setattr(launch, "ONE_PRESS", -1.0)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        press_at_the_end(script, tmp_path, monkeypatch, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 130 and last.startswith("hf-ebm: stopped by the user at step 4; ")
    assert "step_00000004: resume with the same settings and resume=latest" in last and not (run / "README.md").exists()
    script.train(run, resume="latest")
    assert "is finished" not in capsys.readouterr().out
    script.train(tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")
    assert (run / "README.md").is_file() and (run / "train_summary.json").is_file()
    script.train(run, resume="latest")
    assert "is finished" in capsys.readouterr().out


def test_ctrl_c_while_the_run_is_written_leaves_the_push_to_later(tmp_path, monkeypatch, capsys):
    script = Script("ddaebm")
    monkeypatch.setattr(script.settings_class, "check_hub", lambda self: None)
    monkeypatch.setattr("hf_ebm.training.trainer.push_run", lambda *_: pytest.fail("it was pushed"))
    with pytest.raises(SystemExit) as end:
        press_at_the_end(script, tmp_path, monkeypatch, 1, "push_to_hub=true", "hub_model_id=user/name")
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 130 and f"before the push; hf-ebm push --model {tmp_path / 'run'}" in last
    assert (tmp_path / "run" / "README.md").is_file()


def test_a_keyboard_interrupt_without_a_message_gets_one(monkeypatch, capsys):
    script = Script("ddaebm")

    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.module, "train", interrupt)
    with pytest.raises(SystemExit, match="130"):
        script.module.main([])
    assert capsys.readouterr().err == "hf-ebm: stopped by the user.\n"
