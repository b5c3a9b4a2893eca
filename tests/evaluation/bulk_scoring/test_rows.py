"""Rows of bulk scoring: equal to the pipeline's, each image once, by its id; unreadable images are reported."""

import json
import os

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from scored_rows import image_folder, read
from torch.testing import assert_close

from hf_ebm import EnergyScoringPipeline
from hf_ebm.cli.main import main
from hf_ebm.data.digits import load_digits
from hf_ebm.evaluation.bulk_scoring import run
from hf_ebm.scoring.inputs import prepared_batches, spans_of


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
        "manifest.json", "summary.json", "scores", "unreadable.jsonl",
    }  # fmt: skip


def test_a_model_without_calibration_is_an_error(settings, scorer, tmp_path):
    EnergyScoringPipeline(scorer.energy_model, scorer.scheduler).save_pretrained(tmp_path / "plain")
    summary = run(settings(model=str(tmp_path / "plain"), score=None))
    assert not summary["calibrated"] and summary["called_ood"] is None
    assert all(row["p_value"] is None and row["is_ood"] is None for row in read(tmp_path / "out"))
    for changes, message in (({"require_calibration": True}, "calibrated"), ({"score": "typicality"}, "calibrate")):
        with pytest.raises(ValueError, match=message):
            run(settings(model=str(tmp_path / "plain"), output=tmp_path / "none", **changes))
    assert not (tmp_path / "none").exists()


def test_of_many_unreadable_images_the_first_are_shown(settings, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        PIL.Image.new("L" if number < 3 else "F", (8, 8), number).save(folder / f"{number}.tiff")
    assert run(settings(dataset=str(folder), split="train"))["unreadable"] == 6
    printed = capsys.readouterr().out
    assert "; the first 5:" in printed


class RowsThatTellTheirReader:
    """Black images whose ids are the process that read them."""

    def read(self, start, stop):
        return [(os.getpid(), torch.zeros(1, 8, 8))] * (stop - start)


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_a_single_batch_starts_no_worker(num_batches):
    spans = list(spans_of(0, 4 * num_batches, 4))
    batches = list(prepared_batches(RowsThatTellTheirReader(), spans, (1, 8, 8), None, num_workers=2))
    assert [batch.stop for batch in batches] == [stop for _, stop in spans]
    here = [set(batch.ids) == {os.getpid()} for batch in batches]
    assert here == [num_batches == 1] * num_batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_named_and_counted(settings, tmp_path, capsys, num_workers):
    folder = image_folder(tmp_path / "images")
    changes = {"dataset": folder, "split": "train", "batch_size": 2, "shard_size": 3, "num_workers": num_workers}
    summary = run(settings(**changes))
    assert (summary["rows"], summary["scored"], summary["unreadable"]) == (7, 5, 2)
    assert [row["id"] for row in read(tmp_path / "out")] == ["0.png", "1.png", "3.png", "4.png", "6.png"]
    found = [json.loads(line) for line in (tmp_path / "out/unreadable.jsonl").read_text().splitlines()]
    assert [(line["row"], line["id"]) for line in found] == [(2, "2.png"), (5, "5.png")]
    assert "not an image of a known format" in found[0]["reason"] and "2.png" in found[0]["name"]
    printed = capsys.readouterr().out
    assert "2 could not be scored" in printed and "2.png" in printed and "5.png" in printed
    assert "the first" not in printed
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
        ("split", "train[:0]", "is empty; choose another split"),
        ("split", "test", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=message):
            run(settings(**{**changes, name: value, "output": tmp_path / "none"}))
    assert not (tmp_path / "none").exists()


def test_a_folder_in_which_nothing_fits_is_refused_at_once(settings, model, tmp_path):
    (tmp_path / "big").mkdir()
    for index in range(3):
        PIL.Image.new("RGB", (12, 10), (0, 9 * index, 0)).save(tmp_path / "big" / f"{index}.png")
    pipeline = EnergyScoringPipeline.from_pretrained(model)
    pipeline.image_processor.do_resize = False
    pipeline.save_pretrained(tmp_path / "strict")
    changes = {"dataset": str(tmp_path / "big"), "split": "train"}
    with pytest.raises(ValueError, match=r"none of the first 3 images.*do_resize=False, got 12 x 10"):
        run(settings(**changes, model=str(tmp_path / "strict")))
    assert not (tmp_path / "out").exists()
    assert run(settings(**changes))["scored"] == 3


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


def test_a_nan_energy_is_an_error_that_names_the_image(settings, scorer, model):
    with torch.no_grad():
        for parameter in scorer.energy_model.parameters():
            parameter.fill_(float("nan"))
    scorer.save_pretrained(model)
    with pytest.raises(ValueError, match=r"energy is NaN for 16 of 16 images \(the first: 0\); check"):
        run(settings())
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got True"):
        settings(batch_size=True)
