"""Each score against its definition, and the calibrated false positive rate against counts."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hf_ebm.scoring.calibration import FILE_NAME, FORMAT_VERSION, MAX_REFERENCE, Calibration
from hf_ebm.scoring.scores import SCORES, Fitted, Moments

ONE_SIDED = {name for name, score in SCORES.items() if not score.uses_reference}  # the others are in test_density.py


@pytest.fixture
def statistics():
    random = torch.Generator().manual_seed(0)
    return {
        "energy": 3.0 + 2.0 * torch.randn(500, generator=random),
        "energies": torch.randn(500, 4, generator=random) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5.0,
        "gradient_norm": torch.rand(500, generator=random),
        "compressed_size": 100.0 + 10.0 * torch.randn(500, generator=random),
        "reconstruction_error": torch.rand(500, generator=random),
    }


def test_scores_are_their_formulas(statistics):
    moments = {name: Moments.of(values) for name, values in statistics.items()}
    m = {name: values.double() for name, values in statistics.items()}

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
    assert expected.keys() == ONE_SIDED
    for name, formula in expected.items():
        score = SCORES[name]
        found = score.function({key: statistics[key] for key in score.statistics}, Fitted(moments))
        assert_close(found, formula)


def held_out(number, random):
    """Statistics of samples of a continuous distribution."""
    energies = torch.randn(number, 3, generator=random) ** 3
    sizes, errors = torch.randn(number, generator=random), torch.rand(number, generator=random)
    return {"energy": energies[:, 0], "energies": energies, "compressed_size": sizes, "reconstruction_error": errors}


@pytest.mark.parametrize(
    ("number", "target", "names", "num_sets"),
    [(9, 0.1, ["energy"], 3000), (20, 0.05, None, 500), (50, 0.1, None, 300)],
)
def test_p_values_are_exact_on_average_over_calibration_sets(number, target, names, num_sets):
    """P(p <= a) = floor(a (n + 1)) / (n + 1) for n calibration scores, for every score, by simulation."""
    random, rates = torch.Generator().manual_seed(number), {}
    held = 2 * number  # of which `number` calibrate a score with statistics
    for seed in range(num_sets):
        statistics, new = held_out(held, random), held_out(100, random)
        calibration = Calibration.fit({name: statistics[name] for name in names or statistics}, target, seed)
        for name in calibration.reference:
            p_values = calibration.p_values(name, SCORES[name].function(new, calibration.fitted))
            rates.setdefault(name, []).append((p_values <= target).double().mean().item())
    assert set(rates) == ({"energy", "typicality"} if names else ONE_SIDED - {"gradient_norm"})
    for name, found in rates.items():
        n = number if SCORES[name].needs_fitting else held
        assert calibration.num_calibrated(name) == len(calibration.reference[name]) == n
        expected = math.floor(target * (n + 1) + 1e-9) / (n + 1)
        assert calibration.expected_fpr(name) == pytest.approx(expected)
        # the rates of one set are Beta distributed, and a hundred new samples add a binomial error
        variance = expected * (1 - expected) * (1 / (n + 2) + 1 / 100)
        assert abs(np.mean(found) - expected) < 3.5 * (variance / num_sets) ** 0.5, name
        assert np.var(found) == pytest.approx(variance, rel=0.25)


def test_fewer_samples_than_the_target_needs_are_an_error():
    for number, target in ((8, 0.1), (18, 0.05)):
        with pytest.raises(ValueError, match=f"at least {number + 1} in-distribution samples for target_fpr={target}"):
            Calibration.fit({"energy": torch.randn(number)}, target)
        assert len(Calibration.fit({"energy": torch.randn(number + 1)}, target).reference["energy"]) == number + 1


def test_very_many_scores_are_thinned_and_keep_the_rate():
    """Over 100 calibration sets of 5,000; of 1,000 kept order statistics p is at most 1 / 5,001 under the formula."""
    random, rates = torch.Generator().manual_seed(1), []
    for _ in range(100):
        calibration = Calibration.fit({"energy": torch.randn(5000, generator=random)}, 0.05)
        rates.append((calibration.p_values("energy", torch.randn(400, generator=random)) <= 0.05).double().mean())
    mean, error = np.mean(rates), np.std(rates) / len(rates) ** 0.5
    assert len(calibration.reference["energy"]) == MAX_REFERENCE
    assert abs(mean - calibration.expected_fpr("energy")) < 4 * error + 1 / 5001


def test_statistics_come_from_a_random_half_that_calibrates_nothing():
    statistics = held_out(41, torch.Generator().manual_seed(0))
    for seed in (0, 1):
        calibration = Calibration.fit(statistics, 0.1, seed)
        order = torch.randperm(41, generator=torch.Generator().manual_seed(seed))
        fitting, calibrating = order[:20], order[20:]
        assert calibration.statistics["energies"] == Moments.of(statistics["energies"][fitting])
        mean = statistics["energy"][fitting].double().mean()
        distances = (statistics["energy"][calibrating].double() - mean).abs().sort().values
        assert_close(torch.tensor(calibration.reference["typicality"], dtype=torch.float64), distances)
        assert len(calibration.reference["energy"]) == 41 and calibration.num_fitted == 20
    assert Calibration.fit(statistics, 0.1, 0).reference != calibration.reference


def test_too_few_samples_for_statistics_leave_the_other_scores(caplog):
    random = torch.Generator().manual_seed(0)
    calibration = Calibration.fit(held_out(36, random), 0.05)
    assert set(calibration.reference) == {"energy", "reconstruction"} and calibration.num_fitted == 0
    assert "score 'combined' is left out: half of the samples fit its statistics, so it needs 37" in caplog.text
    with pytest.raises(ValueError, match=r"'combined' was not calibrated.*at least 37 samples.*36 were given"):
        calibration.check_has("combined")
    calibration = Calibration.fit(held_out(37, random), 0.05)
    assert len(calibration.reference["combined"]) == 19 and len(calibration.reference["energy"]) == 37
    assert Calibration.fit(held_out(4, random), 0.5).num_fitted == 2


def test_a_constant_statistic_only_disables_its_scores(caplog):
    statistics = {"energy": torch.randn(50), "compressed_size": torch.full((50,), 70.0)}
    calibration = Calibration.fit(statistics, 0.05)
    assert set(calibration.reference) == {"energy", "typicality"}
    assert "score 'complexity' is left out: the 25 samples that fit its statistics all have the same" in caplog.text


@pytest.mark.parametrize("score", ["energy", "typicality"])
def test_a_nan_score_has_no_p_value(score):
    calibration = Calibration.fit({"energy": torch.randn(50)}, 0.05)
    with pytest.raises(ValueError, match=rf"score '{score}' is NaN for 1 of 3 images \(the first: number 1"):
        calibration.p_values(score, torch.tensor([0.0, math.nan, 1.0]))


def test_p_values_by_hand():
    calibration = Calibration.fit({"energy": torch.tensor([1.0, 2.0, 3.0, 4.0])}, 0.4)
    p = calibration.p_values("energy", torch.tensor([0.0, 2.0, 3.5, 5.0]))
    assert_close(p, torch.tensor([1.0, 0.8, 0.4, 0.2], dtype=torch.float64))
    assert calibration.threshold("energy") == 3.0  # 4 has p = 0.4 and is flagged


def test_a_small_target_keeps_enough_scores_to_flag_anything():
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


def test_calibration_round_trip(tmp_path, statistics):
    calibration = Calibration.fit(statistics, 0.1, seed=5, preprocessing="as given")
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert Calibration.load(tmp_path / "elsewhere") is None
    assert calibration.reference.keys() == ONE_SIDED


def test_a_file_without_a_version_still_loads(tmp_path, statistics):
    calibration = Calibration.fit(statistics, 0.1)
    calibration.save(tmp_path)
    values = json.loads((tmp_path / FILE_NAME).read_text())
    assert values.pop("format_version") == FORMAT_VERSION and values.pop("num_fitted") == 250
    (tmp_path / FILE_NAME).write_text(json.dumps(values))
    old = Calibration.load(tmp_path)
    assert old == dataclasses.replace(calibration, num_fitted=0)
    for name in ("preprocessing", "trained_on", "dataset"):  # files that are older still
        del values[name]
    (tmp_path / FILE_NAME).write_text(json.dumps(values))
    assert Calibration.load(tmp_path).threshold("combined") == calibration.threshold("combined")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": {}}, r"unknown keys \['thresholds'\]; known are \['target_fpr'"),
        ({"format_version": 5}, "format_version 5, and this version of hf-ebm reads 1 to 4; update hf-ebm"),
        ({"format_version": "new"}, "format_version 'new'"),
        ({"seed": None}, "seed must be a whole number"),
        ({"target_fpr": 2}, "target_fpr must be a number between 0 and 1"),
        ({"num_samples": "40"}, "num_samples must be a whole number"),
        ({"num_fitted": -1}, "num_fitted must be a whole number"),
        ({"trained_on": []}, "trained_on must be true, false or null"),
        ({"reference": []}, "reference must be an object"),
        ({"reference": {"energy": []}}, "reference of 'energy' must be a sorted list"),
        ({"reference": {"energy": [2.0, 1.0]}}, "reference of 'energy' must be a sorted list"),
        ({"reference": {"energy": [1.0, math.nan]}}, "reference of 'energy' must be a sorted list"),
        ({"statistics": {"energy": {"mean": [0.0]}}}, "must have the keys mean and std"),
        ({"statistics": {"energy": {"mean": 0.0, "std": [1.0]}}}, "mean of 'energy' must be a list of finite numbers"),
    ],
)
def test_a_damaged_file_is_an_error_with_the_reason(tmp_path, statistics, changes, message):
    Calibration.fit(statistics, 0.1).save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=rf"calibration\.json cannot be used: .*{message}.*Calibrate again"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"target_fpr": 0.1}', "null"])
def test_a_file_that_is_no_calibration_is_an_error(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json cannot be used: it (is not valid|must hold|lacks)"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Calibration.fit({"energy": torch.randn(10)}, 0.05), "at least 19"),
        (lambda: Calibration.fit({"energy": torch.randn(10)}, 1.5), "target_fpr"),
        (lambda: Calibration.fit({"energy": torch.ones(50)}, 0.05), "not all equal"),
        (lambda: Calibration.fit({"energy": torch.full((50,), math.nan)}, 0.05), "finite"),
        (lambda: Calibration.fit({"energy": torch.randn(50)}, 0.05).p_values("combined", torch.ones(1)), "combined"),
        (lambda: Moments.of(torch.ones(1)), "at least 2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
