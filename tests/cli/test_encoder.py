"""--encoder of calibrate, score and eval-ood: the scores with an image encoder from a shell."""

import json

import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_ebm.cli.main import main


@pytest.fixture
def encoder(tmp_path):
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def test_calibrate_and_score(folder, encoder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits
    from hf_ebm.hub.model_card import write_card

    (tmp_path / "model" / "settings.yaml").write_text("dataset: digits\ndataset_split: train\n")
    card = write_card(tmp_path / "model")
    calibrate = ["calibrate", "--model", folder, "--dataset", "digits", "--num-images", "40", "--target-fpr", "0.1"]
    main([*calibrate, "--encoder", encoder, "--score", "density_encoder", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["score"] == "density_encoder" and {"encoder", "density_encoder"} < {*record["calibrated_scores"]}
    assert record["encoder"]["name"] == "vit" and record["encoder"]["id"] is None
    text = card.read_text()
    assert "`density_encoder`" in text and "the encoder `vit`, which is not on the Hub" in text and encoder not in text
    scorer = EnergyScoringPipeline.from_pretrained(folder, image_encoder=encoder)
    reference = scorer.calibration.density_reference
    assert len(reference["encoder_features"]) == 1437 == len(reference["compressed_size"])  # the training split

    pixels = load_digits("test")[0][:3, 0].mul(255).round().byte().numpy()
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for image, path in zip(pixels, paths, strict=True):
        PIL.Image.fromarray(image).save(path)
    score = ["score", "--model", folder, "--score", "density_encoder", "--json", *paths]
    main([*score, "--encoder", encoder])
    found = json.loads(capsys.readouterr().out)
    expected = scorer(paths, score="density_encoder").scores
    assert_close(torch.tensor([found[path]["score"] for path in paths]).double(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SystemExit) as ending:
        main(score)
    assert ending.value.code == 2
    assert (
        "need image_encoder= (--encoder), and none was given. The calibration was made with vit"
        in capsys.readouterr().err
    )


def test_eval_ood(folder, encoder, tmp_path, capsys):
    command = ["eval-ood", "--model", folder, "--id", "digits", "--ood", "noise", "--encoder", encoder]
    main([*command, "--no-baselines", "--max-images", "30", "--resamples", "5", "--output", str(tmp_path / "ood")])
    table, record = capsys.readouterr().out, json.loads((tmp_path / "ood" / "ood.json").read_text())
    for score in ("encoder", "density_encoder"):
        assert f"\n{score} " in table and 0.0 <= record["metrics"][score]["noise"]["auroc"]["value"] <= 1.0
    assert record["protocol"]["encoder"]["name"] == "vit" and len(record["protocol"]["encoder"]["sha256"]) == 64
