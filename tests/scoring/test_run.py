"""Scoring at scale: every row once, the same after kills and in two processes, nothing silent, nothing half done."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from hf_ebm import EnergyScoringPipeline
from hf_ebm.cli import main
from hf_ebm.data import load_digits
from hf_ebm.scoring import shard_scoring
from hf_ebm.scoring.run import model_fingerprint, run, score_rows
from hf_ebm.scoring.run_settings import ScoringSettings
from hf_ebm.scoring.shard_scoring import score_shards
from hf_ebm.scoring.shards import ShardFolder


@pytest.fixture
def scorer(tiny_pipeline):
    scorer = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    scorer.set_progress_bar_config(disable=True)
    return scorer


@pytest.fixture
def model(scorer, tmp_path):
    scorer.calibrate(load_digits("train")[0][:100], target_fpr=0.1)
    scorer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def settings(model, tmp_path):
    def make(**changes):
        common = {"model": model, "dataset": "digits", "split": "test", "output": tmp_path / "out"}
        return ScoringSettings(**{**common, "batch_size": 16, "shard_size": 50, "num_workers": 0, **changes})

    return make


def read(folder):
    """All rows of a run, in order."""
    return pq.read_table(sorted((folder / "scores").glob("*.parquet"))).to_pylist()


def image_folder(folder, count=7):
    """Numbered 8x8 pictures, of which two cannot be read."""
    folder.mkdir()
    for index in range(count):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"not a picture")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-30])
    return str(folder)


def test_rows_are_the_pipelines(settings, scorer, tmp_path):
    summary = run(settings(score="multiscale"))
    expected = scorer(load_digits("test")[0], score="multiscale")
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == list(range(360))
    for name, values in zip(("energy", "score", "p_value"), expected.to_tuple(), strict=False):
        assert_close(torch.tensor([row[name] for row in rows], dtype=values.dtype), values, rtol=1e-4, atol=1e-4)
    assert all(row["is_ood"] == (row["p_value"] <= 0.1) for row in rows)
    assert summary["rows"] == summary["scored"] == 360 and summary["unreadable"] == 0
    assert summary["called_ood"] == sum(row["is_ood"] for row in rows)
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out/scores").iterdir())] == [50] * 7 + [10]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json", "summary.json", "scores", "unreadable", "unreadable.jsonl",
    }  # fmt: skip


def test_a_model_without_calibration_says_so(settings, scorer, tmp_path):
    EnergyScoringPipeline(scorer.energy_model, scorer.scheduler).save_pretrained(tmp_path / "plain")
    summary = run(settings(model=str(tmp_path / "plain")))
    assert not summary["protocol"]["calibrated"] and summary["called_ood"] is None
    assert all(row["p_value"] is None and row["is_ood"] is None for row in read(tmp_path / "out"))
    for changes, message in (({"require_calibration": True}, "calibrated"), ({"score": "typicality"}, "calibrate")):
        with pytest.raises(ValueError, match=message):
            run(settings(model=str(tmp_path / "plain"), output=tmp_path / "none", **changes))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_named_and_counted(settings, tmp_path, capsys, num_workers):
    folder = image_folder(tmp_path / "images")
    changes = {"dataset": folder, "split": "train", "batch_size": 2, "shard_size": 3, "num_workers": num_workers}
    summary = run(settings(**changes))
    assert (summary["rows"], summary["scored"], summary["unreadable"]) == (7, 5, 2)
    assert [row["id"] for row in read(tmp_path / "out")] == ["0.png", "1.png", "3.png", "4.png", "6.png"]
    found = [json.loads(line) for line in (tmp_path / "out/unreadable.jsonl").read_text().splitlines()]
    assert [(line["row"], line["id"]) for line in found] == [(2, "2.png"), (5, "5.png")]
    assert "no picture" in found[0]["reason"] and "2.png" in found[0]["name"]
    printed = capsys.readouterr().out
    assert "2 could not be scored" in printed and "2.png" in printed and "5.png" in printed
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        run(settings(**changes, output=tmp_path / "stop", on_error="stop"))
    assert not (tmp_path / "stop/summary.json").exists()
    assert run(settings(**changes, output=tmp_path / "stop"))["scored"] == 5
    assert read(tmp_path / "stop") == read(tmp_path / "out")


def test_ids_from_a_column_and_a_missing_column(settings, tmp_path, scorer):
    pictures = [PIL.Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in range(5)]
    table = datasets.Dataset.from_dict(
        {"name": list("abcde"), "picture": pictures, "weight": [0.5] * 5},
        features=datasets.Features(
            {"name": datasets.Value("string"), "picture": datasets.Image(), "weight": datasets.Value("float32")}
        ),
    )
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data/train.parquet")
    changes = {"dataset": str(tmp_path / "data"), "split": "train"}
    run(settings(**changes, id_column="name"))
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == list("abcde")
    assert_close(torch.tensor([row["energy"] for row in rows]), scorer(pictures).energies, rtol=1e-4, atol=1e-4)
    run(settings(**changes, output=tmp_path / "numbers"))
    assert [row["id"] for row in read(tmp_path / "numbers")] == list(range(5))
    for name, value, message in (
        ("id_column", "nme", "id_column 'nme' is not in the data set"),
        ("id_column", "weight", "whole numbers or strings, got float32"),
        ("image_column", "photo", "image_column 'photo' is not in the data set"),
        ("split", "train[:0]", "corresponds to no data"),
        ("split", "test", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=message):
            run(settings(**{**changes, name: value, "output": tmp_path / "none"}))
    assert not (tmp_path / "none").exists()


def test_a_folder_in_which_nothing_fits_is_refused_at_once(settings, tmp_path):
    (tmp_path / "big").mkdir()
    for index in range(3):
        PIL.Image.new("RGB", (12, 10), (0, 9 * index, 0)).save(tmp_path / "big" / f"{index}.png")
    changes = {"dataset": str(tmp_path / "big"), "split": "train"}
    with pytest.raises(ValueError, match=r"none of the first 3 images.*mode 'L'.*--resize"):
        run(settings(**changes))
    assert not (tmp_path / "out").exists()
    assert run(settings(**changes, resize=True))["scored"] == 3


def test_another_protocol_or_a_strange_folder_is_refused(settings, tmp_path, scorer):
    run(settings())
    for changes, message in (
        ({"batch_size": 8}, "batch_size: 16 there, 8 now"),
        ({"score": "gradient_norm"}, "score: 'energy' there"),
        ({"split": "train"}, "dataset_fingerprint: 'digits-test' there, 'digits-train' now"),
    ):
        with pytest.raises(ValueError, match=message):
            run(settings(**changes))
    with torch.no_grad():
        next(scorer.energy_model.parameters()).add_(1e-3)
    scorer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model_fingerprint.*calibration changed since"):
        run(settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("not a run")
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        run(settings(output=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_shard_that_somebody_cut_is_found(settings, tmp_path, monkeypatch):
    run(settings())
    path = tmp_path / "out/scores/000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 40), path)
    with pytest.raises(ValueError, match="together they must be 50; remove both"):
        run(settings())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        run(settings())
    path.unlink()
    with monkeypatch.context() as patch:  # while a shard is missing there is no summary, even if there was one
        patch.setattr(shard_scoring, "ScoredRows", stop)
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


def test_killed_ten_times_and_resumed_gives_the_rows_of_one_quiet_run(settings, tmp_path, scorer):
    quiet = settings(output=tmp_path / "quiet", batch_size=4, shard_size=10)
    killed = settings(output=tmp_path / "killed", batch_size=4, shard_size=10)
    score_rows(scorer, SlowRows(0.0), "digits", quiet, Accelerator(cpu=True))

    def child():
        torch.set_num_threads(1)
        score_rows(scorer, SlowRows(0.01), "digits", killed, Accelerator(cpu=True))

    def shards():
        return {path.name: path.stat() for path in (tmp_path / "killed").glob("scores/*.parquet")}

    fork, chance, written = multiprocessing.get_context("fork"), random.Random(0), {}
    for _ in range(10):
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
    assert 10 <= len(written) < 36
    left = SlowRows(0.0)
    summary = score_rows(scorer, left, "digits", killed, Accelerator(cpu=True))
    assert summary["scored"] == 359 and summary["unreadable"] == 1
    again = {start // 10 for start, stop in left.spans if stop - start > 1}
    assert not again & {int(name.partition(".")[0]) for name in written}
    assert read(tmp_path / "killed") == read(tmp_path / "quiet")  # to the last bit
    assert (tmp_path / "killed/unreadable.jsonl").read_text() == (tmp_path / "quiet/unreadable.jsonl").read_text()
    assert not list((tmp_path / "killed").rglob(".tmp*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}
    score_rows(scorer, left, "digits", killed, Accelerator(cpu=True))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}


def test_two_runs_in_one_folder_are_refused(settings, tmp_path):
    """The lock is the system's: what a killed run leaves does not keep the next one out."""
    folder = ShardFolder(tmp_path / "out", 360, 50)

    def hold(ready):
        with folder.alone():
            ready.set()
            time.sleep(60)

    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=hold, args=(ready,))
    other.start()
    assert ready.wait(30)
    with pytest.raises(ValueError, match="has a run at work"):
        run(settings())
    other.kill()
    other.join()
    assert run(settings())["scored"] == 360


