"""A small classifier of the 8x8 digits, whose features measure samples of them: the same weights on every machine.

The weights lie beside this file (`digit_classifier.safetensors`, made by ``python -m hf_ebm.scoring.digit_classifier``
from the training split), so that a Frechet distance here and one elsewhere can be compared.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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


def train_digit_classifier(seed: int = 0, num_epochs: int = 100) -> tuple[DigitClassifier, float]:
    """Train it on the digits' training split; returns the classifier and its accuracy on the test split."""
    from hf_ebm.data import load_digits

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = DigitClassifier()
        images, labels = load_digits("train")
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
        for _ in range(num_epochs):
            for rows in torch.randperm(len(images)).split(128):
                loss = nn.functional.cross_entropy(classifier(images[rows]), labels[rows], label_smoothing=0.01)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    images, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (classifier.eval()(images).argmax(dim=1) == labels).float().mean().item()
    return classifier, accuracy


if __name__ == "__main__":
    trained, test_accuracy = train_digit_classifier()
    save_file(trained.state_dict(), WEIGHTS)
    print(f"test accuracy {test_accuracy:.4f}, wrote {WEIGHTS}")
