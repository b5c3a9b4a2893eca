"""Feature statistics: sums that give the moments, features kept up to a limit, a cache that detects damage."""

import pytest
import torch
from torch.testing import assert_close

from hf_ebm.evaluation import feature_extractors as feature_statistics
from hf_ebm.evaluation.feature_extractors import FeatureStatistics
from hf_ebm.evaluation.sample_metrics import (
    frechet_distance,
    frechet_distance_of_statistics,
    inception_score,
    kernel_distance,
    kernel_subset_size,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_moments_and_kept_features(monkeypatch):
    monkeypatch.setattr(feature_statistics, "MAX_KEPT", 25)
    images = noise(40, 3)
    found = FeatureStatistics.of(images.split(16), lambda x: 2 * x)
    assert found.num_images == 40 and torch.equal(found.features, 2 * images[:25])
    assert_close(found.total, 2 * images.double().sum(0))
    mean = found.total / 40
    covariance = (found.outer - 40 * mean.outer(mean)) / 39
    assert_close(covariance, torch.cov(2 * images.double().T))
    with pytest.raises(ValueError, match="images is empty"):
        FeatureStatistics.of([], lambda x: x)


def test_frechet_distance_uses_all_images_not_only_the_kept(monkeypatch):
    a, b = noise(500, 2), noise(400, 2, seed=1) * 2 + 1
    whole = frechet_distance(a, b, lambda x: x)
    monkeypatch.setattr(feature_statistics, "MAX_KEPT", 10)
    statistics = [FeatureStatistics.of(x.split(64), lambda x: x) for x in (a, b)]
    assert frechet_distance_of_statistics(*statistics) == pytest.approx(whole)
    roots = [torch.linalg.eigh(torch.cov(x.double().T)) for x in (a, b)]
    (values, vectors), covariance_b = roots[0], torch.cov(b.double().T)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).sqrt().sum()
    means = (a.double().mean(0) - b.double().mean(0)).square().sum()
    assert whole == pytest.approx((means + values.sum() + covariance_b.trace() - 2 * cross).item())


def test_kernel_distance_is_the_unbiased_estimate_and_seeded():
    """All subsets of points at +1 against points at -1, one feature: k(1, 1) = 8, k(1, -1) = 0, so MMD^2 = 16."""
    found = kernel_distance(torch.ones(20, 1), -torch.ones(12, 1))
    assert found == {"mean": 16.0, "std": 0.0}
    assert kernel_subset_size(20, 12) == 6 and kernel_subset_size(5000, 9000) == 1000
    a, b = noise(200, 3), noise(200, 3, seed=1)
    state = torch.random.get_rng_state()
    first, again, other = (kernel_distance(a, b, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == again != other
    assert abs(first["mean"]) < 3 * first["std"] < kernel_distance(a, b + 1)["mean"]
    with pytest.raises(ValueError, match="at least 4"):
        kernel_distance(a[:3], b)


def test_inception_score_of_certain_and_of_constant_predictions():
    """Certain of one of 5 classes, all as frequent in every split: 5. The same for every image: 1."""
    certain = torch.eye(5).repeat(400, 1) * 1000
    assert inception_score(certain)["mean"] == pytest.approx(5, abs=0.1)
    assert inception_score(torch.zeros(40, 7))["mean"] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 20"):
        inception_score(certain[:19])
