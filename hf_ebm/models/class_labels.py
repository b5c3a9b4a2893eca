"""Class labels as inputs of networks: their check, the description of the classes, the embedding.

Labels are whole numbers from 0 to ``num_classes - 1``. The label -1 stands for "no label": the null
class of a generator or an inference model, the marginal of an energy. ``num_classes = 0`` is an
unconditional network, which has no parameters for classes and takes no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_ebm.utils.validation import check_count, is_number

NO_LABEL = -1
CLASS_SETTINGS = ("num_classes", "class_prior", "class_names", "null_class")  # of generators and inference models


def expand_class_labels(class_labels: Any, x: Tensor, num_classes: int) -> Tensor | None:
    """Return `class_labels` as a tensor of shape (B,), int64, on the device of `x`; None for an unconditional model.

    Args:
        class_labels: Labels of the samples, shape (B,); one number is the label of all. -1, or None for all, is no
            label.
        x: The batch, shape (B, ...).
        num_classes: Classes of the model; 0 = unconditional.

    Raises:
        ValueError: If the model is unconditional and there are labels, or they are not whole numbers, are of another
            number than the samples, or out of range. The values of a tensor on a GPU are not checked, because that
            would wait for it.
    """
    if not num_classes:
        if class_labels is not None:
            raise ValueError(
                "class_labels must be None for an unconditional model (num_classes=0), got "
                f"{_described(class_labels)}; leave them out, or use a model with classes."
            )
        return None
    if class_labels is None:
        return torch.full((x.shape[0],), NO_LABEL, device=x.device)
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.empty(0)  # a float: fails the next check
    rule = f"whole numbers from 0 to {num_classes - 1}, or -1 for no label"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"class_labels must be {rule}, got {_described(class_labels)}; convert them to integers.")
    if labels.ndim > 1 or (labels.ndim == 1 and labels.shape[0] != x.shape[0]):
        raise ValueError(
            f"class_labels must be one number, or of shape ({x.shape[0]},), one label per sample, got shape "
            f"{tuple(labels.shape)}; give as many labels as samples."
        )
    labels = labels.to(torch.int64)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < NO_LABEL) | (labels >= num_classes)]
        if wrong.numel():
            raise ValueError(f"class_labels must be {rule}, got {wrong[0].item()}; correct the labels.")
    return labels.to(x.device).expand(x.shape[0])


def _described(class_labels: Any) -> str:
    return f"a tensor of {class_labels.dtype}" if isinstance(class_labels, Tensor) else repr(class_labels)


def check_classes(
    num_classes: Any, class_prior: Sequence[float] | None = None, class_names: Sequence[str] | None = None
) -> None:
    """Check the description of the classes in a network's config.

    Args:
        num_classes: Their number; 0 = unconditional.
        class_prior: The frequency of each class, to sample labels from; they sum to 1.
        class_names: The name of each class, all different.

    Raises:
        ValueError: If one of them is not as described.
    """
    check_count("num_classes", num_classes, 0)
    for name, values in (("class_prior", class_prior), ("class_names", class_names)):
        if values is not None and (isinstance(values, str) or len(values) != num_classes):
            raise ValueError(
                f"{name} must have one entry for each of the num_classes={num_classes} classes, got {values!r}; "
                "correct it, or leave it out."
            )
    if class_prior is not None and not (
        all(is_number(p) and p >= 0.0 for p in class_prior) and abs(sum(class_prior) - 1.0) < 1e-3
    ):
        raise ValueError(
            f"class_prior must be frequencies >= 0 that sum to 1, got {class_prior!r}; divide the counts by their sum."
        )
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names must be different, got {class_names!r}; rename those that are alike.")


class ClassEmbedding(nn.Embedding):
    """An embedding of class labels, (B,) -> (B, embedding_dim). Its last row is the null class, label -1.

    Args:
        num_classes: Classes without the null class.
        embedding_dim: Width of the embedding.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, num_classes: int, embedding_dim: int, std: float = 1.0) -> None:
        super().__init__(num_classes + 1, embedding_dim)
        nn.init.normal_(self.weight, std=std)

    def forward(self, class_labels: Tensor) -> Tensor:
        """Embed labels of shape (B,)."""
        return super().forward(torch.where(class_labels < 0, self.num_embeddings - 1, class_labels))
