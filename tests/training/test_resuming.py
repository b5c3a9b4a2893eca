"""Checkpoints of every training script: a resumed run equals the uninterrupted one to the bit, or is an error."""

import copy
import dataclasses
import itertools
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel
from small_runs import Script, all_weights, assert_same_run
from torch.multiprocessing import ProcessExitedException
from transformers import get_cosine_with_min_lr_schedule_with_warmup

import hf_ebm
from hf_ebm.training import trainer
from hf_ebm.training.checkpointing import (
    adopt_position,
    adopt_rate,
    advance,
    check_same_states,
    list_checkpoints,
    rate_after,
    restore_random_states,
    set_random_states,
    warm_up,
)
from hf_ebm.training.config import changed_settings
from hf_ebm.training.run_folder import only_run


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_bit_exact(tmp_path, script, processes, monkeypatch):
    """Interrupted after 3 of 5 steps (in the middle of an epoch) and resumed = never interrupted, to the last bit."""
    part, changes = tmp_path / "part", {"max_steps": 5, "checkpoint_every": 3}
    script.train_in(processes, tmp_path / "whole", **changes)
    save_checkpoint = trainer.save_checkpoint

    def die_after(*arguments):
        save_checkpoint(*arguments)
        os._exit(9)  # as a kill would, right after the checkpoint of step 3

    with monkeypatch.context() as patch, pytest.raises(ProcessExitedException, match="exit code 9"):
        patch.setattr(trainer, "save_checkpoint", die_after)
        script.train_in(processes, part, **changes)
    assert [p.name for p in list_checkpoints(part / "checkpoints")] == ["step_00000003"]
    state = json.loads((part / "checkpoints" / "step_00000003" / "trainer_state.json").read_text())
    assert state["num_processes"] == processes
    (part / "metrics.jsonl").open("a").write('{"step": 4, "energy_real": 1.0}\n{"step": 5, "ene')  # a torn tail
    (part / "checkpoints" / "tmp_step_00000004").mkdir()  # a half-written checkpoint, which must not be picked
    script.train_in(processes, part, resume="latest", **changes)
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


def test_runs_ended_by_max_runtime_seconds_make_the_whole_run(tmp_path, script, capsys):
    """A run in three starts, each ended by its time, = one that was never stopped, to the last bit."""
    whole, part = script.train(tmp_path / "whole", checkpoint_every=0), tmp_path / "part"
    script.train(part, checkpoint_every=0, max_runtime_seconds=1e-9)
    assert "the run reached max_runtime_seconds at step 1 of 4; resume with resume=latest" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(part / "checkpoints")] == ["step_00000001"]
    assert len(getattr(hf_ebm, script.pipeline).from_pretrained(part)(1).images) == 1  # it ends as a finished run does
    script.train(part, checkpoint_every=0, max_runtime_seconds=1e-9, resume="latest")
    script.train(part, checkpoint_every=0, max_runtime_seconds=1e9, resume="latest")
    assert "max_runtime_seconds at step 2 of 4" in (printed := capsys.readouterr().out) and "step 4 of" not in printed
    assert f"resuming from step 2 of 4: {part / 'checkpoints' / 'step_00000002'}" in printed
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


def test_a_checkpoint_of_another_method_is_an_error(tmp_path, script):
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
    """It resumes into an empty folder; a folder with a run is left unchanged."""
    script.train(tmp_path / "a", max_steps=2)
    before = all_weights(script.train(tmp_path / "b", seed=1))
    resume = str(tmp_path / "a" / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match="holds a run already"):
        script.train(tmp_path / "b", resume=resume)
    after = all_weights(tmp_path / "b")
    assert all(torch.equal(before[key], after[key]) for key in before)
    script.train(tmp_path / "c", resume=resume)
    assert [path.name for path in list_checkpoints(tmp_path / "c" / "checkpoints")] == ["step_00000004"]


