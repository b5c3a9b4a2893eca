"""Every command uses the padding of the training unless another one is given."""

import json

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch

from hf_ebm import DDAEBMPipeline, DualMCMCPipeline, EBMImageProcessor
from hf_ebm.cli.main import main


@pytest.fixture
def padded(folder, dual_folder):
    """Saved pipelines whose processors pad 4x4 images to 8x8."""
    for cls, path in ((DDAEBMPipeline, folder), (DualMCMCPipeline, dual_folder)):
        pipeline = cls.from_pretrained(path)
        pipeline.image_processor = EBMImageProcessor(8, 1, padding=2)
        pipeline.save_pretrained(path)
    return folder, dual_folder


@pytest.fixture
def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8))


def test_padding_and_named_data_sets_are_in_the_protocol(padded, tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "ood" / "train").mkdir(parents=True)
    for index in range(12):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(tmp_path / "ood" / "train" / f"{index}.png")
    arguments = ["eval-ood", "--model", padded[0], "--id", "digits@test", "--ood", f"noise,{tmp_path}/ood", "--json"]
    arguments += ["--max-images", "40", "--resamples", "5", "--scores", "energy", "--no-baselines"]
    main([*arguments, "--output", str(tmp_path / "result")])
    record = json.loads(capsys.readouterr().out)
    assert set(record["metrics"]["energy"]) == {"noise", "ood", "mean"} and str(tmp_path) not in json.dumps(record)
    found = record["protocol"]["ood_sets"]["ood"]
    assert found["split"] == "train" and found["only_split"]
    assert (
        "resized to 4x4" in record["protocol"]["preprocessing"] and "padded by 2" in record["protocol"]["preprocessing"]
    )


def test_score_and_reconstruct_pad_as_in_training(padded, image, tmp_path, capsys, monkeypatch):
    import datasets

    from hf_ebm.evaluation.bulk_scoring import main as run_main

    folder, dual_folder = padded
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "train").mkdir(parents=True)
    path = str(tmp_path / "set" / "train" / "4.png")
    image.save(path)
    x = torch.from_numpy(np.pad(np.asarray(image), 2))[None, None].float() / 127.5 - 1  # by hand
    expected = DDAEBMPipeline.from_pretrained(folder).energy_model.eval()(x).energy.item()
    main(["score", "--model", folder, "--json", path])
    assert json.loads(capsys.readouterr().out)[path]["energy"] == pytest.approx(expected, rel=1e-4)
    arguments = ["--model", folder, "--dataset", str(tmp_path / "set"), "--num-workers", "0", "--output"]
    for name, command in (("a", run_main), ("b", lambda rest: main(["score", *rest]))):
        command([*arguments, str(tmp_path / name)])
        (row,) = pq.read_table(tmp_path / name / "scores").to_pylist()
        assert row["energy"] == pytest.approx(expected, rel=1e-4)
    capsys.readouterr()
    main(["reconstruct", "--model", dual_folder, path, "--output", str(tmp_path / "again.png"), "--json"])
    printed = capsys.readouterr()
    assert "to fit the model" not in printed.err
    found = json.loads(printed.out)["errors"][path]["mse"]["inference_model"]
    pipeline = DualMCMCPipeline.from_pretrained(dual_folder)
    random = torch.Generator().manual_seed(0)
    again = pipeline.reconstruct(x * 0.5 + 0.5, 0, generator=random, output_type="latent").images
    assert found == pytest.approx((again.clamp(-1, 1) - x).square().mean().item(), rel=1e-4)