def test_no_shard_has_its_name_before_it_is_whole(settings, tmp_path, scorer, monkeypatch):
    """A run that dies inside the writing of a shard leaves no file of that name, and no summary."""
    from hf_ebm.scoring import shards

    def cut(table, path):
        path.write_bytes(b"PAR1 half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(shards.pq, "write_table", cut)
    with pytest.raises(OSError, match="no space left"):
        run(settings())
    assert not list((tmp_path / "out/scores").iterdir()) and not (tmp_path / "out/summary.json").exists()
    monkeypatch.undo()
    assert run(settings())["scored"] == 360


def test_two_processes_write_the_rows_of_one_and_go_on_with_its_shards(settings, tmp_path, scorer, model):
    """One process writes two shards and dies; two processes do the rest; the rows are those of one quiet run."""
    run(settings())
    folder = ShardFolder(tmp_path / "two", 360, 50)
    one = settings(output=tmp_path / "two")
    folder.start(json.loads((tmp_path / "out/manifest.json").read_text()))
    list(score_shards(EnergyScoringPipeline.from_pretrained(model), load_rows_of(one), folder, [0, 3], one))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "hf_ebm.scoring.run"]
    command += ["--model", model, "--dataset", "digits", "--split", "test", "--output", str(tmp_path / "two")]
    command += ["--batch-size", "16", "--shard-size", "50", "--num-workers", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["num_processes"] == 2 and summary["rows_of_this_run"] == 260
    assert read(tmp_path / "two") == read(tmp_path / "out")
    assert "360/360" in result.stderr  # the bar counts what was there and what the other process did


def load_rows_of(settings):
    from hf_ebm.scoring.run import load_rows

    return load_rows(settings)[0]


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"shard_size": 0}, {"num_workers": -1}, {"on_error": "hide"}])
def test_settings_out_of_range(settings, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(**changes)


def test_the_command_scores_a_data_set(model, tmp_path, capsys):
    arguments = ["score", "--model", model, "--dataset", "digits", "--split", "test", "--num-workers", "0"]
    main([*arguments, "--output", str(tmp_path / "out"), "--json"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["scored"] == 360 and len(read(tmp_path / "out")) == 360
    for wrong, message in (
        (arguments, "--output"),
        ([*arguments, "picture.png"], "either"),
        (["score", "--model", model], "either"),
        (["score", "--model", model, image_folder(tmp_path / "images") + "/2.png"], "2.png cannot be read"),
    ):
        with pytest.raises(SystemExit) as error:
            main(wrong)
        assert error.value.code == 2 and message in capsys.readouterr().err


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


def test_a_disk_without_locks_is_not_a_run_at_work(settings, monkeypatch):
    import fcntl

    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(OSError, match="No locks available"), ShardFolder(settings().output, 1, 1).alone():
        pass