def test_resuming_from_an_earlier_checkpoint_warns_that_later_ones_are_removed(tmp_path, script):
    run = tmp_path / "run"
    whole = script.train(tmp_path / "whole")
    script.train(run)
    names = lambda: [path.name for path in list_checkpoints(run / "checkpoints")]  # noqa: E731
    earlier = str(run / "checkpoints" / "step_00000002")
    with pytest.raises(ValueError, match=r"leaves 1 later checkpoint \(step_00000004 the last\).*overwrite_output_dir"):
        script.train(run, resume=earlier)
    assert names() == ["step_00000002", "step_00000004"]
    script.train(run, resume=earlier, overwrite_output_dir=True, max_runtime_seconds=1e-9)
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
        r"step_00000004 cannot be loaded .*; resume from .*step_00000002, by resume= with overwrite_output_dir=true"
    )
    with pytest.raises(ValueError, match=expected):
        script.train(run, resume="latest", max_steps=6)
    earlier = run / "checkpoints" / "step_00000002"
    whole = (earlier / "optimizer.bin").read_bytes()
    (earlier / "optimizer.bin").write_bytes(whole[:5])
    with pytest.raises(ValueError, match=r"step_00000002 cannot be loaded .*; restart"):
        script.train(run, resume=str(earlier), overwrite_output_dir=True, max_steps=6)
    assert damaged.is_dir()  # nothing is removed for a checkpoint that is none
    (earlier / "optimizer.bin").write_bytes(whole)
    script.train(run, resume=str(earlier), overwrite_output_dir=True, max_steps=6)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000004", "step_00000006"]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_every_file_of_a_checkpoint_is_needed(tmp_path, script, damage):
    """Networks, optimizers, schedules, averages and random states: without any of them a run would be another one."""
    run = script.train(tmp_path / "run", checkpoint_every=2)
    checkpoint = run / "checkpoints" / "step_00000004"
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "trainer_state.json")
    assert {"random_states_0.pkl", "optimizer_1.bin", "model_2.safetensors", "custom_checkpoint_3.pkl"} <= set(names)
    for name in names:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        if damage == "truncated":
            (checkpoint / name).write_bytes(whole[:100])
        with pytest.raises(
            ValueError, match=r"step_00000004 cannot be loaded .*; resume from .*step_00000002, by resume"
        ):
            script.train(run, resume="latest", max_steps=6)
        (checkpoint / name).write_bytes(whole)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000002", "step_00000004"]


def test_the_random_states_of_every_process_are_needed(tmp_path):
    script = Script("ddaebm")
    checkpoint = script.train(tmp_path / "run", max_steps=2) / "checkpoints" / "step_00000002"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "num_processes": 2}))
    for content in (None, b"", (checkpoint / "random_states_0.pkl").read_bytes()[:-100]):
        if content is not None:
            (checkpoint / "random_states_1.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=r"step_00000002 cannot be loaded .*; restart"):
            script.train(tmp_path / "run", resume="latest", max_steps=3)


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 2, "position": {"epoch": 0, "batch": 2}}'])
def test_facts_that_lack_something_are_damage(tmp_path, content):
    script = Script("ddaebm")
    checkpoint = script.train(tmp_path / "run", max_steps=2) / "checkpoints" / "step_00000002"
    (checkpoint / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=r"step_00000002 cannot be loaded .*trainer_state.json lacks .*; restart"):
        script.train(tmp_path / "run", resume="latest", max_steps=3)


@pytest.mark.parametrize("place", ["checkpoints/best/step_00000002", "mine/step_00000002"])
def test_the_checkpoint_that_a_run_resumes_from_is_not_removed(tmp_path, place):
    """A copy in another folder of the run that is replaced."""
    script, run = Script("ddaebm"), tmp_path / "run"
    whole = script.train(tmp_path / "whole")
    shutil.copytree(script.train(run) / "checkpoints" / "step_00000002", run / place)
    script.train(run, resume=str(run / place), overwrite_output_dir=True, checkpoint_every=0)
    assert (run / place / "optimizer.bin").is_file()
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000004"]
    assert all(torch.equal(value, all_weights(whole)[key]) for key, value in all_weights(run).items())


