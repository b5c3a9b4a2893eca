"""OOD metrics by hand and against scikit-learn's; coverage of the intervals."""

import numpy as np
import pytest
import torch

from hf_ebm.evaluation.ood import METRICS, fpr95, ood_metrics, with_intervals


def scikit_learns(inside, ood):
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = np.r_[np.zeros(len(inside)), np.ones(len(ood))], np.r_[inside, ood]
    precision = [average_precision_score(labels, scores), average_precision_score(1 - labels, -scores)]
    return np.array([roc_auc_score(labels, scores), *precision, fpr95(inside, ood)])


def by_name(inside, ood):
    return dict(zip(METRICS, ood_metrics(inside, ood), strict=True))


def test_metrics_by_hand():
    found = by_name(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0]))
    assert found["auroc"] == pytest.approx(7 / 8)  # of 8 pairs only (4, 3.5) is in the wrong order
    assert found["fpr95"] == pytest.approx(1 / 4)
    assert found["aupr_out"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["aupr_in"] == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    perfect = by_name(np.zeros(20), np.ones(20))
    assert (perfect["auroc"], perfect["aupr_out"], perfect["aupr_in"], perfect["fpr95"]) == (1, 1, 1, 0)


def test_intervals_cover_the_truth():
    """Two normals one apart: AUROC is Phi(1 / sqrt 2); most 80 % intervals of 20 draws hold it, not all need to."""
    truth, hits = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item()), 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        a, b = torch.randn(150, generator=random), torch.randn(150, generator=random) + 1
        row = with_intervals(a, {"b": b}, num_resamples=60, confidence=0.8, seed=seed)["b"]["auroc"]
        assert row["low"] <= row["value"] <= row["high"]
        hits += row["low"] <= truth <= row["high"]
    assert 11 <= hits <= 20
    again = with_intervals(a, {"b": b}, num_resamples=60, confidence=0.8, seed=seed)["b"]["auroc"]
    assert again == row


@pytest.mark.parametrize("spread", [3, 40, 10**6])  # nearly all scores equal; some; none
def test_rows_are_scikit_learns(spread):
    random = np.random.default_rng(spread)
    inside, ood = random.integers(0, spread, (2, 3, 31)) / 7, random.integers(spread // 3, 2 * spread, (2, 3, 22)) / 7
    found = ood_metrics(inside, ood)
    assert found.shape == (4, 2, 3)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[:, i, j], scikit_learns(inside[i, j], ood[i, j]), rtol=1e-12)


def test_the_interval_is_scipys_bootstrap_of_scikit_learns_metrics():
    from scipy.stats import bootstrap

    random = torch.Generator().manual_seed(0)
    inside, ood = (torch.randn(40, generator=random) * 4).round(), (torch.randn(30, generator=random) * 4).round() + 3
    slow = bootstrap(
        [inside.double().numpy(), ood.double().numpy()],
        scikit_learns,
        n_resamples=25,
        vectorized=False,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    fast = with_intervals(inside, {"ood": ood}, num_resamples=25, seed=4)["ood"]
    np.testing.assert_allclose([fast[name]["low"] for name in METRICS], slow.low, rtol=1e-12)
    np.testing.assert_allclose([fast[name]["high"] for name in METRICS], slow.high, rtol=1e-12)


def test_the_means_interval_covers_the_truth_where_the_ood_sets_share_their_in_distribution_set():
    """Four OOD sets of one distribution: the sets' intervals are independent only in their OOD samples."""
    truth, hits = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item()), 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        inside = torch.randn(60, generator=random)
        ood = {str(size): torch.randn(size, generator=random) + 1 for size in (150, 150, 200, 300)}
        row = with_intervals(inside, ood, num_resamples=60, confidence=0.8, seed=seed)["mean"]["auroc"]
        assert row["low"] <= row["value"] <= row["high"]
        hits += row["low"] <= truth <= row["high"]
    assert 11 <= hits <= 20


def correlated(seed, number=150):
    """Scores of images and of what was made from them: both normal, one apart, with correlation 0.9."""
    random = torch.Generator().manual_seed(seed)
    inside, noise = torch.randn(2, number, generator=random)
    return inside, 1 + 0.9 * inside + (1 - 0.81) ** 0.5 * noise


