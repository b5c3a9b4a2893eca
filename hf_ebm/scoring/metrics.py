"""Metrics of samples and of scores, computed by torchmetrics."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_ebm.scoring.feature_statistics import FeatureStatistics
from hf_ebm.scoring.ood_metrics import check_scores

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000


def frechet_distance(real: Tensor, generated: Tensor, features: Callable[[Tensor], Tensor]) -> float:
    """`frechet_distance_of_statistics` of images, (N, ...) and (M, ...), in their ``features(images)``, (B, D)."""
    statistics = (FeatureStatistics.of(images.split(512), features) for images in (real, generated))
    return frechet_distance_of_statistics(*statistics)


def frechet_distance_of_statistics(real: FeatureStatistics, generated: FeatureStatistics) -> float:
    """Frechet distance between Gaussians fitted to the features of two sets; lower is better, 0 is the best.

    It is called FID only with the standard Inception weights; with any other extractor name that extractor.

    Raises:
        ValueError: If a set has fewer than two images: no covariance.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, statistics in (("real", real), ("generated", generated)):
        if statistics.num_images < 2:
            raise ValueError(f"{name} must hold at least 2 images for a covariance, got {statistics.num_images}.")
    identity: Any = nn.Identity()
    identity.num_features = real.total.shape[0]
    metric = FrechetInceptionDistance(feature=identity)
    state = {}
    for side, statistics in (("real", real), ("fake", generated)):
        metric.update(statistics.features[:0].double(), real=side == "real")  # no image: it sets the metric's dtype
        state[f"{side}_features_sum"] = statistics.total
        state[f"{side}_features_cov_sum"] = statistics.outer
        state[f"{side}_features_num_samples"] = torch.tensor(statistics.num_images)
    metric.merge_state(state)
    return float(metric.compute())


def kernel_subset_size(num_real: int, num_generated: int) -> int:
    """Images in a subset of `kernel_distance`: half of the smaller set, at most 1,000.

    Raises:
        ValueError: If a set has fewer than four images.
    """
    smaller = min(num_real, num_generated)
    if smaller < 4:
        raise ValueError(f"real and generated must hold at least 4 images each, for subsets of 2, got {smaller}.")
    return min(KERNEL_SUBSET_SIZE, smaller // 2)


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> dict[str, float]:
    """Squared maximum mean discrepancy with a cubic kernel, as in KID: its mean and spread over random subsets.

    Args:
        real: Features, shape (N, D).
        generated: Features, shape (M, D).
        seed: Of the subsets.

    Returns:
        ``{"mean", "std"}`` over `KERNEL_SUBSETS` subsets of `kernel_subset_size` images.

    Raises:
        ValueError: If a set has fewer than four images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = kernel_subset_size(len(real), len(generated))
    with features_are_kept():
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=KERNEL_SUBSETS, subset_size=size)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with seeded(seed):
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


def inception_score(logits: Tensor, seed: int = 0) -> dict[str, float]:
    """Inception score of the standard Inception network's logits, (N, classes): mean and spread over ten splits.

    Raises:
        ValueError: If there are fewer than twenty.
    """
    from torchmetrics.image.inception import InceptionScore

    if len(logits) < 20:
        raise ValueError(f"logits must be of at least 20 images, two for each of 10 splits, got {len(logits)}.")
    with features_are_kept():
        metric = InceptionScore(feature=nn.Identity(), splits=10)
    metric.update(logits)
    with seeded(seed):
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU random numbers start from `seed` inside and go on as if nothing had been drawn after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def features_are_kept() -> Iterator[None]:
    """Without torchmetrics' warning that a metric keeps all features: ours are bounded by `MAX_KEPT`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        yield


def auroc(in_distribution: Tensor, out_of_distribution: Tensor) -> float:
    """Area under the ROC curve of a score that is larger for odd inputs: 0.5 is chance, 1 separates perfectly.

    Args:
        in_distribution: Scores of in-distribution samples, shape (N,).
        out_of_distribution: Scores of odd samples, shape (M,).

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    check_scores("in_distribution", in_distribution)
    check_scores("out_of_distribution", out_of_distribution)
    from torchmetrics.functional.classification import binary_auroc

    # ranks, because torchmetrics would squash scores outside [0, 1] through a sigmoid, which makes ties of large ones
    scores = torch.cat([in_distribution, out_of_distribution]).double()
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    labels = torch.cat([torch.zeros(len(in_distribution)), torch.ones(len(out_of_distribution))]).long()
    return float(binary_auroc(ranks / max(ranks.max().item(), 1.0), labels))