def test_nothing_is_removed_for_a_checkpoint_that_would_go_or_is_damaged(tmp_path):
    script, run = Script("ddaebm"), tmp_path / "run"
    checkpoints = script.train(run) / "checkpoints"
    inner = checkpoints / "step_00000004" / "inner" / "step_00000002"
    shutil.copytree(checkpoints / "step_00000002", inner)
    damaged = tmp_path / "other" / "step_00000002"
    shutil.copytree(checkpoints / "step_00000002", damaged)
    (damaged / "optimizer.bin").write_bytes(b"")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"resume=.*step_00000002 is part of the run that overwrite_output_dir=true"):
        script.train(run, resume=str(inner), overwrite_output_dir=True)
    with pytest.raises(ValueError, match="cannot be loaded"):
        script.train(run, resume=str(damaged), overwrite_output_dir=True)
    with pytest.raises(ValueError, match=r"dataset=.*samples is part of the run that overwrite_output_dir=true"):
        shutil.copy(run / "samples.png", run / "samples" / "step_00000009.png")
        script.train(run, dataset=str(run / "samples"), batch_size=1, overwrite_output_dir=True)
    (run / "samples" / "step_00000009.png").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_later_checkpoints_are_those_of_more_steps(tmp_path):
    """Whatever the folder is called that a run resumes from, and though ``checkpoints/step_*`` is a link."""
    script, run = Script("ddaebm"), tmp_path / "run"
    checkpoints = script.train(run) / "checkpoints"
    (checkpoints / "step_00000002").rename(checkpoints / "zbest")
    (checkpoints / "step_00000004").rename(tmp_path / "elsewhere")
    (checkpoints / "step_00000004").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"leaves 1 later checkpoint \(step_00000004 the last\)"):
        script.train(run, resume=str(checkpoints / "zbest"))
    script.train(run, max_steps=5, resume="latest")
    script.train(run, max_steps=3, resume=str(checkpoints / "zbest"), overwrite_output_dir=True)
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_00000003"]
    assert (checkpoints / "zbest").is_dir() and (tmp_path / "elsewhere" / "optimizer.bin").is_file()


def test_settings_that_a_checkpoint_restores_are_those_of_the_resumed_run(tmp_path, script, capsys):
    changes = {"adam_betas": [0.5, 0.99], "ema_decay": 0.1}
    changes |= {"weight_decay": 0.25} if script.name == "dual_mcmc" else {}
    script.train(tmp_path, ema_decay=0.9, max_steps=12, max_runtime_seconds=1e-9)
    script.train(tmp_path, max_steps=12, resume="latest", checkpoint_every=0, **changes)
    assert "adam_betas [0.0, 0.9], now (0.5, 0.99)" in capsys.readouterr().out
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[-1]
    groups = [torch.load(path)["param_groups"][0] for path in sorted(checkpoint.glob("optimizer*.bin"))]
    assert [tuple(group["betas"]) for group in groups] == [(0.5, 0.99)] * len(groups)
    assert [group["weight_decay"] for group in groups] == {"ddaebm": [0.0, 0.0], "dual_mcmc": [0.25, 0.0, 0.25]}[
        script.name
    ]
    states = [torch.load(path) for path in sorted(checkpoint.glob("custom_checkpoint_*.pkl"))]
    averages = [state for state in states if "shadow_params" in state]
    assert [state["decay"] for state in averages] == [0.1, 0.1]


@pytest.mark.parametrize(("before", "now"), [(0.9, None), (None, 0.9)])
def test_averages_cannot_be_begun_or_ended_on_resume(tmp_path, script, before, now):
    script.train(tmp_path / "run", max_steps=2, ema_decay=before)
    yaml = {None: "null", 0.9: "0.9"}
    expected = (
        f"ema_decay cannot be changed from {yaml[before]} to {yaml[now]} on resume.*with ema_decay={yaml[before]}"
    )
    for max_steps in (2, 4):
        with pytest.raises(ValueError, match=expected):
            script.train(tmp_path / "run", max_steps=max_steps, ema_decay=now, resume="latest")


def test_fp16_cannot_be_begun_on_resume(tmp_path):
    settings = Script("ddaebm").settings("run", mixed_precision="fp16")
    state = {"step": 1, "position": {}, "num_processes": 1, "settings": {"mixed_precision": "bf16"}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="mixed_precision cannot be changed from bf16 to fp16"):
        check_same_states(tmp_path, settings)
    check_same_states(tmp_path, dataclasses.replace(settings, mixed_precision="no"))


