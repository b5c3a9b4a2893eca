"""transformers.pipeline("ood-detection"), AutoModel and EnergyScoringPipeline give the same energies."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from fresh_process import run_in_fresh_process
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel, pipeline

import hf_ebm.pipelines.ood_detection  # noqa: F401 (registers the task)
from hf_ebm import EBMImageProcessor, EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.scoring.calibration import Calibration


@pytest.fixture
def pictures():
    pixels = load_digits("test")[0][:30, 0].mul(255).round().byte().numpy()
    return [PIL.Image.fromarray(image) for image in pixels]


@pytest.fixture(params=["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def scorer(request):
    scorer = EnergyScoringPipeline.from_pipe(request.getfixturevalue(request.param))
    scorer.set_progress_bar_config(disable=True)
    return scorer


def test_three_routes_one_energy(scorer, pictures, tmp_path):
    scorer.calibrate(pictures, target_fpr=0.2)
    expected = scorer(pictures)
    scorer.save_pretrained(tmp_path)
    detect = pipeline("ood-detection", model=str(tmp_path / "energy_model"), calibration=tmp_path)
    found = detect(pictures, batch_size=4)
    assert_close(torch.tensor([f["energy"] for f in found]), expected.energies, rtol=1e-4, atol=1e-4)
    # a calibration image's score, here the density's, equals its own only to rounding, which may move its rank by one
    p_values = torch.tensor([f["p_value"] for f in found], dtype=torch.float64)
    assert_close(p_values, expected.p_values, rtol=0, atol=1.01 / 16)
    assert_close(torch.tensor([f["score"] for f in found]).double(), expected.scores, rtol=1e-3, atol=1e-4)
    assert all(f["is_ood"] == (f["p_value"] <= 0.2) for f in found)
    one_sided = pipeline("ood-detection", model=str(tmp_path / "energy_model"), calibration=tmp_path, score="energy")
    p_values = torch.tensor([f["p_value"] for f in one_sided(pictures)], dtype=torch.float64)
    assert_close(p_values, scorer(pictures, score="energy").p_values, rtol=0, atol=1.01 / 31)

    model = AutoModel.from_pretrained(tmp_path, subfolder="energy_model")
    processor = AutoImageProcessor.from_pretrained(tmp_path, subfolder="energy_model")
    with torch.no_grad():
        energies = model(**processor(pictures)).energy
    assert_close(energies, expected.energies, rtol=1e-4, atol=1e-4)


def test_the_padding_of_the_training_is_the_image_processors(scorer, pictures, tmp_path):
    scorer.image_processor = EBMImageProcessor(8, 1, padding=2)
    scorer.save_pretrained(tmp_path)
    inner = [picture.crop((2, 2, 6, 6)) for picture in pictures[:3]]
    found = pipeline("ood-detection", model=str(tmp_path / "energy_model"))(inner)
    again = EnergyScoringPipeline.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    expected = scorer(inner).energies
    assert_close(torch.tensor([f["energy"] for f in found]), expected, rtol=1e-4, atol=1e-4)
    assert pipeline("ood-detection", model=str(tmp_path / "again" / "energy_model"))(inner) == found


def test_file_names_and_saving_again(scorer, pictures, tmp_path):
    scorer.save_pretrained(tmp_path / "a")
    pictures[0].resize((24, 24), PIL.Image.Resampling.NEAREST).convert("RGB").save(tmp_path / "big.png")
    detect = pipeline("ood-detection", model=str(tmp_path / "a" / "energy_model"))
    before = detect(str(tmp_path / "big.png"))
    assert set(before) == {"energy"}
    detect.save_pretrained(tmp_path / "b")
    assert pipeline("ood-detection", model=str(tmp_path / "b"))(str(tmp_path / "big.png")) == before


def test_sixteen_bits_are_scaled_and_damaged_files_named(scorer, pictures, tmp_path):
    scorer.save_pretrained(tmp_path / "a")
    deep = np.asarray(pictures[0]).astype(np.uint16) * 257
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    detect = pipeline("ood-detection", model=str(tmp_path / "a" / "energy_model"))
    assert detect(str(tmp_path / "deep.png")) == detect(pictures[0])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        detect(str(tmp_path / "broken.png"))


def test_a_fresh_process_needs_one_import(scorer, pictures, tmp_path):
    scorer.save_pretrained(tmp_path)
    pictures[0].save(tmp_path / "digit.png")
    code = (
        "import json, sys, transformers, hf_ebm.pipelines.ood_detection\n"
        "detect = transformers.pipeline('ood-detection', model=sys.argv[1] + '/energy_model')\n"
        "print(json.dumps(detect(sys.argv[1] + '/digit.png')))\n"
    )
    energy = json.loads(run_in_fresh_process(code, str(tmp_path)).splitlines()[-1])["energy"]
    assert energy == pytest.approx(scorer(pictures[0]).energies.item(), rel=1e-4, abs=1e-4)


def test_an_offloaded_energy_gives_the_same(scorer, pictures, tmp_path):
    scorer.save_pretrained(tmp_path)
    options = {"model": str(tmp_path / "energy_model")}
    expected = pipeline("ood-detection", **options)(pictures[0])
    found = pipeline("ood-detection", **options, device_map={"": "cpu"})(pictures[0])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_nan_energy_is_an_error(scorer, pictures, tmp_path, calibrated):
    scorer.calibrate(pictures, target_fpr=0.2)
    scorer.save_pretrained(tmp_path)
    options = {"calibration": tmp_path} if calibrated else {}
    detect = pipeline("ood-detection", model=str(tmp_path / "energy_model"), **options)
    with torch.no_grad():
        for parameter in detect.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"energy is NaN for 1 of 1 images.*check .*weights"):
        detect(pictures[0])


def test_mistakes(scorer, pictures, tmp_path):
    scorer.save_pretrained(tmp_path)
    model = str(tmp_path / "energy_model")
    with pytest.raises(ValueError, match=r"no calibration\.json"):
        pipeline("ood-detection", model=model, calibration=str(tmp_path))
    with pytest.raises(ValueError, match="treshold"):
        pipeline("ood-detection", model=model, treshold=3)
    with pytest.raises(ValueError, match="was not calibrated"):
        Calibration(0.1, 20, 0, {}, {}).p_values("energy", torch.zeros(1))
