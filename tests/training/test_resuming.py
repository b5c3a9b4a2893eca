"""Checkpoints of every training script: a resumed run is the whole one to the last bit, or it is refused."""

import dataclasses
import json

import pytest
import torch
from diffusers.training_utils import EMAModel
from small_runs import Script, all_weights, assert_same_run

import hf_ebm
from hf_ebm.training.checkpoints import list_checkpoints
from hf_ebm.training.run_folder import only_run
from hf_ebm.training.run_settings import changed_settings


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_bit_exact(tmp_path, script, processes):
    """Interrupted after 3 of 5 steps (in the middle of an epoch) and resumed = never interrupted, to the last bit."""
    config = script.config_file(tmp_path, max_steps=5, checkpoint_every=3)
    whole = script.launch(["--config", config, f"output_dir={tmp_path / 'whole'}"], processes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    part = tmp_path / "part"
    code = (
        "import os, sys\n"
        "import hf_ebm.training.running as run\n"
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


def test_the_averages_are_brought_back_to_the_device(tmp_path, script, monkeypatch):
    """accelerate loads them to the CPU, where a GPU's weights cannot be averaged into them."""
    script.train(tmp_path / "run", max_steps=2)
    calls, load, to = [], EMAModel.load_state_dict, EMAModel.to
    monkeypatch.setattr(EMAModel, "load_state_dict", lambda ema, *values: (calls.append("load"), load(ema, *values))[1])
    monkeypatch.setattr(
        EMAModel, "to", lambda ema, *values, **named: (calls.append("to"), to(ema, *values, **named))[1]
    )
    script.train(tmp_path / "run", max_steps=4, resume="latest")
    assert calls[-4:] == ["load", "load", "to", "to"]


def test_no_more_checkpoints_than_the_limit(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=5, checkpoint_every=1, checkpoints_total_limit=2)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000004", "step_00000005"]


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
    assert f"going on from step 2 of 4: {part / 'checkpoints' / 'step_00000002'}" in printed
    assert_same_run(whole, part)


def test_resume_refuses(tmp_path, script):
    with pytest.raises(ValueError, match="no checkpoint"):
        script.train(tmp_path / "run", resume="latest")
    with pytest.raises(ValueError, match="'latest' or a checkpoint folder"):
        script.train(tmp_path / "run", resume=str(tmp_path))
    script.train(tmp_path / "run", max_steps=2)
    with pytest.raises(ValueError, match="another architecture") as error:
        script.train(tmp_path / "run", resume="latest", latent_dim=5)
    assert "generator.latent_dim: 4 there, 5 now" in str(error.value) and "block_out" not in str(error.value)


def test_a_checkpoint_of_another_method_is_told(tmp_path, script):
    script.train(tmp_path / "run", max_steps=2)
    state = tmp_path / "run" / "checkpoints" / "step_00000002" / "trainer_state.json"
    facts = json.loads(state.read_text())
    method = facts["method"]
    state.write_text(json.dumps({**facts, "method": "another", "models": {}}))
    with pytest.raises(ValueError, match=f"is a checkpoint of method another, and this trains {method}; resume it"):
        script.train(tmp_path / "run", resume="latest", max_steps=3)
    facts.pop("method")  # a checkpoint from before methods were written down
    state.write_text(json.dumps({**facts, "models": {f"part{k}": k for k in range(9)}}))
    with pytest.raises(ValueError, match=r"another architecture .* and \d+ more\)"):
        script.train(tmp_path / "run", resume="latest", max_steps=3)


def test_another_runs_checkpoint_replaces_no_run(tmp_path, script):
    """Into an empty folder it goes on; a folder that holds a run is left as it is."""
    script.train(tmp_path / "a", max_steps=2)
    before = all_weights(script.train(tmp_path / "b", seed=1))
    resume = str(tmp_path / "a" / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match="holds a run already"):
        script.train(tmp_path / "b", resume=resume)
    after = all_weights(tmp_path / "b")
    assert all(torch.equal(before[key], after[key]) for key in before)
    script.train(tmp_path / "c", resume=resume)
    assert [path.name for path in list_checkpoints(tmp_path / "c" / "checkpoints")] == ["step_00000004"]


def test_going_back_to_an_earlier_checkpoint_is_said_to_remove_later_ones(tmp_path, script):
    run = tmp_path / "run"
    whole = script.train(tmp_path / "whole")
    script.train(run)
    names = lambda: [path.name for path in list_checkpoints(run / "checkpoints")]  # noqa: E731
    earlier = str(run / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match=r"leaves 1 later checkpoint \(step_00000004 the last\).*overwrite_output_dir"):
        script.train(run, resume=earlier)
    assert names() == ["step_00000002", "step_00000004"]
    script.train(run, resume=earlier, overwrite_output_dir=True, stretch_seconds=1e-9)
    assert names() == ["step_00000002", "step_00000003"]
    script.train(run, resume="latest")
    assert_same_run(whole, run)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path, name):
    script, run = Script("ddaebm"), tmp_path / "run"
    script.train(run)
    damaged = run / "checkpoints" / "step_00000004"
    (damaged / name).write_bytes((damaged / name).read_bytes()[:5])
    expected = (
        r"step_00000004 cannot be loaded .*; go on from .*step_00000002, by resume= with overwrite_output_dir=true"
    )
    with pytest.raises(ValueError, match=expected):
        script.train(run, resume="latest", max_steps=6)
    earlier = run / "checkpoints" / "step_00000002"
    whole = (earlier / "optimizer.bin").read_bytes()
    (earlier / "optimizer.bin").write_bytes(whole[:5])
    with pytest.raises(ValueError, match=r"step_00000002 cannot be loaded .*; begin again"):
        script.train(run, resume=str(earlier), overwrite_output_dir=True, max_steps=6)
    assert damaged.is_dir()  # nothing is removed for a checkpoint that is none
    (earlier / "optimizer.bin").write_bytes(whole)
    script.train(run, resume=str(earlier), overwrite_output_dir=True, max_steps=6)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000004", "step_00000006"]


def test_an_extended_run_goes_on_at_the_final_learning_rate(tmp_path):
    script = Script("ddaebm")
    script.train(tmp_path, final_learning_rate=2e-5)
    script.train(tmp_path, final_learning_rate=2e-5, max_steps=7, resume="latest")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records}
    assert sorted(rates) == [1, 2, 3, 4, 5, 6, 7] and rates[1] > rates[2] > rates[3] > 2e-5
    assert [rates[step] for step in (4, 5, 6, 7)] == pytest.approx([2e-5] * 4)


