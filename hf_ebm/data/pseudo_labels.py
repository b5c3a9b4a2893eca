"""Pseudo-labels: the clusters of a data set without labels, numbered, for networks that take a class.

The samples are clustered by k-means in the space of their first principal components. The label of a sample, in
training and later, is the number of its nearest centre. The centres are kept as samples: as points of the principal
subspace, they have the same nearest neighbours there and among the pixels, so nothing of the PCA need be saved.
Clusters are numbered from the largest to the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_ebm.utils.validation import check_count

NUM_COMPONENTS = 50
NUM_STARTS = 4  # of k-means, of which the best is taken
DECIMALS = 4  # of saved centres: a config is text


def fit_centres(samples: Tensor, num_clusters: int, seed: int = 0) -> list[list[float]]:
    """Cluster samples: the centres, flattened as the samples are, for the energy's ``pseudo_label_centres``.

    Args:
        samples: The training set, as the models see it, shape (N, ...); images in [-1, 1].
        num_clusters: Centres.
        seed: Of the PCA and of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    check_count("pseudo_labels", num_clusters, 2)
    pixels = _flattened(samples).numpy()
    if not np.isfinite(pixels).all():
        raise ValueError("samples must be finite, got NaN or infinite values; remove them before clustering.")
    sizes = np.zeros(num_clusters, dtype=int)
    if num_clusters <= len(pixels):
        pca = PCA(min(NUM_COMPONENTS, *pixels.shape), random_state=seed).fit(pixels)
        k_means = KMeans(num_clusters, n_init=NUM_STARTS, random_state=seed).fit(pca.transform(pixels))
        sizes = np.bincount(k_means.labels_, minlength=num_clusters)
    if not sizes.all():
        raise ValueError(
            f"pseudo_labels must be at most the number of different samples, got {num_clusters} for {len(pixels)} "
            "samples; use fewer clusters."
        )
    centres = pca.inverse_transform(k_means.cluster_centers_[np.argsort(-sizes, kind="stable")])
    return centres.round(DECIMALS).astype(float).tolist()


def assign_labels(samples: Tensor, centres: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """The number of each sample's nearest centre, shape (N, ...) -> (N,), int64."""
    pixels, points = _flattened(samples), torch.as_tensor(centres, dtype=torch.float32, device=samples.device)
    if points.ndim != 2 or pixels.shape[1] != points.shape[1]:
        raise ValueError(
            f"samples must have as many values as the centres of the pseudo-labels, {points.shape[-1]}, got "
            f"{pixels.shape[1]} (shape {tuple(samples.shape)}); use samples of the size that was clustered."
        )
    # ||x - c||^2 = ||x||^2 - 2 <x, c> + ||c||^2, of which the first is the same for all centres
    return (points.square().sum(dim=1) - 2.0 * pixels @ points.T).argmin(dim=1)


def class_frequencies(class_labels: Tensor, num_classes: int) -> list[float]:
    """The frequency of each class among the labelled samples (-1 = no label), for ``class_prior``."""
    labelled = class_labels[class_labels >= 0]
    if not len(labelled) or labelled.max() >= num_classes:
        found = f"{int(labelled.max())}" if len(labelled) else "no label"
        raise ValueError(
            f"class_labels must hold labels from 0 to {num_classes - 1}, got {found}; correct the labels, or train "
            "without classes."
        )
    counts = torch.bincount(labelled, minlength=num_classes).double()
    return (counts / counts.sum()).tolist()


def _flattened(samples: Tensor) -> Tensor:
    return samples.detach().float().flatten(1)
