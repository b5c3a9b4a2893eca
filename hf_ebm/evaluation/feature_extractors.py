"""Feature extractors, and the feature statistics of image sets that sample metrics compare.

`FeatureExtractor` is a network with its name and the hash of its weights: the digit classifier, the
standard Inception network, or a model of transformers. A distance between features depends on the
network, so it is reported with both. Only the standard Inception network gives an FID. The digit
classifier's weights are in `digit_classifier.safetensors` beside this file, written by
``benchmarks/train_digit_classifier.py`` from the training split.

`FeatureStatistics` summarises a set of images. Sums of features and of their outer products give the
mean and the covariance for the Frechet distance in constant memory. The kernel distance and the
neighbourhood metrics need the features themselves: those of the first `MAX_KEPT` images are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_ebm.hub.model_card import public_name
from hf_ebm.scoring.encoder import load_vision_model, to_bytes, weights_sha256
from hf_ebm.utils.validation import did_you_mean

WEIGHTS = Path(__file__).with_name("digit_classifier.safetensors")
NAME = "the hf-ebm digit classifier (64 features before its last layer)"


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers, 8x8 gray images in [-1, 1] -> 10 logits; `features` gives 64 numbers."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1], shape (B, 1, 8, 8) -> (B, 64)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        return self.head(self.features(images))


@functools.cache
def load_digit_classifier() -> DigitClassifier:
    """The classifier with its shipped weights, in eval mode."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval()


MAX_KEPT = 10_000


@dataclass(frozen=True)
class FeatureStatistics:
    """Of N images with D features."""

    total: Tensor  # sum of the features, shape (D,), float64
    outer: Tensor  # sum of their outer products, shape (D, D), float64
    num_images: int  # N
    features: Tensor  # of the first ``min(N, MAX_KEPT)`` images, shape (K, D), float32

    @classmethod
    def of(cls, batches: Iterable[Tensor], extractor: Callable[[Tensor], Tensor]) -> FeatureStatistics:
        """Statistics of images that come in batches of shape (B, ...); `extractor` gives (B, D)."""
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


AS_BYTES = "rounded to 8 bits, gray repeated to RGB"


@dataclass(frozen=True)
class FeatureExtractor:
    """Images -> features, with a description."""

    name: str  # as reported
    weights_sha256: str  # of all parameters and buffers, by name
    preprocessing: str  # what is done to images in [-1, 1] before the network
    features: Callable[[Tensor], Tensor]  # images in [-1, 1], shape (B, C, H, W) -> features (B, D)
    logits: Callable[[Tensor], Tensor] | None = None  # features -> logits, of the standard Inception network only

    @property
    def is_standard_inception(self) -> bool:
        """Whether a Frechet distance in these features is the FID."""
        return self.logits is not None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, shape (B, D), float32, on the CPU."""
        features = self.features(images).float().cpu()
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"feature extractor {self.name} must give features of shape ({len(images)}, D) for {len(images)} "
                f"images, got {tuple(features.shape)}; give a module with pooled output."
            )
        return features


def module_extractor(
    module: nn.Module,
    name: str,
    preprocessing: str = "none: images in [-1, 1]",
    features: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """Any module that maps images in [-1, 1], (B, C, H, W), to features (B, D); put in eval mode.

    `features` is the function, if it is not the module's forward; `preprocessing` describes what it does first.
    """
    module.eval().to(device)
    function = features or module
    return FeatureExtractor(name, weights_sha256(module), preprocessing, lambda images: function(images.to(device)))


def digits_extractor(device: str | torch.device = "cpu") -> FeatureExtractor:
    """The classifier of 8x8 gray digits that ships with the package."""
    classifier = load_digit_classifier()

    def features(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (1, 8, 8):
            raise ValueError(
                f"the digit classifier takes images of shape (1, 8, 8), got {tuple(images.shape[1:])}; name another "
                "feature extractor."
            )
        return classifier.features(images)

    return module_extractor(classifier, NAME, features=features, device=device)


def inception_extractor(device: str | torch.device = "cpu") -> FeatureExtractor:
    """The standard Inception network of FID (2048 features), by torchmetrics and torch-fidelity."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network: Any = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except ModuleNotFoundError as error:
        raise ImportError(
            "the standard Inception network needs torch-fidelity, which brings torchvision (pip install "
            "torch-fidelity). Without it name another feature extractor: the id or path of a transformers model, or "
            "'digits' for 8x8 digits."
        ) from error
    network.use_antialias = False  # resize as the original, and published FIDs, do (torchmetrics < 1.8 always does)
    network.to(device)
    return FeatureExtractor(
        "the standard Inception network (2048 features, torch-fidelity's inception-v3-compat)",
        weights_sha256(network),
        f"{AS_BYTES}, resized to 299x299 as TensorFlow 1 does",
        lambda images: network(to_bytes(images).to(device)),
        lambda features: features @ network.fc.weight.detach().cpu().float().T,  # "logits_unbiased": without the bias
    )


def transformers_extractor(name: str, device: str | torch.device = "cpu") -> FeatureExtractor:
    """A model of transformers by Hub id or path, with its own image processor; ids ``timm/...`` need timm.

    Features are the pooled output, or, where a model has none, the mean of the last hidden state over places. The same
    mean where the checkpoint holds no pooler (those of classifiers): the one that `AutoModel` makes up is random.
    """
    choices = "'digits', 'inception', or the id or path of a transformers model with an image processor"
    model, processor, made_up = load_vision_model(name, "feature extractor", choices)
    model.to(device)
    forward = getattr(model, "get_image_features", model)

    def features(images: Tensor) -> Tensor:
        pixels = list(to_bytes(images.cpu()).permute(0, 2, 3, 1).numpy())
        return pool(forward(**processor(images=pixels, return_tensors="pt").to(device)), name, not made_up)

    preprocessing = f"{AS_BYTES}, then the model's own {type(processor).__name__}"
    pooled_by = ", mean of the hidden state" if made_up else ""
    shown = f"{public_name(name)} ({type(model).__name__}{pooled_by})"
    return FeatureExtractor(shown, weights_sha256(model, made_up), preprocessing, features)


def pool(output: Any, name: str, has_pooler: bool = True) -> Tensor:
    """The pooled features in a transformers output, or the mean of its last hidden state over places, shape (B, D)."""
    pooled = getattr(output, "pooler_output", None) if has_pooler else None
    if pooled is not None:
        return pooled.flatten(1)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(f"feature extractor {name!r} gives neither pooled features nor hidden states; take another.")
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)


def load_extractor(name: str, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The extractor of a name: ``"digits"``, ``"inception"``, or a transformers model's id or path.

    Raises:
        ValueError: If it cannot be loaded.
    """
    if name == "digits":
        return digits_extractor(device)
    if name == "inception":
        return inception_extractor(device)
    if "/" not in name and not Path(name).exists() and (near := did_you_mean(name, ("digits", "inception"), "")):
        raise ValueError(f"there is no feature extractor {name!r}; {near}")
    return transformers_extractor(name, device)
