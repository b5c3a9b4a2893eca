"""Each score against its definition, and the calibration's promise against counting."""

import io
import math

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_ebm import DiffusionCoefficients
from hf_ebm.models.mlp_energy import MLPEnergyConfig, MLPEnergyModel
from hf_ebm.scoring.calibration import MAX_REFERENCE, Calibration
from hf_ebm.scoring.scores import (
    SCORES,
    MeasureStatistics,
    measure_compressed_size,
    measure_energies,
    measure_gradient_norm,
)


@pytest.fixture
def measures():
    random = torch.Generator().manual_seed(0)
    return {
        "energy": 3.0 + 2.0 * torch.randn(500, generator=random),
        "energies": torch.randn(500, 4, generator=random) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5.0,
        "gradient_norm": torch.rand(500, generator=random),
        "compressed_size": 100.0 + 10.0 * torch.randn(500, generator=random),
        "reconstruction_error": torch.rand(500, generator=random),
    }


def test_scores_are_their_formulas(measures):
    statistics = {name: MeasureStatistics.of(values) for name, values in measures.items()}
    m = {name: values.double() for name, values in measures.items()}

    def z(name):
        return (m[name] - m[name].mean(0)) / m[name].std(0)

    expected = {
        "energy": m["energy"],
        "gradient_norm": m["gradient_norm"],
        "reconstruction": m["reconstruction_error"],
        "multiscale": z("energies").mean(dim=1),
        "typicality": (m["energy"] - m["energy"].mean()).abs(),
        "complexity": z("energy") - z("compressed_size"),
        "combined": z("energy") + z("reconstruction_error"),
    }
    assert expected.keys() == SCORES.keys()
    for name, score in SCORES.items():
        assert_close(score.function({key: measures[key] for key in score.measures}, statistics), expected[name])


def test_gradient_norm_is_autograds_and_touches_nothing():
    model = MLPEnergyModel(MLPEnergyConfig(num_timesteps=1)).train()
    x = torch.randn(10, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x, 0).energy.sum(), x)
    got = measure_gradient_norm(model, x.detach(), batch_size=3)
    assert_close(got, grad.norm(dim=1))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_noised_energies_do_not_depend_on_the_batch():
    model, q = MLPEnergyModel(MLPEnergyConfig(num_timesteps=4)), DiffusionCoefficients.vp(4)
    x = torch.randn(9, 2)
    whole = measure_energies(model, x, q, seed=3)
    assert whole.shape == (9, 4)
    assert_close(measure_energies(model, x[4:5], q, seed=3), whole[4:5])
    assert not torch.allclose(measure_energies(model, x, q, seed=4), whole)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    x_2 = q.alphas_cumprod[2].sqrt() * x + (1 - q.alphas_cumprod[2]).sqrt() * noise[2]
    assert_close(whole[:, 2], model(x_2.float(), 2).energy, rtol=1e-4, atol=1e-5)


def test_compressed_size_is_a_pngs():
    x = torch.stack([torch.zeros(1, 8, 8), torch.rand(1, 8, 8) * 2 - 1])
    flat, noisy = measure_compressed_size(x).tolist()
    assert flat < noisy and noisy <= 8 * (64 + 8 + 60)
    file = io.BytesIO()
    pixels = ((x[1, 0] + 1) * 127.5).round().byte().numpy()
    PIL.Image.fromarray(pixels).save(file, format="png", optimize=True)
    smallest = io.BytesIO()
    PIL.Image.fromarray(np.zeros((1, 1), dtype=np.uint8)).save(smallest, format="png", optimize=True)
    assert noisy == 8 * (file.tell() - smallest.tell())
    assert measure_compressed_size(torch.zeros(2, 3, 4, 4)).shape == (2,)
    assert measure_compressed_size(torch.zeros(2, 5, 4, 4)).shape == (2,)
    with pytest.raises(ValueError, match="compressed size"):
        measure_compressed_size(torch.zeros(2, 3))


@pytest.mark.parametrize("number", [19, 200, 5000])
def test_p_values_count_and_hold_the_false_positive_rate(number):
    """Over many calibration sets, the share of new in-distribution samples called odd is at most target_fpr."""
    random, rates = torch.Generator().manual_seed(1), []
    for _ in range(200):
        calibration = Calibration.fit({"energy": torch.randn(number, generator=random)}, 0.05)
        new = torch.randn(400, generator=random)
        rates.append((calibration.p_values("energy", new) <= 0.05).float().mean().item())
    mean, error = np.mean(rates), np.std(rates) / len(rates) ** 0.5
    assert mean < 0.05 + 3 * error and mean > 0.05 - 3 * error - 1 / (min(number, MAX_REFERENCE) + 1)
    assert len(calibration.reference["energy"]) == min(number, MAX_REFERENCE)


def test_p_values_by_hand():
    calibration = Calibration.fit({"energy": torch.tensor([1.0, 2.0, 3.0, 4.0])}, 0.4)
    p = calibration.p_values("energy", torch.tensor([0.0, 2.0, 3.5, 5.0]))
    assert_close(p, torch.tensor([1.0, 0.8, 0.4, 0.2], dtype=torch.float64))
    assert calibration.threshold("energy") == 3.0  # 4 has p = 0.4 and is called odd


def test_a_small_target_keeps_enough_scores_to_call_anything_odd():
    calibration = Calibration.fit({"energy": torch.arange(60_000.0)}, 2e-4)
    reference = calibration.reference["energy"]
    assert len(reference) == 50_000
    at = torch.tensor([0.0, 59_979.0, 59_999.0, 1e9])
    exact = Calibration.fit({"energy": torch.arange(50_000.0)}, 2e-4).reference["energy"]
    assert len(exact) == 50_000 and exact == list(map(float, range(50_000)))
    assert calibration.p_values("energy", at)[-1] == 1 / 50_001
    assert calibration.threshold("energy") == pytest.approx(60_000 * (1 - 2e-4), abs=3)
    assert all(reference[k - 1] == -(-k * 60_001 // 50_001) - 1 for k in (1, 7, 25_000, 50_000))


def test_a_score_without_a_reference_has_no_threshold():
    with pytest.raises(ValueError, match="'typo' was not calibrated"):
        Calibration(0.1, 20, 0, {}, {}).threshold("typo")


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_calibration_needs_finite_scores(value):
    with pytest.raises(ValueError, match="score 'gradient_norm' is not finite for 1 of the 30"):
        Calibration.fit({"gradient_norm": torch.tensor([float(value), *range(29)])}, 0.1)


def test_calibration_round_trip(tmp_path, measures):
    calibration = Calibration.fit(measures, 0.1, seed=5, preprocessing="as given")
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert Calibration.load(tmp_path / "elsewhere") is None
    assert calibration.reference.keys() == SCORES.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Calibration.fit({"energy": torch.randn(10)}, 0.05), "at least 19"),
        (lambda: Calibration.fit({"energy": torch.randn(10)}, 1.5), "target_fpr"),
        (lambda: Calibration.fit({"energy": torch.ones(50)}, 0.05), "not all equal"),
        (lambda: Calibration.fit({"energy": torch.full((50,), math.nan)}, 0.05), "finite"),
        (lambda: Calibration.fit({"energy": torch.randn(50)}, 0.05).p_values("combined", torch.ones(1)), "combined"),
        (lambda: MeasureStatistics.of(torch.ones(1)), "at least 2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
