"""OOD metrics by hand and by counting, intervals that cover, baselines that see what they must."""

import numpy as np
import pytest
import torch

from hf_ebm.data import load_digits
from hf_ebm.scoring.odd_images import ODD_IMAGES, blurred, shuffled_patches
from hf_ebm.scoring.ood_evaluation import evaluate_ood, fit_baselines, make_odd_sets, ood_metrics, with_intervals
from hf_ebm.scoring.plots import plot_roc


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
        row = with_intervals(a, b, num_resamples=60, confidence=0.8, seed=seed)["auroc"]
        assert row["low"] <= row["value"] <= row["high"]
        hits += row["low"] <= truth <= row["high"]
    assert 11 <= hits <= 20
    again = with_intervals(a, b, num_resamples=60, confidence=0.8, seed=seed)["auroc"]
    assert again == row


def test_shuffled_patches_moves_whole_patches():
    images = torch.arange(2 * 64.0).reshape(2, 1, 8, 8)
    odd = shuffled_patches(images, torch.Generator().manual_seed(0))
    patches = lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(2, 16, 4)  # noqa: E731
    assert not torch.equal(odd, images)
    for before, after in zip(patches(images), patches(odd), strict=True):
        assert {tuple(p.tolist()) for p in before} == {tuple(p.tolist()) for p in after}
    with pytest.raises(ValueError, match="divisible by 4"):
        shuffled_patches(torch.zeros(1, 1, 6, 6))


def test_blurred_keeps_constants_and_smooths():
    assert torch.allclose(blurred(torch.full((1, 3, 8, 8), 0.3)), torch.tensor(0.3))
    image = torch.randn(1, 1, 8, 8)
    assert blurred(image).std() < 0.5 * image.std()


@pytest.fixture(scope="module")
def found():
    train, test = load_digits("train")[0][:400], load_digits("test")[0][:60]
    scorers = fit_baselines(train)
    odd = make_odd_sets(test, ["noise", "inverted"])
    return evaluate_ood({**scorers, "constant": lambda x: torch.arange(len(x)) % 7.0}, test, odd, num_resamples=20)


def test_baselines_tell_noise_from_digits(found):
    table, scores = found
    assert set(table) == {"pixel_gaussian", "pca_residual", "nearest_neighbour", "autoencoder", "constant"}
    for name, rows in table.items():
        assert set(rows) == {"noise", "inverted", "mean"}
        mean = np.mean([rows["noise"]["auroc"]["value"], rows["inverted"]["auroc"]["value"]])
        assert rows["mean"]["auroc"] == pytest.approx(mean)
        assert rows["noise"]["auroc"]["value"] == 0.5 if name == "constant" else rows["noise"]["auroc"]["value"] > 0.95
        assert scores[name]["in_distribution"].shape == (60,)


def test_roc_picture(found, tmp_path):
    plot_roc(found[1], tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000


def test_mistakes():
    with pytest.raises(ValueError, match="at least 10"):
        with_intervals(torch.zeros(3), torch.zeros(20))
    with pytest.raises(ValueError, match="1 NaN"):
        with_intervals(torch.randn(20), torch.tensor([float("nan"), *range(19)]))
    with pytest.raises(ValueError, match="mosaics"):
        make_odd_sets(torch.zeros(4, 1, 8, 8), ["mosaics"])
    assert set(make_odd_sets(torch.zeros(4, 1, 8, 8), list(ODD_IMAGES))) == set(ODD_IMAGES)
