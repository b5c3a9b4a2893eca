"""Metrics of samples and reconstructions.

Frechet distance, kernel distance (as in KID) and Inception score are computed by torchmetrics, AUROC by scikit-learn.

Precision, recall, density and coverage compare neighbourhoods. A point's ball reaches to its k-th
nearest neighbour in its own set. With N real points X and M generated points Y:

    precision   share of Y in at least one ball of X             Kynkaanniemi et al., NeurIPS 2019
    recall      share of X in at least one ball of Y
    density     (1 / kM) #{(x, y): y in the ball of x}            Naeem et al., ICML 2020, Eq. 3; may exceed 1
    coverage    share of X whose ball holds at least one of Y     Naeem et al., ICML 2020, Eq. 4

Balls are open, as in the code of Naeem et al.: a set compared with itself gets 1 in all four. Recall
and coverage grow with M, so only figures of equal N and M are comparable.

Reconstructions are compared with their images by torchmetrics, one value per image:

    mse         mean squared error per pixel, on the scale of [-1, 1]
    psnr        10 log10(peak^2 / mse) in decibels, the peak being the whole range
    ssim        structural similarity, 11x11 Gaussian window of sigma 1.5 (Wang et al. 2004), on [0, 1]
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_ebm.evaluation.feature_extractors import FeatureStatistics

ALONE: Any = {
    "sync_on_compute": False
}  # one process of several computes a metric: torchmetrics would wait for the others
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000


def frechet_distance(real: Tensor, generated: Tensor, features: Callable[[Tensor], Tensor]) -> float:
    """`frechet_distance_of_statistics` of images, (N, ...) and (M, ...), in their ``features(images)``, (B, D)."""
    statistics = (FeatureStatistics.of(images.split(512), features) for images in (real, generated))
    return frechet_distance_of_statistics(*statistics)


def frechet_distance_of_statistics(real: FeatureStatistics, generated: FeatureStatistics) -> float:
    """Frechet distance between Gaussians fitted to the features of two sets; lower is better, 0 is the best.

    It is called FID only with the standard Inception weights; with any other extractor name that extractor.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, statistics in (("real", real), ("generated", generated)):
        if statistics.num_images < 2:
            raise ValueError(f"{name} must hold at least 2 images for a covariance, got {statistics.num_images}.")
    identity: Any = nn.Identity()
    identity.num_features = real.total.shape[0]
    metric = FrechetInceptionDistance(feature=identity, **ALONE)
    state = {}
    for side, statistics in (("real", real), ("fake", generated)):
        metric.update(statistics.features[:0].double(), real=side == "real")  # no image: it sets the metric's dtype
        state[f"{side}_features_sum"] = statistics.total
        state[f"{side}_features_cov_sum"] = statistics.outer
        state[f"{side}_features_num_samples"] = torch.tensor(statistics.num_images)
    metric.merge_state(state)
    return float(metric.compute())