def learning_rates(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["learning_rate"] for record in records}


def optimizers_rates(folder):
    """What each optimizer takes its next step with, and what its schedule begins from."""
    states = [torch.load(path) for path in sorted(list_checkpoints(folder / "checkpoints")[-1].glob("optimizer*.bin"))]
    return [[(group["lr"], group["initial_lr"]) for group in state["param_groups"]] for state in states]


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_other_learning_rates_are_taken(tmp_path, script, schedule):
    """Those of a run that is gone on with follow its present settings: as if it had had them from the beginning."""
    names = [field.name for field in dataclasses.fields(script.settings_class) if "learning_rate" in field.name]
    new = {name: 7e-4 for name in names if name not in ("final_learning_rate", "learning_rate_schedule")}
    if "learning_rate_schedule" in names:
        new["learning_rate_schedule"] = schedule
    whole, part = script.train(tmp_path / "whole", **new), tmp_path / "part"
    script.train(part, stretch_seconds=1e-9)
    assert learning_rates(part)[1] != learning_rates(whole)[1]
    script.train(part, resume="latest", **new)
    assert [learning_rates(part)[step] for step in (3, 4)] == [learning_rates(whole)[step] for step in (3, 4)]
    assert optimizers_rates(part) == optimizers_rates(whole) != []


def test_more_steps_for_a_run_that_is_under_way(tmp_path, capsys):
    script = Script("ddaebm")
    whole, part = script.train(tmp_path / "whole", max_steps=6), tmp_path / "part"
    script.train(part, max_steps=4, stretch_seconds=1e-9)
    capsys.readouterr()
    script.train(part, max_steps=6, resume="latest")
    printed = capsys.readouterr().out
    assert "note: other settings than before: max_steps 4, now 6." in printed and "is extended" not in printed
    assert [learning_rates(part)[step] for step in (3, 6)] == [learning_rates(whole)[step] for step in (3, 6)]
    assert "up to step 1: max_steps 4." in " ".join((part / "README.md").read_text().split())


def test_other_settings_on_the_way_are_said_and_on_the_card(tmp_path, script, capsys):
    folder = script.train(tmp_path / "run", max_steps=2)
    script.train(folder, max_steps=4, resume="latest", log_every=2)
    printed = capsys.readouterr().out
    assert "the run was finished at step 2 and is extended to max_steps 4; its learning rate goes on at" in printed
    assert "other settings" not in printed and "on the way" not in (folder / "README.md").read_text()
    script.train(folder, max_steps=5, resume="latest", batch_size=4, seed=0)
    assert "note: other settings than before: batch_size 8, now 4." in capsys.readouterr().out
    script.train(folder, max_steps=6, resume="latest", batch_size=4, seed=1)
    card = " ".join((folder / "README.md").read_text().split())
    assert "Settings were changed on the way: up to step 4: batch_size 8; up to step 5: seed 0." in card


def test_of_a_changed_path_only_its_last_part_is_told():
    settings = Script("ddaebm").settings("run", dataset="/new/place/images", batch_size=8)
    earlier = {"dataset": "/home/somebody/photos", "batch_size": 8, "output_dir": "/home/somebody/run"}
    assert changed_settings(earlier, settings) == ["dataset photos"]


def test_a_folder_has_one_run_at_a_time(tmp_path, script):
    with only_run(tmp_path / "run"), pytest.raises(ValueError, match=r"output_dir .*run is being written by another"):
        script.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    script.train(tmp_path / "run", max_steps=1)
