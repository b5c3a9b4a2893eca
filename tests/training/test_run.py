"""What every training script does: it ends as a pipeline, resumes bit for bit, runs in two processes, stops cleanly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hf_ebm
from hf_ebm.training import train_ddaebm, train_dual_mcmc
from hf_ebm.training.checkpoints import list_checkpoints
from hf_ebm.training.loop import TrainingDivergedError, make_accelerator
from hf_ebm.training.run_folder import push_checkpoint
from hf_ebm.training.settings import make_settings

ROOT = Path(__file__).parents[2]
RUN = {"batch_size": 8, "max_steps": 4, "log_every": 1, "sample_every": 0, "checkpoint_every": 2, "num_grid_samples": 4}
SCRIPTS = {  # module, its settings, the pipeline, tiny settings, a loss function it calls once a step and its term
    "ddaebm": (
        train_ddaebm,
        train_ddaebm.DDAEBMSettings,
        "DDAEBMPipeline",
        {
            **RUN,
            "models": {
                "unet": {"base_channels": 8},
                "generator": {"latent_dim": 4},
                "inference": {"block_out_channels": [8, 16]},
            },
        },
        ("adversarial_term", "adversarial"),
    ),
    "dual_mcmc": (
        train_dual_mcmc,
        train_dual_mcmc.DualMCMCSettings,
        "DualMCMCPipeline",
        {
            **RUN,
            "latent_dim": 4,
            "ema_decay": 0.9,
            "x_num_steps": 3,
            "z_num_steps": 2,
            "models": {
                "generator": {"block_out_channels": [8, 8]},
                "energy": {"block_out_channels": [8, 8]},
                "inference": {"block_out_channels": [8, 16]},
            },
        },
        ("inference_loss", "inference"),
    ),
}


class Script:
    """One training script with tiny settings."""

    def __init__(self, name):
        self.name = name
        self.module, self.settings_class, self.pipeline, self.tiny, self.loss = SCRIPTS[name]

    def settings(self, output_dir, **changes):
        return make_settings(self.settings_class, {**self.tiny, "output_dir": str(output_dir), **changes})

    def train(self, output_dir, **changes):
        return self.module.train(self.settings(output_dir, **changes))

    def config_file(self, tmp_path, **changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**self.tiny, **changes}))
        return str(path)

    def launch(self, arguments, processes=1, script=None):
        """The script file as a user starts it: by `accelerate launch`, and with one process by `python` too."""
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
            command += ["--dynamo_backend", "no", "--multi_gpu", "--num_processes", str(processes)]
            command += ["--main_process_port", "0"]  # the next free one: tests run beside each other
        command += [str(script or ROOT / "training" / f"train_{self.name}.py"), *arguments]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(params=sorted(SCRIPTS))
def script(request):
    return Script(request.param)


@pytest.fixture(autouse=True)
def _fresh_accelerator_state():
    """Each run in this process may choose its own precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def all_weights(folder):
    """Every tensor of a run's pipeline."""
    tensors = {}
    for path in sorted(folder.glob("*_model/*.safetensors")):
        tensors.update({f"{path.parent.name}/{key}": value for key, value in load_file(path).items()})
    return tensors


