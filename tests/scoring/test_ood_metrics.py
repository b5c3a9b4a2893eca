"""OOD metrics by hand, the fast ones against scikit-learn's, intervals that cover."""

import numpy as np
import pytest
import torch

from hf_ebm.scoring.ood_metrics import METRICS, fpr95, ood_metrics, ood_metrics_of_rows, with_intervals


def test_metrics_by_hand():
    found = ood_metrics(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 5.0]))
    assert found["auroc"] == pytest.approx(7 / 8)  # of 8 pairs only (4, 3.5) is in the wrong order
    assert found["fpr95"] == pytest.approx(1 / 4)
    assert found["aupr_out"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["aupr_in"] == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    perfect = ood_metrics(np.zeros(20), np.ones(20))
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
    inside, odd = random.integers(0, spread, (2, 3, 31)) / 7, random.integers(spread // 3, 2 * spread, (2, 3, 22)) / 7
    found = ood_metrics_of_rows(inside, odd)
    assert found.shape == (4, 2, 3)
    for i in range(2):
        for j in range(3):
            expected = ood_metrics(inside[i, j], odd[i, j])
            np.testing.assert_allclose(found[:, i, j], [expected[name] for name in METRICS], rtol=1e-12)


def test_the_interval_is_scipys_bootstrap_of_scikit_learns_metrics():
    from scipy.stats import bootstrap

    random = torch.Generator().manual_seed(0)
    inside, odd = (torch.randn(40, generator=random) * 4).round(), (torch.randn(30, generator=random) * 4).round() + 3
    slow = bootstrap(
        [inside.double().numpy(), odd.double().numpy()],
        lambda a, b: np.array(list(ood_metrics(a, b).values())),
        n_resamples=25,
        vectorized=False,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    fast = with_intervals(inside, {"odd": odd}, num_resamples=25, seed=4)["odd"]
    np.testing.assert_allclose([fast[name]["low"] for name in METRICS], slow.low, rtol=1e-12)
    np.testing.assert_allclose([fast[name]["high"] for name in METRICS], slow.high, rtol=1e-12)


def test_the_means_interval_covers_the_truth_where_the_odd_sets_share_their_in_distribution_set():
    """Four odd sets of one distribution: the sets' intervals are independent in their odd samples alone."""
    truth, hits = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item()), 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        inside = torch.randn(60, generator=random)
        odd = {str(size): torch.randn(size, generator=random) + 1 for size in (150, 150, 200, 300)}
        row = with_intervals(inside, odd, num_resamples=60, confidence=0.8, seed=seed)["mean"]["auroc"]
        assert row["low"] <= row["value"] <= row["high"]
        hits += row["low"] <= truth <= row["high"]
    assert 11 <= hits <= 20


def test_sets_made_of_the_same_images_are_resampled_alike():
    random = torch.Generator().manual_seed(0)
    inside, odd = torch.randn(50, generator=random), torch.randn(40, generator=random) + 0.5
    rows = with_intervals(inside, {"once": odd, "again": odd, "other": odd[:30]}, num_resamples=30)
    alone = with_intervals(inside, {"once": odd}, num_resamples=30)
    assert rows["once"] == rows["again"] != rows["other"]
    assert alone["once"] == alone["mean"]
    for metric in METRICS:
        values = [rows[name][metric]["value"] for name in ("once", "again", "other")]
        assert rows["mean"][metric]["value"] == pytest.approx(sum(values) / 3)


def test_mistakes():
    with pytest.raises(ValueError, match="at least 10"):
        with_intervals(torch.zeros(3), {"odd": torch.zeros(20)})
    for value in ("nan", "inf"):
        with pytest.raises(ValueError, match="odd scores hold 1 NaN or infinite"):
            with_intervals(torch.randn(20), {"odd": torch.tensor([float(value), *range(19)])})
    with pytest.raises(ValueError, match="one odd set at least"):
        with_intervals(torch.randn(20), {})


@pytest.mark.parametrize("spread", [5, 10**6])  # with ties, without
@pytest.mark.parametrize("number", [20, 22, 100])
def test_fpr95_is_the_first_point_of_the_roc_curve_that_finds_95_percent(number, spread):
    from sklearn.metrics import roc_curve

    for seed in range(10):
        random = np.random.default_rng(seed)
        inside, odd = random.integers(0, spread, 60), random.integers(spread // 4, 2 * spread, number)
        labels = np.concatenate([np.zeros(60), np.ones(number)])
        fpr, tpr, _ = roc_curve(labels, np.concatenate([inside, odd]), drop_intermediate=False)
        assert fpr95(inside, odd) == pytest.approx(fpr[tpr >= 0.95][0])