def test_a_changed_seed_counts(tmp_path):
    script = Script("ddaebm")
    checkpoint = script.train(tmp_path, max_steps=2) / "checkpoints" / "step_00000002"
    accelerator = SimpleNamespace(process_index=0, print=print)
    set_random_states(checkpoint, 0)
    saved = torch.get_rng_state()
    for seed, restored in ((0, True), (1, False)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        restore_random_states(checkpoint, accelerator, script.settings(tmp_path, seed=seed))
        assert torch.equal(torch.get_rng_state(), saved) is restored
        assert torch.equal(torch.get_rng_state(), before) is not restored


def test_the_place_in_the_data_is_kept_for_another_batch_size():
    state = {"position": {"epoch": 3, "batch": 6}, "num_processes": 2, "settings": {"batch_size": 8}}
    settings = Script("ddaebm").settings("run", batch_size=16)
    assert dataclasses.astuple(adopt_position(state, settings, 1)) == (3, 6)
    assert dataclasses.astuple(adopt_position(state, settings, 2)) == (3, 3)


def test_an_extended_run_resumes_at_the_final_learning_rate(tmp_path):
    script = Script("ddaebm")
    script.train(tmp_path, final_learning_rate=2e-5)
    script.train(tmp_path, final_learning_rate=2e-5, max_steps=7, resume="latest")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records}
    assert sorted(rates) == [1, 2, 3, 4, 5, 6, 7] and rates[1] > rates[2] > rates[3] > 2e-5
    assert [rates[step] for step in (4, 5, 6, 7)] == pytest.approx([2e-5] * 4)


def cosine(optimizer, max_steps, final=1e-5):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_steps, min(final, optimizer.defaults["lr"]))