def assert_same_run(first, second):
    a, b = all_weights(first), all_weights(second)
    assert a.keys() == b.keys() and len(a) > 20
    for key in a:
        assert torch.equal(a[key], b[key]), key
    read = lambda folder: [  # noqa: E731
        {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert read(first) == read(second)


def test_a_run_ends_as_a_pipeline_folder(tmp_path, script):
    folder = script.train(tmp_path / "run", sample_every=2, trackers=["tensorboard"])
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model_index.json", "generator_model", "energy_model", "inference_model", "scheduler", "settings.yaml",
        "metrics.jsonl", "samples", "samples.png", "checkpoints", "README.md", "train_summary.json", "logs",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    pipe = getattr(hf_ebm, script.pipeline).from_pretrained(folder)
    assert len(pipe(2).images) == 2
    card = (folder / "README.md").read_text()
    assert "library_name: hf-ebm" in card and "More information needed" not in card and "`batch_size` | `8`" in card
    saved = yaml.safe_load((folder / "settings.yaml").read_text())
    assert make_settings(script.settings_class, saved) == script.settings(
        tmp_path / "run", sample_every=2, trackers=["tensorboard"]
    )
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_bit_exact(tmp_path, script, processes):
    """Interrupted after 3 of 5 steps (in the middle of an epoch) and resumed = never interrupted, to the last bit."""
    config = script.config_file(tmp_path, max_steps=5, checkpoint_every=3)
    whole = script.launch(["--config", config, f"output_dir={tmp_path / 'whole'}"], processes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    part = tmp_path / "part"
    code = (
        "import os, sys\n"
        "import hf_ebm.training.run as run\n"
        f"import hf_ebm.training.train_{script.name} as script\n"
        "original = run.save_checkpoint\n"
        "def die_after(*arguments):\n"
        "    original(*arguments)\n"
        "    os._exit(9)\n"  # as a kill would, right after the checkpoint of step 3
        "run.save_checkpoint = die_after\n"
        "script.main(sys.argv[1:])\n"
    )
    killer = tmp_path / "killer.py"
    killer.write_text(code)
    killed = script.launch(["--config", config, f"output_dir={part}"], processes, script=killer)
    assert killed.returncode != 0 and [p.name for p in list_checkpoints(part / "checkpoints")] == ["step_00000003"]
    state = json.loads((part / "checkpoints" / "step_00000003" / "trainer_state.json").read_text())
    assert state["num_processes"] == processes
    (part / "metrics.jsonl").open("a").write('{"step": 4, "energy_real": 1.0}\n{"step": 5, "ene')  # a torn tail
    (part / "checkpoints" / "tmp_step_00000004").mkdir()  # a half-written checkpoint, which must not be picked
    resumed = script.launch(["--config", config, f"output_dir={part}", "resume=latest"], processes)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(tmp_path / "whole", part)
    assert json.loads((part / "train_summary.json").read_text())["num_processes"] == processes
    random_states = sorted((part / "checkpoints" / "step_00000005").glob("random_states_*.pkl"))
    assert len(random_states) == processes  # each process draws noise of its own
    assert len({path.read_bytes() for path in random_states}) == processes


def test_no_more_checkpoints_than_the_limit(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=5, checkpoint_every=1, checkpoints_total_limit=2)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000004", "step_00000005"]


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


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_under_hf_ebm_train(tmp_path):
    """The launcher and the script both get it, as from a terminal: the script's line is all that is said."""
    script, run = Script("ddaebm"), tmp_path / "run"
    config = script.config_file(tmp_path, max_steps=100_000, checkpoint_every=1)
    command = [sys.executable, "-m", "hf_ebm.cli", "train", "ddaebm", "--config", config, f"output_dir={run}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path / "home")}
    log = tmp_path / "log"
    with log.open("w") as file:
        started = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list_checkpoints(run / "checkpoints") and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=120) == 130
    assert re.search(
        r"\nhf-ebm: stopped by the user at step \d+; the last checkpoint is .*latest\.\n$", log.read_text()
    )
    assert "Traceback" not in log.read_text()


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1)
    before = all_weights(folder)
    with pytest.raises(ValueError, match="overwrite_output_dir=true"):
        script.train(tmp_path / "run", max_steps=1, seed=1)
    assert all(torch.equal(value, before[key]) for key, value in all_weights(folder).items())
    script.train(tmp_path / "run", max_steps=1, seed=1, overwrite_output_dir=True)
    key = next(key for key in before if key.startswith("generator_model/") and before[key].ndim > 1)
    assert not torch.equal(all_weights(folder)[key], before[key])


def test_the_image_processor_pads_as_the_training_did(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1, padding=1)  # the digits themselves are not padded
    assert json.loads((folder / "energy_model" / "preprocessor_config.json").read_text())["padding"] == 1


def test_fewer_steps_than_the_checkpoints_are_refused(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=2)
    (folder / "model_index.json").unlink()  # as a run that was stopped leaves its folder
    with pytest.raises(ValueError, match=r"max_steps must be at least 2, the steps of .*step_00000002, got 1"):
        script.train(tmp_path / "run", max_steps=1, resume="latest")


def test_resuming_a_finished_run_changes_nothing(tmp_path, script, capsys):
    folder = script.train(tmp_path / "run", max_steps=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    script.train(tmp_path / "run", max_steps=1, resume="latest")
    assert "is finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_new_weights_have_no_facts_of_earlier_ones(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1)
    facts = ("calibration.json", "evaluate.json", "ood.json", "roc.png", "histograms.png", "ood.png", "chains.png")
    for name in facts:
        (folder / name).write_text("{}")
    (folder / "metrics.json").write_text('{"auroc": {"noise": 0.123}}')
    grid = (folder / "samples.png").stat().st_mtime_ns
    script.train(tmp_path / "run", max_steps=2, resume="latest")
    assert not [name for name in (*facts, "metrics.json") if (folder / name).exists()]
    assert (folder / "samples.png").stat().st_mtime_ns > grid and "0.123" not in (folder / "README.md").read_text()


def test_facts_alone_make_a_folder_occupied(tmp_path, script):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a run already \(calibration\.json\); choose"):
        script.train(tmp_path / "run", max_steps=1)
    script.train(tmp_path / "run", max_steps=1, overwrite_output_dir=True)
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_a_checkpoint_that_cannot_be_pushed_is_a_warning(tmp_path, script, capsys):
    class Broken:
        def save_pretrained(self, folder):
            raise RuntimeError("no room")

    push_checkpoint(Broken(), script.settings(tmp_path), tmp_path, 3)
    assert "the checkpoint of step 3 is not on the Hub: no room" in capsys.readouterr().out


def test_processes_wait_for_an_upload(tmp_path):
    accelerator = make_accelerator("no", 1, (), tmp_path)
    assert accelerator.init_handler.timeout.total_seconds() >= 6 * 3600


def test_stretches_make_the_whole_run(tmp_path, script, capsys):
    """A run in three starts, each ended by its time, = one that was never stopped, to the last bit."""
    whole, part = script.train(tmp_path / "whole", checkpoint_every=0), tmp_path / "part"
    script.train(part, checkpoint_every=0, stretch_seconds=1e-9)
    assert "the stretch ended at step 1 of 4; go on with resume=latest" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(part / "checkpoints")] == ["step_00000001"]
    assert len(getattr(hf_ebm, script.pipeline).from_pretrained(part)(1).images) == 1  # a stretch ends as a run does
    script.train(part, checkpoint_every=0, stretch_seconds=1e-9, resume="latest")
    script.train(part, checkpoint_every=0, stretch_seconds=1e9, resume="latest")
    assert "the stretch ended at step 2 of 4" in (printed := capsys.readouterr().out) and "step 4 of" not in printed
    assert_same_run(whole, part)


def test_peak_memory_is_not_that_of_the_parent():
    held = b"1" * 900_000_000
    code = "import torch; from hf_ebm.training.loop import peak_memory; print(peak_memory(torch.device('cpu')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50e6 < int(out.stdout) < len(held)


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
    assert json.loads((folder / "train_summary.json").read_text())["seconds"] > 1000.0


def test_resume_refuses(tmp_path, script):
    with pytest.raises(ValueError, match="no checkpoint"):
        script.train(tmp_path / "run", resume="latest")
    with pytest.raises(ValueError, match="'latest' or a checkpoint folder"):
        script.train(tmp_path / "run", resume=str(tmp_path))
    script.train(tmp_path / "run", max_steps=2)
    with pytest.raises(ValueError, match="another architecture"):
        script.train(tmp_path / "run", resume="latest", latent_dim=5)


def test_the_script_reports_mistakes_in_one_line(tmp_path, script):
    out = script.launch([f"output_dir={tmp_path / 'run'}", "max_stpes=3"])
    assert out.returncode != 0 and "unknown setting 'max_stpes'; did you mean max_steps" in out.stderr


def test_an_extended_run_goes_on_at_the_final_learning_rate(tmp_path):
    script = Script("ddaebm")
    script.train(tmp_path, final_learning_rate=2e-5)
    script.train(tmp_path, final_learning_rate=2e-5, max_steps=7, resume="latest")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records}
    assert sorted(rates) == [1, 2, 3, 4, 5, 6, 7] and rates[1] > rates[2] > rates[3] > 2e-5
    assert [rates[step] for step in (4, 5, 6, 7)] == pytest.approx([2e-5] * 4)
