"""The DDAEBM script: it learns, resumes bit for bit, runs in two processes, and stops cleanly when it must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_ebm import DDAEBMPipeline, DiffusionCoefficients
from hf_ebm.training import train_ddaebm
from hf_ebm.training.checkpoints import list_checkpoints
from hf_ebm.training.loop import TrainingDivergedError
from hf_ebm.training.settings import make_settings
from hf_ebm.training.train_ddaebm import DDAEBMSettings, train

ROOT = Path(__file__).parents[2]
TINY = {
    "preset": "digits",
    "models": {
        "unet": {"base_channels": 8},
        "generator": {"latent_dim": 4},
        "inference": {"block_out_channels": [8, 16]},
    },
    "batch_size": 8,
    "max_steps": 4,
    "log_every": 1,
    "sample_every": 0,
    "checkpoint_every": 2,
    "num_grid_samples": 4,
}


@pytest.fixture(autouse=True)
def _fresh_accelerator_state():
    """Each run in this process may choose its own precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def settings(output_dir, **changes):
    return make_settings(DDAEBMSettings, {**TINY, "output_dir": str(output_dir), **changes})


def launch(arguments, processes=1, **run_options):
    """`accelerate launch` of the script file, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command += [str(ROOT / "training" / "train_ddaebm.py"), *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **run_options)


def config_file(tmp_path, **changes):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def all_weights(folder):
    """Every tensor and optimizer number of a run: the pipeline's weights and the last checkpoint."""
    tensors = {}
    for path in sorted(folder.glob("*_model/*.safetensors")):
        tensors.update({f"{path.parent.name}/{key}": value for key, value in load_file(path).items()})
    return tensors


def assert_same_run(first, second):
    a, b = all_weights(first), all_weights(second)
    assert a.keys() == b.keys() and len(a) > 100
    for key in a:
        assert torch.equal(a[key], b[key]), key
    read = lambda folder: [  # noqa: E731
        {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert read(first) == read(second)


def test_a_run_ends_as_a_pipeline_folder(tmp_path):
    folder = train(settings(tmp_path / "run", sample_every=2, trackers=["tensorboard"]))
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model_index.json", "generator_model", "energy_model", "inference_model", "scheduler", "settings.yaml",
        "metrics.jsonl", "samples", "samples.png", "checkpoints", "README.md", "train_summary.json", "logs",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    pipe = DDAEBMPipeline.from_pretrained(folder)
    assert len(pipe(2).images) == 2
    card = (folder / "README.md").read_text()
    assert "library_name: hf-ebm" in card and "More information needed" not in card and "`batch_size` | `8`" in card
    saved = yaml.safe_load((folder / "settings.yaml").read_text())
    assert make_settings(DDAEBMSettings, saved) == settings(tmp_path / "run", sample_every=2, trackers=["tensorboard"])
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]


def test_training_learns(tmp_path):
    """After 150 tiny steps the generator reconstructs better and the energy tells noise from digits."""
    folder = train(
        settings(
            tmp_path / "run", max_steps=150, batch_size=32, energy_learning_rate=2e-3, generator_learning_rate=2e-3,
            checkpoint_every=0, ema_decay=0.9,
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mean = lambda key, part: sum(line[key] for line in part) / len(part)  # noqa: E731
    floor = 64 * DiffusionCoefficients.vp().posterior_variance.mean().item()  # the noise that nothing can predict
    assert mean("reconstruction", lines[-20:]) - floor < 0.85 * (mean("reconstruction", lines[:20]) - floor)
    from hf_ebm.data import load_digits
    from hf_ebm.scoring.metrics import auroc

    pipe = DDAEBMPipeline.from_pretrained(folder)
    noise = torch.rand(360, 1, 8, 8) * 2 - 1
    assert auroc(pipe.score(load_digits("test")[0]).energies, pipe.score(noise).energies) > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reconstruction_latent": "prior", "r1_interval": 2, "r1_include_transition": False},
        {"reconstruction_loss": "lsun_nll", "spacing": "dense_start", "gradient_accumulation_steps": 2},
        {"reconstruction_loss": "gaussian_nll", "num_timesteps": 2, "r1_weight": [0.1, 0.2], "max_grad_norm": 1.0},
        {
            "preset": "toy",
            "dataset": "pinwheel",
            "models": {},
            "spacing": "quadratic",
            "noise_at_t0": True,
            "energy_magnitude_weight": 0.1,
            "reconstruction_loss": "gaussian_nll",
        },
        {"coupled_noise": True, "kl_weight": 0.5, "timestep_weights": [2.0, 1.0, 1.0, 0.0]},
        {"horizontal_flip": True, "channels_last": True, "ema_decay": None, "mixed_precision": "bf16"},
    ],
    ids=["default", "prior-lazy", "lsun-accumulate", "nll-T2-clip", "vectors", "coupled", "flip-bf16-no-ema"],
)
def test_every_option_runs(tmp_path, changes):
    folder = train(settings(tmp_path / "run", max_steps=2, checkpoint_every=0, **changes))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert all(torch.isfinite(torch.tensor(float(value))) for value in record.values())
        if changes.get("r1_interval"):
            assert (record["gradient_penalty"] > 0) == (record["step"] == 1)  # penalised at steps 0, 2, ...


def test_saved_weights_are_the_emas(tmp_path):
    """With decay d the saved weights are the running average of the trained ones; without, the trained ones."""
    plain = train(
        settings(tmp_path / "plain", ema_decay=None, max_steps=3, checkpoint_every=1, checkpoints_total_limit=None)
    )
    averaged = train(settings(tmp_path / "ema", ema_decay=0.5, max_steps=3, checkpoint_every=0))
    key, average = "unet.conv_in.weight", torch.zeros(())
    for step, checkpoint in enumerate(list_checkpoints(plain / "checkpoints"), start=1):
        weight = load_file(checkpoint / "model.safetensors")[key]
        decay = 0.0 if step == 1 else min(0.5, step / (9 + step))  # EMAModel's warm-up
        average = decay * average + (1 - decay) * weight
    saved = load_file(averaged / "generator_model" / "diffusion_pytorch_model.safetensors")[key]
    torch.testing.assert_close(saved, average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved, weight)


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_bit_exact(tmp_path, processes):
    """Interrupted after 3 of 5 steps (in the middle of an epoch) and resumed = never interrupted, to the last bit."""
    config = config_file(tmp_path, max_steps=5, checkpoint_every=3)
    whole = launch(["--config", config, f"output_dir={tmp_path / 'whole'}"], processes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    part = tmp_path / "part"
    code = (
        "import os, sys\n"
        "import hf_ebm.training.train_ddaebm as script\n"
        "original = script.save_checkpoint\n"
        "def die_after(*arguments):\n"
        "    original(*arguments)\n"
        "    os._exit(9)\n"  # as a kill would, right after the checkpoint of step 3
        "script.save_checkpoint = die_after\n"
        "script.main(sys.argv[1:])\n"
    )
    killer = tmp_path / "killer.py"
    killer.write_text(code)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes"]
    command += [str(processes), "--multi_gpu" if processes > 1 else "--cpu", str(killer)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, "--config", config, f"output_dir={part}"], env=environment, capture_output=True)
    assert killed.returncode != 0 and [p.name for p in list_checkpoints(part / "checkpoints")] == ["step_00000003"]
    state = json.loads((part / "checkpoints" / "step_00000003" / "trainer_state.json").read_text())
    assert state["num_processes"] == processes
    (part / "metrics.jsonl").open("a").write('{"step": 4, "energy_real": 1.0}\n{"step": 5, "ene')  # a torn tail
    (part / "checkpoints" / "tmp_step_00000004").mkdir()  # a half-written checkpoint, which must not be picked
    resumed = launch(["--config", config, f"output_dir={part}", "resume=latest"], processes)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(tmp_path / "whole", part)
    assert json.loads((part / "train_summary.json").read_text())["num_processes"] == processes


def test_two_processes_see_different_data_and_average(tmp_path):
    """Two processes are two: other noise and batches each, one set of weights, every sample once an epoch."""
    out = launch(["--config", config_file(tmp_path), f"output_dir={tmp_path / 'run'}"], processes=2)
    assert out.returncode == 0, out.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "train_summary.json").read_text())
    assert summary["num_processes"] == 2
    random_states = list((tmp_path / "run" / "checkpoints" / "step_00000004").glob("random_states_*.pkl"))
    assert len(random_states) == 2 and random_states[0].read_bytes() != random_states[1].read_bytes()


