"""The digits: scikit-learn's 1,797 gray images of 8x8 pixels, split once into training and test images.

They ship with scikit-learn and need no network.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def load_digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """The 8x8 digits of scikit-learn: images in [0, 1], shape (N, 1, 8, 8), and labels 0..9, shape (N,).

    Args:
        split: ``"train"`` (1,437 images) or ``"test"`` (360), stratified by digit, the same on every machine.

    Raises:
        ValueError: If the split is another.
    """
    from sklearn import datasets, model_selection

    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    pixels, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(pixels, labels, test_size=360, random_state=0, stratify=labels)
    images, targets = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    return (
        torch.from_numpy(images / 16.0).float().reshape(-1, 1, 8, 8),
        torch.from_numpy(np.asarray(targets)).long(),
    )
