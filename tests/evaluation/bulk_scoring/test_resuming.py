"""A scoring run that is killed, damaged, moved to two processes or given other settings: same rows, or an error."""

import json
import multiprocessing
import random
import shutil
import signal
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from scored_rows import image_folder, read
from small_runs import in_processes
from tqdm.auto import tqdm

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.data.loading import fingerprint, load_training_data
from hf_ebm.evaluation import bulk_scoring
from hf_ebm.evaluation.bulk_scoring import load_rows, main, model_fingerprint, run, score_rows, score_shards


def test_another_manifest_or_a_foreign_folder_is_refused(settings, tmp_path, scorer):
    run(settings())
    for changes, message in (
        ({"shard_size": 40}, "shard_size: 50 there, 40 now"),
        ({"score": "gradient_norm"}, "score: 'energy' there"),
        ({"split": "train"}, "dataset_fingerprint: .*split: 'test' there, 'train' now"),
    ):
        with pytest.raises(ValueError, match=message):
            run(settings(**changes))
    with torch.no_grad():
        next(scorer.energy_model.parameters()).add_(1e-3)
    scorer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model_fingerprint.*use the same model"):
        run(settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("not a run")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        run(settings(output=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.manifest.7.tmp.json").write_text("{")  # by a run that was killed as it began
    assert run(settings(output=tmp_path / "killed"))["scored"] == 360
    assert not list((tmp_path / "killed").glob(".*"))


def test_a_run_resumes_with_another_batch_size_and_another_name_of_the_model(settings, tmp_path):
    """What helps where memory was short; what is written stays, and the rest agrees to rounding."""
    run(settings())
    whole, shards = read(tmp_path / "out"), sorted((tmp_path / "out/scores").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    run(settings(batch_size=5, model=f"{settings().model}/."))
    changed = [old != path.stat().st_mtime_ns for old, path in zip(before, shards, strict=True)]
    assert changed == [index == 1 for index in range(len(shards))]
    again = read(tmp_path / "out")
    assert [row["id"] for row in again] == [row["id"] for row in whole]
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in whole], rel=1e-4)


def test_a_shard_that_somebody_cut_is_found(settings, tmp_path, monkeypatch):
    run(settings())
    path = tmp_path / "out/scores/000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 40), path)
    with pytest.raises(ValueError, match=r"rows of 50\); remove it"):
        run(settings())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        run(settings())
    path.unlink()
    with monkeypatch.context() as patch:  # while a shard is missing there is no summary, even if there was one
        patch.setattr(bulk_scoring, "as_table", stop)
        with pytest.raises(OSError, match="stopped"):
            run(settings())
    assert not (tmp_path / "out/summary.json").exists()
    summary = run(settings())
    assert summary["rows_of_this_run"] == 50 and len(read(tmp_path / "out")) == 360
    (tmp_path / "out/summary.json").unlink()  # killed before its last step
    summary = run(settings())
    assert summary["rows_of_this_run"] == 0 and summary["scored"] == 360


def stop(*_):
    raise OSError("stopped")


class SlowRows:
    """Digits that take their time, one of which cannot be read; it counts what is read in this process."""

    def __init__(self, seconds):
        self.samples, self.seconds, self.spans = load_digits("test")[0], seconds, []

    def __len__(self):
        return len(self.samples)

    def read(self, start, stop):
        time.sleep(self.seconds)
        self.spans.append((start, stop))
        return [(row, b"junk" if row == 77 else self.samples[row]) for row in range(start, stop)]


def test_killed_five_times_and_resumed_gives_the_rows_of_one_quiet_run(settings, tmp_path, scorer):
    quiet = settings(output=tmp_path / "quiet", batch_size=4, shard_size=10)
    killed = settings(output=tmp_path / "killed", batch_size=4, shard_size=10)
    score_rows(scorer, SlowRows(0.0), "digits", quiet, Accelerator(cpu=True))

    def child():
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # the one of all processes stays locked if its holder is killed
        score_rows(scorer, SlowRows(0.01), "digits", killed, Accelerator(cpu=True))

    def shards():
        return {path.name: path.stat() for path in (tmp_path / "killed").glob("scores/*.parquet")}

    fork, chance, written = multiprocessing.get_context("fork"), random.Random(0), {}
    for _ in range(5):
        process = fork.Process(target=child)
        process.start()
        while process.is_alive() and len(shards()) == len(written):
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.03))  # anywhere in the next shard, or in the writing of it
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not (tmp_path / "killed/summary.json").exists()
        found = shards()
        for name, stat in written.items():  # never scored again: the same file, untouched
            assert (found[name].st_ino, found[name].st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        written = found
    assert 5 <= len(written) < 36
    left = SlowRows(0.0)
    summary = score_rows(scorer, left, "digits", killed, Accelerator(cpu=True))
    assert summary["scored"] == 359 and summary["unreadable"] == 1
    again = {start // 10 for start, stop in left.spans if stop - start > 1}
    assert not again & {int(name.partition(".")[0]) for name in written}
    assert read(tmp_path / "killed") == read(tmp_path / "quiet")  # to the last bit
    assert (tmp_path / "killed/unreadable.jsonl").read_text() == (tmp_path / "quiet/unreadable.jsonl").read_text()
    assert not list((tmp_path / "killed").rglob("*.tmp*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}
    score_rows(scorer, left, "digits", killed, Accelerator(cpu=True))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}


def test_no_shard_has_its_name_before_it_is_whole(settings, tmp_path, scorer, monkeypatch):
    """A run that dies inside the writing of a shard leaves no file of that name, and no summary."""

    def cut(table, path):
        path.write_bytes(b"PAR1 half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(bulk_scoring.pq, "write_table", cut)
    with pytest.raises(OSError, match="no space left"):
        run(settings())
    assert not list((tmp_path / "out/scores").iterdir()) and not (tmp_path / "out/summary.json").exists()
    monkeypatch.undo()
    assert run(settings())["scored"] == 360


def test_two_processes_write_the_rows_of_one_and_resume_its_shards(
    settings, tmp_path, scorer, model, capfd, monkeypatch
):
    """One process writes two shards and dies; two processes do the rest; the rows are those of one quiet run."""
    run(settings(score=None))  # the default, as of the command below
    one = settings(output=tmp_path / "two", score=None)
    (tmp_path / "two/scores").mkdir(parents=True)
    shutil.copy(tmp_path / "out/manifest.json", tmp_path / "two")
    score_shards(EnergyScoringPipeline.from_pretrained(model), load_rows(one)[0], [0, 3], one)
    options = ["--model", model, "--dataset", "digits", "--split", "test", "--output", str(tmp_path / "two")]
    options += ["--batch-size", "16", "--shard-size", "50", "--num-workers", "0"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where the progress bar is shown
    in_processes(2, main, options)
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["num_processes"] == 2 and summary["rows_of_this_run"] == 260
    assert read(tmp_path / "two") == read(tmp_path / "out")
    assert "150/150" in capfd.readouterr().err  # the first process's three of the six missing shards, the last of ten
    in_processes(2, main, options)
    assert "is complete; nothing was done" in capfd.readouterr().out


def test_weights_stay_where_they_are_in_memory(settings, scorer, monkeypatch):
    """The CPU of several processes is called cpu:0; weights that are copied there lie, and round, otherwise."""
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cpu:0")))
    before = [parameter.data_ptr() for parameter in scorer.energy_model.parameters()]
    one = settings()
    score_rows(scorer, load_rows(one)[0], "digits", one, Accelerator(cpu=True))
    assert [parameter.data_ptr() for parameter in scorer.energy_model.parameters()] == before


def test_the_fingerprint_is_of_weights_and_settings(scorer):
    before = model_fingerprint(scorer)
    assert before == model_fingerprint(scorer)
    scorer.energy_model.config.name_or_path = "elsewhere"
    assert before == model_fingerprint(scorer)
    scorer.energy_model.config.layers_per_block += 1
    changed = model_fingerprint(scorer)
    scorer.energy_model.config.layers_per_block -= 1
    next(scorer.energy_model.parameters()).data.add_(1.0)
    assert len({before, changed, model_fingerprint(scorer)}) == 3


def test_the_data_sets_hash_is_that_of_training_and_of_the_ids(settings, tmp_path):
    folder = image_folder(tmp_path / "images")
    before = load_rows(settings(dataset=folder, split="train"))[1]
    assert before.startswith(fingerprint(load_training_data(folder, (1, 8, 8))))
    shutil.copytree(folder, tmp_path / "copy")
    assert load_rows(settings(dataset=str(tmp_path / "copy"), split="train"))[1] == before
    assert load_rows(settings())[1] == fingerprint(load_training_data("digits", (1, 8, 8), split="test"))


def test_accelerate_launch_takes_the_commands_options(settings, model, tmp_path, capsys):
    common = ["--model", model, "--num-workers", "0", "--shard-size", "200", "--output", str(tmp_path / "out")]
    main([*common, "--dataset", "digits@test", "--on-error", "stop"])
    assert "360 of 360 rows have a score" in capsys.readouterr().out
    for wrong in (["--dataset", "digits@test", "--split", "train"], ["--dataset", "digits@test", "--batch-size", "0"]):
        with pytest.raises(SystemExit, match="error: "):
            main([*common, *wrong])
    with pytest.raises(SystemExit):
        main([*common, "--dataset", "digits", "--on-error", "hide"])
    assert "invalid choice: 'hide'" in capsys.readouterr().err