def kernel_subset_size(num_real: int, num_generated: int) -> int:
    """Images in a subset of `kernel_distance`: half of the smaller set, at most 1,000."""
    smaller = min(num_real, num_generated)
    if smaller < 4:
        raise ValueError(f"real and generated must hold at least 4 images each, for subsets of 2, got {smaller}.")
    return min(KERNEL_SUBSET_SIZE, smaller // 2)


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> dict[str, float]:
    """Squared maximum mean discrepancy of features, (N, D) and (M, D), with a cubic kernel, as in KID.

    Returns ``{"mean", "std"}`` over `KERNEL_SUBSETS` random subsets of `kernel_subset_size` images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = kernel_subset_size(len(real), len(generated))
    with features_are_kept():
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=KERNEL_SUBSETS, subset_size=size, **ALONE)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with seeded(seed):
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


def inception_score(logits: Tensor, seed: int = 0) -> dict[str, float]:
    """Inception score of the standard Inception network's logits, (N, classes): mean and spread over ten splits."""
    from torchmetrics.image.inception import InceptionScore

    if len(logits) < 20:
        raise ValueError(f"logits must be of at least 20 images, two for each of 10 splits, got {len(logits)}.")
    with features_are_kept():
        metric = InceptionScore(feature=nn.Identity(), splits=10, **ALONE)
    metric.update(logits)
    with seeded(seed):
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU random numbers inside, and restore their state afterwards."""
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
    """Area under the ROC curve of a score that is larger for OOD inputs: 0.5 is chance, 1 separates perfectly.

    Args:
        in_distribution: Scores of in-distribution samples, shape (N,).
        out_of_distribution: Scores of OOD samples, shape (M,).

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    for name, scores in (("in_distribution", in_distribution), ("out_of_distribution", out_of_distribution)):
        bad = int(scores.isnan().sum())
        if bad or not len(scores):
            raise ValueError(
                f"{name} must hold scores and no NaN, got {len(scores)} with {bad} NaN; check the "
                "model's weights and these images for values that are not finite."
            )
    from sklearn.metrics import roc_auc_score

    labels = [0] * len(in_distribution) + [1] * len(out_of_distribution)
    return float(roc_auc_score(labels, torch.cat([in_distribution, out_of_distribution]).double().cpu().numpy()))


NUM_NEIGHBOURS = 5
ROWS_AT_A_TIME = 1024  # rows of the distance matrix in memory


def ball_radii(points: Tensor, num_neighbours: int) -> Tensor:
    """Distance of each point (N, D) to its k-th nearest other point, shape (N,)."""
    radii = []
    for start in range(0, len(points), ROWS_AT_A_TIME):
        distances = torch.cdist(points[start : start + ROWS_AT_A_TIME], points)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf  # itself
        radii.append(distances.kthvalue(num_neighbours, dim=1).values)
    return torch.cat(radii)


def neighbourhood_metrics(real: Tensor, generated: Tensor, num_neighbours: int = NUM_NEIGHBOURS) -> dict[str, float]:
    """``{"precision", "recall", "density", "coverage"}`` of two sets of features, (N, D) and (M, D)."""
    for name, points in (("real", real), ("generated", generated)):
        if len(points) <= num_neighbours:
            raise ValueError(
                f"{name} must hold more than num_neighbours={num_neighbours} images, for its balls, got {len(points)}."
            )
    real, generated = real.double(), generated.double()
    radii_real, radii_generated = ball_radii(real, num_neighbours), ball_radii(generated, num_neighbours)
    balls_around = torch.zeros(len(generated), dtype=torch.long)  # of each generated point, how many real balls hold it
    recalled, covered = [], []
    for start in range(0, len(real), ROWS_AT_A_TIME):
        distances = torch.cdist(real[start : start + ROWS_AT_A_TIME], generated)
        inside = distances < radii_real[start : start + ROWS_AT_A_TIME, None]
        balls_around += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((distances < radii_generated).any(dim=1))
    return {
        "precision": (balls_around > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls_around.double().mean().item() / num_neighbours,
        "coverage": torch.cat(covered).double().mean().item(),
    }


MIN_SIZE = 6  # the window is reflected at the border by five pixels


def reconstruction_metrics(images: Tensor, recon: Tensor) -> dict[str, Tensor]:
    """``{"mse", "psnr", "ssim"}``, shape (N,), of images in [-1, 1], (N, C, H, W); no ``ssim`` under 6 pixels."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    found = {
        "mse": ((images - recon) ** 2).flatten(1).mean(dim=1),
        "psnr": peak_signal_noise_ratio(recon, images, data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="none"),
    }
    if min(images.shape[-2:]) >= MIN_SIZE:
        unit_range = ((x.cpu().double().clamp(-1.0, 1.0) + 1.0) / 2.0 for x in (recon, images))
        found["ssim"] = structural_similarity_index_measure(*unit_range, data_range=1.0, reduction="none")
    return {name: torch.as_tensor(values).reshape(-1).float().to(images.device) for name, values in found.items()}
