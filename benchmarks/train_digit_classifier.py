"""Train the classifier of the embedded digits whose features sample metrics use, and write its weights.

python benchmarks/train_digit_classifier.py
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import nn

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.evaluation.feature_extractors import WEIGHTS, DigitClassifier


def train_digit_classifier(seed: int = 0, num_epochs: int = 100) -> tuple[DigitClassifier, float]:
    """Train it on the digits' training split; returns the classifier and its accuracy on the test split."""
    torch.manual_seed(seed)
    classifier = DigitClassifier()
    images, labels = load_digits("train")
    images = to_model_range(images)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(128):
            loss = nn.functional.cross_entropy(classifier(images[rows]), labels[rows], label_smoothing=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    images, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (classifier.eval()(to_model_range(images)).argmax(dim=1) == labels).float().mean().item()
    return classifier, accuracy


if __name__ == "__main__":
    trained, test_accuracy = train_digit_classifier()
    save_file(trained.state_dict(), WEIGHTS)
    print(f"test accuracy {test_accuracy:.4f}, wrote {WEIGHTS}")
