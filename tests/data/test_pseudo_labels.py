"""Pseudo-labels: known clusters, the centres among the pixels, the digits, invalid input."""

import json

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.testing import assert_close

from hf_ebm.data.digits import load_digits
from hf_ebm.data.pseudo_labels import DECIMALS, assign_labels, class_frequencies, fit_centres


def three_clusters():
    """60 + 30 + 10 points near three corners, as 2x2 images, shuffled; and their numbers by size."""
    corners = torch.tensor([[-0.9, -0.9, 0.0, 0.0], [0.9, -0.9, 0.0, 0.0], [0.0, 0.9, 0.0, 0.9]])
    labels = torch.tensor([1] * 30 + [0] * 60 + [2] * 10)[torch.randperm(100)]
    return (corners[labels] + 0.05 * torch.randn(100, 4)).reshape(100, 1, 2, 2), labels


def test_finds_known_clusters_numbered_by_size():
    samples, labels = three_clusters()
    centres = fit_centres(samples, 3)
    assert torch.equal(assign_labels(samples, centres), labels)
    means = torch.stack([samples[labels == k].flatten(1).mean(0) for k in range(3)])
    assert_close(torch.tensor(centres), means, rtol=0, atol=10**-DECIMALS)
    assert class_frequencies(labels, 4) == [0.6, 0.3, 0.1, 0.0]
    assert json.loads(json.dumps(centres)) == centres == fit_centres(samples, 3)


def test_nearest_among_pixels_is_nearest_among_components():
    """The PCA need not be saved: the labels are those of k-means on the components, but for the rounding."""
    from sklearn.decomposition import PCA

    samples = load_digits("train")[0]
    centres = fit_centres(samples, 20)
    labels = assign_labels(samples, centres)
    pca = PCA(50, random_state=0).fit(samples.flatten(1).numpy())
    points, means = (pca.transform(v) for v in (samples.flatten(1).numpy(), np.array(centres)))
    nearest = np.square(points[:, None] - means).sum(2).argmin(1)
    assert (labels.numpy() == nearest).mean() > 0.999
    counts = torch.bincount(labels, minlength=20)
    assert (counts > 10).all() and counts.argmax() < 3


def test_clusters_of_digits_are_pure():
    samples, digits = load_digits("train")
    labels = assign_labels(samples, fit_centres(samples, 20))
    table = torch.zeros(20, 10)
    table.index_put_((labels, digits), torch.ones(len(digits)), accumulate=True)
    assert table.max(1).values.sum() / len(digits) > 0.85


def test_invalid_input():
    samples, labels = three_clusters()
    with pytest.raises(ValueError, match="pseudo_labels must be a whole number >= 2"):
        fit_centres(samples, 1)
    with pytest.raises(ValueError, match="at most the number of different samples, got 101 for 100 samples"):
        fit_centres(samples, 101)
    with (
        pytest.warns(ConvergenceWarning),
        pytest.raises(ValueError, match="at most the number of different samples, got 3 for 6"),
    ):
        fit_centres(torch.eye(2).repeat(3, 1), 3)
    with pytest.raises(ValueError, match="finite"):
        fit_centres(torch.full((5, 2), float("nan")), 2)
    with pytest.raises(ValueError, match=r"as many values as the centres of the pseudo-labels, 4, got 6"):
        assign_labels(torch.zeros(2, 6), fit_centres(samples, 3))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        class_frequencies(labels, 2)
    with pytest.raises(ValueError, match="got no label"):
        class_frequencies(torch.full((3,), -1), 2)
