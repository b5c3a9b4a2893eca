"""Metrics of samples and of scores, computed by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _Features(nn.Module):
    """A feature function as the module that torchmetrics asks for."""

    def __init__(self, features: Callable[[Tensor], Tensor], num_features: int) -> None:
        super().__init__()
        self.features, self.num_features = features, num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


@torch.no_grad()
def frechet_distance(real: Tensor, generated: Tensor, features: Callable[[Tensor], Tensor], num_features: int) -> float:
    """Frechet distance between Gaussians fitted to the features of two sets; lower is better, 0 is the best.

    It is called FID only with the standard Inception weights; with any other extractor name that extractor.

    Args:
        real: Reference images in the extractor's range, shape (N, ...).
        generated: Samples, shape (M, ...).
        features: ``images -> features``, shape (B, num_features).
        num_features: Their number.

    Raises:
        ValueError: If a set has fewer than two images: no covariance.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, images in (("real", real), ("generated", generated)):
        if len(images) < 2:
            raise ValueError(f"{name} must hold at least 2 images for a covariance, got {len(images)}.")
    metric = FrechetInceptionDistance(feature=_Features(features, num_features), normalize=True)
    for images, is_real in ((real, True), (generated, False)):
        for part in images.split(512):
            metric.update(part, real=is_real)
    return float(metric.compute())


def auroc(in_distribution: Tensor, out_of_distribution: Tensor) -> float:
    """Area under the ROC curve of a score that is larger for odd inputs: 0.5 is chance, 1 separates perfectly.

    Args:
        in_distribution: Scores of in-distribution samples, shape (N,).
        out_of_distribution: Scores of odd samples, shape (M,).
    """
    from torchmetrics.functional.classification import binary_auroc

    # ranks, because torchmetrics would squash scores outside [0, 1] through a sigmoid, which makes ties of large ones
    scores = torch.cat([in_distribution, out_of_distribution]).double()
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    labels = torch.cat([torch.zeros(len(in_distribution)), torch.ones(len(out_of_distribution))]).long()
    return float(binary_auroc(ranks / max(ranks.max().item(), 1.0), labels))
