"""Each score against its definition, and the calibration's promise against counting."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hf_ebm.scoring.calibration import MAX_REFERENCE, Calibration
from hf_ebm.scoring.scores import SCORES, MeasureStatistics, OthersStatistics


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


@pytest.mark.parametrize("score", ["typicality", "complexity", "multiscale", "combined"])
def test_scores_with_statistics_hold_the_rate_with_few_samples_too(score):
    random, rates = torch.Generator().manual_seed(2), []

    def draw(number):
        energies = torch.randn(number, 3, generator=random)
        others = {"compressed_size": torch.randn(number, generator=random)}
        others["reconstruction_error"] = torch.rand(number, generator=random)
        return {"energy": energies[:, 0], "energies": energies, **others}

    for _ in range(800):
        calibration, new = Calibration.fit(draw(19), 0.05), draw(400)
        p_values = calibration.p_values(score, SCORES[score].function(new, calibration.statistics))
        rates.append((p_values <= 0.05).float().mean().item())
    mean, error = np.mean(rates), np.std(rates) / len(rates) ** 0.5
    assert 0.03 < mean < 0.05 + 3 * error


def test_a_measure_that_tells_nothing_costs_its_own_scores_alone(caplog):
    measures = {"energy": torch.randn(50), "compressed_size": torch.full((50,), 70.0)}
    calibration = Calibration.fit(measures, 0.05)
    assert set(calibration.reference) == {"energy", "typicality"}
    assert "score 'complexity' is left out: all 50 samples have the same compressed_size" in caplog.text


def test_statistics_of_the_others():
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = OthersStatistics(values)
    for index in range(6):
        left = MeasureStatistics.of(torch.cat([values[:index], values[index + 1 :]]))
        assert_close(others.standardise(values)[index], left.standardise(values[index : index + 1])[0])
        assert_close(torch.stack([mean[index] for mean in others.mean]).tolist(), left.mean)


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
