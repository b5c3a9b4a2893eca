"""What is kept of a set of images to compare it with another: sums of its features, and the features of some images.

Sums give the mean and the covariance of all images in constant memory, which is what a Frechet distance needs. The
kernel distance and the neighbourhood measures need features one by one: those of the first `MAX_KEPT` images are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_KEPT = 10_000


@dataclass(frozen=True)
class FeatureStatistics:
    """Of N images with D features.

    Attributes:
        total: Sum of the features, shape (D,), float64.
        outer: Sum of their outer products, shape (D, D), float64.
        num_images: N.
        features: Of the first ``min(N, MAX_KEPT)`` images, shape (K, D), float32.
    """

    total: Tensor
    outer: Tensor
    num_images: int
    features: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], extractor: Callable[[Tensor], Tensor]) -> FeatureStatistics:
        """Statistics of images that come in batches of shape (B, ...); `extractor` gives (B, D).

        Raises:
            ValueError: If there are no images, or a feature is not finite.
        """
        total = outer = None
        number, num_kept, kept = 0, 0, []
        for batch in batches:
            with torch.no_grad():
                features = extractor(batch).cpu()
            if bad := int((~features.isfinite()).any(dim=1).sum()):
                raise ValueError(
                    f"the features of {bad} of {len(features)} images are not finite; check these images, and the "
                    "weights and the dtype of the model that made them."
                )
            exact = features.double()
            total = exact.sum(dim=0) + (0.0 if total is None else total)
            outer = exact.T @ exact + (0.0 if outer is None else outer)
            number += len(features)
            kept.append(features[: MAX_KEPT - num_kept].float())
            num_kept += len(kept[-1])
        if total is None or outer is None:
            raise ValueError("images is empty; give at least one image.")
        return cls(total, outer, number, torch.cat(kept))