def resumed(schedule, max_steps, step, make, initial=1e-3, batch=0, new_end=False):
    """The schedule of a new start after `step` steps, with the state of `schedule`."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=initial)
    new = make(optimizer, max_steps)
    beginning = copy.deepcopy(new.state_dict())
    optimizer.load_state_dict(copy.deepcopy(schedule.optimizer.state_dict()))
    new.load_state_dict(copy.deepcopy(schedule.state_dict()))
    adopt_rate(new, beginning, max_steps - step, batch, new_end)
    return new


def run(schedule, steps):
    rates = [schedule.optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        schedule.optimizer.step()
        advance(schedule)
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == [rates[-1]]
    return rates


@pytest.mark.parametrize("ends", [(6, 20, 40), (6, 7, 8, 100), (20, 10), (20, 20, 20)])
@pytest.mark.parametrize("stop", [1.0, 0.3])
def test_the_rate_of_an_extended_run_anneals_from_its_last_one(ends, stop):
    """Runs that end or are stopped on the way, again and again: the rate never rises, and ends at the final one."""
    schedule = cosine(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3), ends[0])
    rates, step = [1e-3], 0
    for max_steps in ends:
        if step:
            schedule = resumed(schedule, max_steps, step, cosine)
        done = max(1, round(stop * (max_steps - step)))
        expected = rate_after(schedule, max_steps - step)
        rates += run(schedule, done)
        step += done
        assert rate_after(schedule, max_steps - step) == pytest.approx(expected)
    rates += run(schedule, ends[-1] - step)
    assert all(after <= before for before, after in itertools.pairwise(rates)) and rates[-1] == pytest.approx(1e-5)


def test_the_rate_of_a_resumed_run_is_that_of_a_whole_one():
    """To the last bit, also after an extension, and from where a changed setting takes it."""
    first = cosine(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3), 10)
    run(first, 4)
    whole = run(copy.deepcopy(first), 6)
    assert run(resumed(first, 10, 4, cosine), 6) == whole
    extended = resumed(first, 30, 4, cosine)
    whole = run(copy.deepcopy(extended), 26)
    run(extended, 9)
    assert run(resumed(extended, 30, 13, cosine), 17) == whole[9:]
    asked = run(resumed(extended, 30, 13, cosine, initial=2e-3), 17)
    assert asked[0] == 2e-3 and asked[-1] == pytest.approx(1e-5)
    higher = lambda optimizer, steps: cosine(optimizer, steps, final=5e-4)  # noqa: E731
    assert run(resumed(extended, 30, 13, higher, new_end=True), 17)[-1] == pytest.approx(5e-4)


def test_the_decay_per_epoch_continues():
    def decay(per_epoch, gamma):
        return lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, per_epoch, gamma)

    schedule = decay(4, 0.5)(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 0)
    run(schedule, 6)
    resume = lambda make: resumed(schedule, 14, 6, make, initial=1.0, batch=2)  # noqa: E731
    assert rate_after(resume(decay(4, 0.5)), 8) == 0.125
    assert run(resume(decay(4, 0.5)), 8) == [0.5] * 2 + [0.25] * 4 + [0.125] * 3
    assert run(resume(decay(4, 0.1)), 4) == pytest.approx([0.5] * 2 + [0.05] * 3)
    assert run(resume(decay(3, 0.5)), 4) == [0.5] + [0.25] * 3 + [0.125]  # epochs are shorter now
    assert run(resume(cosine), 8)[::8] == pytest.approx([0.5, 1e-5])
    annealing = resume(cosine)
    run(annealing, 4)
    back = resumed(annealing, 14, 10, decay(4, 0.5), initial=1.0, batch=2)
    last = annealing.optimizer.param_groups[0]["lr"]
    assert run(back, 2) == [last, last, last / 2] and "T_max" not in back.state_dict()


def test_the_warm_up_is_diffusers():
    """Linear from 0, then the cosine with its floor, as `transformers` computes it."""
    ours = cosine(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3), max_steps=9 - 3, final=1e-4)
    other = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(other, 3, 9, min_lr=1e-4)
    warm_up(ours, 0, 3)
    for step in range(1, 10):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr())
        ours.optimizer.step()
        advance(ours, step, 3)
        other.step()
        theirs.step()
    assert ours.get_last_lr() == pytest.approx([1e-4]) == theirs.get_last_lr()


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_a_run_resumed_in_and_after_its_warm_up_is_the_whole_run(tmp_path, schedule):
    script = Script("dual_mcmc")
    settings = {"lr_warmup_steps": 2, "learning_rate_schedule": schedule, "learning_rate_decay": 0.5}
    settings |= {"dataset_split": "test", "batch_size": 180}  # an epoch has two batches
    whole, part = script.train(tmp_path / "whole", max_steps=5, **settings), tmp_path / "part"
    for seconds in (1e-9, 1e-9, 1e-9, None):
        resume = "latest" if part.is_dir() else None
        script.train(part, max_steps=5, max_runtime_seconds=seconds, resume=resume, **settings)
    assert_same_run(whole, part)
    rates = list(learning_rates(whole).values())
    assert rates[:2] == pytest.approx([1.5e-4, 3e-4])
    if schedule == "exponential":
        assert rates == pytest.approx([1.5e-4, 3e-4, 3e-4, 1.5e-4, 1.5e-4])


def test_a_warm_up_that_is_changed_on_resuming(tmp_path):
    script, run = Script("ddaebm"), tmp_path / "run"
    script.train(run, max_steps=6, lr_warmup_steps=2, max_runtime_seconds=1e-9)
    warm = {"max_steps": 6, "lr_warmup_steps": 2, "max_runtime_seconds": 1e-9, "energy_learning_rate": 1.0}
    same = all_weights(script.train(tmp_path / "other", **warm))  # the first step has rate 0
    assert all(torch.equal(value, same[name]) for name, value in all_weights(run).items() if "energy" in name)
    for changed in (0, 1, 4):
        with pytest.raises(ValueError, match=f"lr_warmup_steps cannot be changed from 2 to {changed} on resume"):
            script.train(run, max_steps=6, lr_warmup_steps=changed, resume="latest")
    # new rates and another end, in the warm-up: it goes on to the new rate, and the cosine to its end
    new = {"energy_learning_rate": 4e-4, "max_steps": 5}
    script.train(run, lr_warmup_steps=2, max_runtime_seconds=1e-9, resume="latest", **new)
    script.train(run, lr_warmup_steps=2, max_runtime_seconds=1e-9, resume="latest", **new)
    script.train(run, lr_warmup_steps=0, resume="latest", **new)  # over: changes nothing
    rates = list(learning_rates(run).values())
    assert rates[:2] == pytest.approx([5e-5, 4e-4]) and 4e-4 > rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="lr_warmup_steps must be below max_steps=4, got 4"):
        script.settings(tmp_path, lr_warmup_steps=4)


def test_a_run_that_is_extended_again_and_again(tmp_path, script, capsys):
    """Each part continues as one run of its length would have, and both rates are printed."""
    settings = {"learning_rate_schedule": "cosine"} if script.name == "dual_mcmc" else {}
    script.train(tmp_path / "a", max_steps=2, checkpoint_every=0, **settings)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    script.train(tmp_path / "a", max_steps=5, checkpoint_every=0, resume="latest", **settings)
    printed = capsys.readouterr().out
    assert "is extended to max_steps 5" in printed
    assert "note: the learning rate goes from 1e-05 to 1e-05 between steps 2 and 5." in printed
    for _ in range(3):
        script.train(tmp_path / "b", max_steps=5, max_runtime_seconds=1e-9, resume="latest", **settings)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    script.train(tmp_path / "b", max_steps=9, max_runtime_seconds=1e-9, resume="latest", **settings)
    script.train(tmp_path / "b", max_steps=12, max_runtime_seconds=1e-9, resume="latest", **settings)
    rates = learning_rates(tmp_path / "b")
    assert sorted(rates) == [1, 2, 3, 4, 5, 6, 7]
    assert [rates[step] for step in (2, 3, 4, 5, 6, 7)] == pytest.approx([1e-5] * 6)


def learning_rates(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["learning_rate"] for record in records}


def optimizers_rates(folder):
    """What each optimizer takes its next step with, and what its schedule begins from."""
    states = [torch.load(path) for path in sorted(list_checkpoints(folder / "checkpoints")[-1].glob("optimizer*.bin"))]
    return [[(group["lr"], group["initial_lr"]) for group in state["param_groups"]] for state in states]


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_other_learning_rates_are_taken(tmp_path, script, schedule):
    """A resumed run continues from the initial rates of its settings where they are new."""
    names = [field.name for field in dataclasses.fields(script.settings_class) if "learning_rate" in field.name]
    new = {name: 7e-4 for name in names if name not in ("final_learning_rate", "learning_rate_schedule")}
    if "learning_rate_schedule" in names:
        new["learning_rate_schedule"] = schedule
    whole, part = script.train(tmp_path / "whole", **new), tmp_path / "part"
    script.train(part, max_runtime_seconds=1e-9)
    assert learning_rates(part)[1] != learning_rates(whole)[1]
    script.train(part, resume="latest", **new)
    rates = learning_rates(part)
    assert 7e-4 >= rates[2] >= rates[3] >= rates[4] and rates[4] == pytest.approx(learning_rates(whole)[4])
    starts = [[start for _, start in groups] for groups in optimizers_rates(part)]
    assert starts == [[start for _, start in groups] for groups in optimizers_rates(whole)] != []


def test_more_steps_for_a_run_that_is_under_way(tmp_path, capsys):
    script = Script("ddaebm")
    part = tmp_path / "part"
    script.train(part, max_steps=4, max_runtime_seconds=1e-9)
    capsys.readouterr()
    script.train(part, max_steps=6, resume="latest")
    printed = capsys.readouterr().out
    assert "note: other settings than before: max_steps 4, now 6." in printed and "is extended" not in printed
    rates = list(learning_rates(part).values())
    assert f"note: the learning rate goes from {rates[0]:g} to 1e-05 between steps 1 and 6." in printed
    assert sorted(rates, reverse=True) == rates and rates[-1] == pytest.approx(1e-5)
    assert "up to step 1: max_steps 4." in " ".join((part / "README.md").read_text().split())


def test_settings_changed_on_resuming_are_reported_and_on_the_card(tmp_path, script, capsys):
    folder = script.train(tmp_path / "run", max_steps=2)
    script.train(folder, max_steps=4, resume="latest", log_every=2)
    printed = capsys.readouterr().out
    assert "the run was finished at step 2 and is extended to max_steps 4." in printed
    assert "note: the learning rate goes from " in printed
    assert "other settings" not in printed and "changed on resuming" not in (folder / "README.md").read_text()
    script.train(folder, max_steps=5, resume="latest", batch_size=4, seed=0)
    assert "note: other settings than before: batch_size 8, now 4." in capsys.readouterr().out
    script.train(folder, max_steps=6, resume="latest", batch_size=4, seed=1)
    card = " ".join((folder / "README.md").read_text().split())
    assert "Settings were changed on resuming: up to step 4: batch_size 8; up to step 5: seed 0." in card


def test_of_a_changed_path_only_its_last_part_is_reported():
    settings = Script("ddaebm").settings("run", dataset="/new/place/images", batch_size=8)
    earlier = {"dataset": "/home/somebody/photos", "batch_size": 8, "output_dir": "/home/somebody/run"}
    assert changed_settings(earlier, settings) == {"dataset": "photos"}


def test_a_folder_has_one_run_at_a_time(tmp_path, script):
    with only_run(tmp_path / "run"), pytest.raises(ValueError, match=r"output_dir .*run is being written by another"):
        script.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    script.train(tmp_path / "run", max_steps=1)
