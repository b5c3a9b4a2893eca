"""hf-ebm calibrate writes the threshold of held-out images beside the model, or reports why it cannot."""

import json

import numpy as np
import PIL.Image
import pytest

from hf_ebm.cli.main import main


def test_calibrate_writes_what_the_pipeline_finds_and_renews_the_card(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits
    from hf_ebm.data.loading import draw_rows
    from hf_ebm.hub.model_card import write_card
    from hf_ebm.scoring.calibration import Calibration

    card = write_card(tmp_path / "model")
    digits = load_digits("test")[0]
    scorer = EnergyScoringPipeline.from_pretrained(folder, load_reconstruction=True)
    arguments = ["calibrate", "--model", folder, "--dataset", "digits", "--target-fpr", "0.1"]
    main([*arguments, "--score", "typicality", "--json"])
    record, saved = json.loads(capsys.readouterr().out), Calibration.load(folder)
    expected = scorer.calibrate(digits, target_fpr=0.1)
    assert saved.reference == expected.reference and saved.statistics == expected.statistics
    assert "converted to gray" in saved.preprocessing and record["calibrated_scores"] == sorted(expected.reference)
    assert record["threshold"] == expected.threshold("typicality")
    # the half that fitted the statistics was not calibrated on
    assert record["flagged"] == int(scorer(digits, score="typicality").is_ood.sum())
    assert (record["num_fitted"], record["num_calibrated"]) == (180, 180)
    assert record["expected_fpr"] == pytest.approx(18 / 181)
    assert (record["num_images"], record["dataset"], record["split"]) == (360, "digits", "test")
    assert "Calibrated on 360 in-distribution" in card.read_text() and saved.trained_on is None  # not in the settings

    main([*arguments, "--score", "energy", "--json"])
    record, text = json.loads(capsys.readouterr().out), card.read_text()
    assert record["flagged"] == 35  # of 360 the k-th largest has p = (1 + k) / 361
    assert "at most" not in text[text.index("## Threshold") : text.index("```python", text.index("## Threshold"))]
    assert "| 360 | 9.97 % |" in text and "| 180 | 9.94 % |" in text and "A random 180 of the samples fitted" in text

    main([*arguments, "--score", "energy", "--num-images", "50", "--seed", "3"])
    expected = scorer.calibrate(digits[draw_rows(360, 50, 3)], target_fpr=0.1, seed=3)
    assert Calibration.load(folder).reference == expected.reference
    printed, notes = capsys.readouterr()
    assert f"energy above {expected.threshold('energy'):.6g} is flagged as OOD: 4 of the 50 images" in printed
    assert "expected for other in-distribution images: 9.8 %, the average over calibration sets" in printed
    assert f"updated {card} (the model card)" in printed and "note:" not in notes


def test_calibrating_on_the_training_split_warns_and_card_and_page_report_it(folder, tmp_path, capsys):
    from hf_ebm.demo.verdict import verdict_text
    from hf_ebm.hub.model_card import write_card
    from hf_ebm.scoring.calibration import Calibration

    (tmp_path / "model" / "settings.yaml").write_text("dataset: digits\ndataset_split: train\n")
    card = write_card(tmp_path / "model")
    for split, warns in (("test", False), ("train", True)):
        main(["calibrate", "--model", folder, "--dataset", "digits", "--split", split, "--num-images", "40"])
        printed = capsys.readouterr()
        assert ("split train of digits has images that the model was trained on" in printed.err) is warns
        assert f"expected for other {'training' if warns else 'in-distribution'} images" in printed.out
        calibration, text = Calibration.load(folder), " ".join(card.read_text().split())
        assert calibration.trained_on is warns
        assert ("40 held-out" in text) is not warns and ("some of which the model was trained on" in text) is warns
        text = verdict_text(0.0, 0.5, False, calibration, "energy")
        assert ("not used in its training" in text) is not warns
        assert ("which were used in its training" in text) is warns


def test_calibrate_warns_of_slices_of_what_was_trained_on(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for index in range(20):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 1 + 12 * index, (8, 8), dtype=np.uint8)
        pixels[1 + index % 8 :] = 0  # images of several compressed sizes
        PIL.Image.fromarray(pixels).save(tmp_path / "set" / "train" / f"{index:02}.png")
    settings = tmp_path / "model" / "settings.yaml"
    for trained, split, warns in (
        ("train", "train[:90%]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train[:50%]", "train", True),
        ("train", None, True),  # the only one, as there is no split test
    ):
        settings.write_text(f"dataset: {tmp_path / 'set'}\ndataset_split: {trained}\n")
        named = [] if split is None else ["--split", split]
        main(["calibrate", "--model", folder, "--dataset", str(tmp_path / "set"), "--target-fpr", "0.2", *named])
        note = f"split {split or 'train'} of set has images that the model was trained on (split {trained})"
        assert (note in capsys.readouterr().err) is warns, split


def test_calibrate_reports_images_that_do_not_fit_the_model(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "colour").mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 1 + 12 * index, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "colour" / f"{index:02}.png")
    command = ["calibrate", "--model", folder, "--dataset", str(tmp_path / "colour"), "--target-fpr", "0.2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    refusal = capsys.readouterr().err
    assert "the first image is 16x16 colour; all are converted to gray" in refusal and "add --other-data" in refusal
    assert not (tmp_path / "model" / "calibration.json").exists()
    main([*command, "--other-data"])
    assert "note: the first image is 16x16 colour" in capsys.readouterr().err
    main(["info", "--model", folder])
    assert "calibrated on 20 samples of colour, split train, target_fpr=0.2" in capsys.readouterr().out


def test_without_a_calibration_the_error_names_the_command(folder, tmp_path, capsys):
    path, command = str(tmp_path / "a.png"), f"hf-ebm calibrate --model {folder} --dataset NAME"
    PIL.Image.new("L", (8, 8)).save(path)
    files = ["score", "--model", folder]
    data = [*files, "--dataset", "digits", "--split", "test", "--num-workers", "0", "--output", str(tmp_path / "out")]
    for arguments in ([*files, path, "--require-calibration"], [*data, "--require-calibration"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert command in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*files, path, "--score", "typicality"])
    assert "hf-ebm calibrate --model FOLDER" in capsys.readouterr().err
    main(data)
    assert command in capsys.readouterr().out