def test_paired_intervals_are_an_independent_bootstrap_of_pairs():
    """The same quantiles as a loop over resampled pairs by scikit-learn, up to the bootstrap's own noise."""
    inside, ood = correlated(0)
    row = with_intervals(inside, {"ood": ood}, ["ood"], num_resamples=4000)["ood"]
    random, found = np.random.default_rng(1), []
    for _ in range(4000):
        pairs = random.integers(0, len(inside), len(inside))
        a, b = inside.numpy()[pairs], ood.numpy()[pairs]
        found.append((b[None] > a[:, None]).mean() + 0.5 * (b[None] == a[:, None]).mean())
    width = row["auroc"]["high"] - row["auroc"]["low"]
    low, high = np.quantile(found, [0.025, 0.975])
    assert abs(row["auroc"]["low"] - low) < 0.1 * width and abs(row["auroc"]["high"] - high) < 0.1 * width
    apart = with_intervals(inside, {"ood": ood}, num_resamples=4000)["ood"]["auroc"]
    assert width < 0.6 * (apart["high"] - apart["low"])


def test_paired_intervals_cover_the_truth_and_independent_ones_of_pairs_are_too_wide():
    truth, number = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item()), 150
    hits = {True: 0, False: 0}
    for seed in range(number):
        inside, ood = correlated(seed, 100)
        for paired in hits:
            names = ["ood"] if paired else []
            row = with_intervals(inside, {"ood": ood}, names, 100, confidence=0.8, seed=seed)["ood"]["auroc"]
            hits[paired] += row["low"] <= truth <= row["high"]
    error = (0.8 * 0.2 / number) ** 0.5
    assert abs(hits[True] / number - 0.8) < 3 * error + 0.02  # the percentile bootstrap's own error at n = 100
    assert hits[False] / number > 0.93


def test_paired_sets_share_their_resamples_and_others_have_their_own():
    random = torch.Generator().manual_seed(0)
    inside, ood = torch.randn(50, generator=random), torch.randn(50, generator=random) + 0.5
    sets = {"once": ood, "again": ood, "other": ood.clone(), "small": ood[:30]}
    rows = with_intervals(inside, sets, ["once", "again"], num_resamples=30)
    assert rows["once"] == rows["again"] != rows["other"]
    alone = with_intervals(inside, {"once": ood}, ["once"], num_resamples=30)
    assert alone["once"] == alone["mean"]
    for metric in METRICS:
        values = [rows[name][metric]["value"] for name in sets]
        assert rows["mean"][metric]["value"] == pytest.approx(sum(values) / 4)
    for name, got in (("small", "30 scores"), ("none", "no such set")):
        with pytest.raises(ValueError, match=rf"in-distribution score \(50\), got '{name}' with {got}"):
            with_intervals(inside, sets, [name])


def test_mistakes():
    with pytest.raises(ValueError, match="at least 10"):
        with_intervals(torch.zeros(3), {"ood": torch.zeros(20)})
    for value in ("nan", "inf"):
        with pytest.raises(ValueError, match="OOD scores hold 1 NaN or infinite"):
            with_intervals(torch.randn(20), {"ood": torch.tensor([float(value), *range(19)])})
    with pytest.raises(ValueError, match="one OOD set at least"):
        with_intervals(torch.randn(20), {})


@pytest.mark.parametrize("spread", [5, 10**6])  # with ties, without
@pytest.mark.parametrize("number", [20, 22, 100])
def test_fpr95_is_the_first_point_of_the_roc_curve_that_finds_95_percent(number, spread):
    from sklearn.metrics import roc_curve

    for seed in range(10):
        random = np.random.default_rng(seed)
        inside, ood = random.integers(0, spread, 60), random.integers(spread // 4, 2 * spread, number)
        labels = np.concatenate([np.zeros(60), np.ones(number)])
        fpr, tpr, _ = roc_curve(labels, np.concatenate([inside, ood]), drop_intermediate=False)
        assert fpr95(inside, ood) == pytest.approx(fpr[tpr >= 0.95][0])
