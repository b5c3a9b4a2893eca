"""Padding: what a run was trained with holds for every command that reads images, unless another is given."""

import json

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch

from hf_ebm.cli.main import main


def test_padding_of_the_run_and_named_data_sets_are_in_the_protocol(folder, tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "odd" / "train").mkdir(parents=True)
    for index in range(12):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(tmp_path / "odd" / "train" / f"{index}.png")
    (tmp_path / "model" / "settings.yaml").write_text("padding: 2\n")
    arguments = ["eval-ood", "--model", folder, "--id", "digits@test", "--ood", f"noise,{tmp_path}/odd", "--json"]
    arguments += ["--max-images", "40", "--resamples", "5", "--scores", "energy", "--no-baselines"]
    main([*arguments, "--output", str(tmp_path / "ood")])
    record = json.loads(capsys.readouterr().out)
    assert set(record["metrics"]["energy"]) == {"noise", "odd", "mean"} and str(tmp_path) not in json.dumps(record)
    found = record["protocol"]["ood_sets"]["odd"]
    assert found["split"] == "train" and found["only_split"]
    assert (
        "resized to 4x4" in record["protocol"]["preprocessing"] and "padded by 2" in record["protocol"]["preprocessing"]
    )
    main([*arguments, "--padding", "0", "--output", str(tmp_path / "again")])
    assert "padded" not in json.loads(capsys.readouterr().out)["protocol"]["preprocessing"]


def test_score_and_reconstruct_pad_as_in_training(tiny_pipeline, folder, dual_folder, tmp_path, capsys, monkeypatch):
    import datasets

    from hf_ebm import DualMCMCPipeline
    from hf_ebm.data.image_processor import image_transform
    from hf_ebm.evaluation.bulk_scoring import main as run_main

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "train").mkdir(parents=True)
    path = str(tmp_path / "set" / "train" / "4.png")
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8))
    picture.save(path)
    for name in ("model", "dual"):
        (tmp_path / name / "settings.yaml").write_text("padding: 2\n")
    x = image_transform(1, 8, padding=2)(picture)[None]
    expected = tiny_pipeline.score(x).energies.item()
    for resize in ([], ["--resize"]):
        main(["score", "--model", folder, *resize, "--json", path])
        assert json.loads(capsys.readouterr().out)[path]["energy"] == pytest.approx(expected, rel=1e-4)
    main(["score", "--model", folder, "--resize", "--padding", "0", "--json", path])
    assert json.loads(capsys.readouterr().out)[path]["energy"] != pytest.approx(expected, rel=1e-4)
    arguments = ["--model", folder, "--dataset", str(tmp_path / "set"), "--num-workers", "0", "--output"]
    for name, command in (("a", run_main), ("b", lambda rest: main(["score", *rest]))):
        command([*arguments, str(tmp_path / name)])
        (row,) = pq.read_table(tmp_path / name / "scores").to_pylist()
        assert row["energy"] == pytest.approx(expected, rel=1e-4)
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["manifest"]["padding"] == 2
    capsys.readouterr()
    main(["reconstruct", "--model", dual_folder, path, "--output", str(tmp_path / "again.png"), "--json"])
    found = json.loads(capsys.readouterr().out)["errors"][path]["mse"]["inference_model"]
    pipeline = DualMCMCPipeline.from_pretrained(dual_folder)
    again = pipeline.reconstruct(x, 0, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert found == pytest.approx((again - x).square().mean().item(), rel=1e-4)