def test_no_more_checkpoints_than_the_limit(tmp_path):
    folder = train(settings(tmp_path / "run", max_steps=5, checkpoint_every=1, checkpoints_total_limit=2))
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000004", "step_00000005"]


def test_diverging_loss_stops_with_step_and_term(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    original = train_ddaebm.adversarial_term
    calls = []

    def explode(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(train_ddaebm, "adversarial_term", explode)
    with pytest.raises(TrainingDivergedError, match="step 3: loss term 'adversarial' is not finite"):
        train(settings(folder))
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    weights = load_file(checkpoint / "model.safetensors")
    assert checkpoint.name == "step_00000002" and all(torch.isfinite(value).all() for value in weights.values())
    with pytest.raises(TrainingDivergedError, match=r"'energy_real' passed loss_limit=0\.001"):
        train(settings(tmp_path / "other", loss_limit=1e-3))


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path):
    folder = train(settings(tmp_path / "run", max_steps=1))
    before = all_weights(folder)
    with pytest.raises(ValueError, match="overwrite_output_dir=true"):
        train(settings(tmp_path / "run", max_steps=1, seed=1))
    assert all(torch.equal(value, before[key]) for key, value in all_weights(folder).items())
    train(settings(tmp_path / "run", max_steps=1, seed=1, overwrite_output_dir=True))
    assert not torch.equal(
        all_weights(folder)["generator_model/unet.conv_in.weight"], before["generator_model/unet.conv_in.weight"]
    )


def test_resume_refuses(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        train(settings(tmp_path / "run", resume="latest"))
    with pytest.raises(ValueError, match="'latest' or a checkpoint folder"):
        train(settings(tmp_path / "run", resume=str(tmp_path)))
    train(settings(tmp_path / "run", max_steps=2))
    other = {**TINY["models"], "generator": {"latent_dim": 5}}
    with pytest.raises(ValueError, match="another architecture"):
        train(settings(tmp_path / "run", resume="latest", models=other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5000}, "batch_size must be at most the data set's 1437"),
        ({"batch_size": 0}, "batch_size"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"reconstruction_loss": "l1"}, "reconstruction_loss"),
        ({"r1_weight": [0.1, 0.2]}, "r1_weight"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"timestep_weights": [1.0, 1.0]}, "timestep_weights"),
        ({"adam_betas": [0.9]}, "adam_betas"),
        ({"trackers": ["comet"]}, "trackers"),
        ({"spacing": "cosine"}, "spacing"),
        ({"dataset": "25gaussians"}, "samples of shape"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_script_reports_mistakes_in_one_line(tmp_path):
    out = launch([f"output_dir={tmp_path / 'run'}", "max_stpes=3"])
    assert out.returncode != 0 and "unknown setting 'max_stpes'; did you mean max_steps" in out.stderr
