"""Train a small classifier of a labelled data set, whose features are used to evaluate samples.

    python benchmarks/image_classifier.py --dataset zalando-datasets/fashion_mnist --padding 2

It is trained once, with a fixed seed, and saved as safetensors with its accuracy. A Frechet
distance in its features is not FID, and is comparable only between results with the same hash of
its weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import DatasetName, load_named
from hf_ebm.evaluation.feature_extractors import FeatureExtractor, module_extractor
from hf_ebm.utils.files import path_option

NUM_FEATURES = 128
NUM_CLASSES = 10


class ImageClassifier(nn.Module):
    """Four convolutions (the last three halve the image) and two linear layers; `features` gives 128 numbers.

    Args:
        num_channels: Of the images, which are 32x32.
        width: Channels of the first convolution; the others are 2, 4 and 4 times as wide.
    """

    def __init__(self, num_channels: int, width: int = 16) -> None:
        super().__init__()
        widths = (num_channels, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            layers += [
                nn.Conv2d(width_in, width_out, 3, stride=1 if index == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], NUM_FEATURES), nn.ReLU())
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1], shape (B, C, 32, 32) -> (B, 128)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        return self.head(self.features(images))


def load_labelled(
    dataset: str, split: str, sample_shape: tuple[int, ...], padding: int, label_column: str
) -> tuple[Tensor, Tensor]:
    """All images of a split, (N, C, H, W), in [-1, 1], and their labels, (N,).

    Raises:
        ValueError: If the data set cannot be read or has no such column.
    """
    processor = EBMImageProcessor.for_model(sample_shape, padding)
    loaded, _ = load_named(replace(DatasetName.parse(dataset), split=split), sample_shape, split, None, processor)
    rows: Any = loaded
    if label_column not in rows.dataset.column_names:
        raise ValueError(f"--label-column must be one of {rows.dataset.column_names}, got {label_column!r}.")
    labels = torch.tensor(rows.dataset[label_column])
    return torch.stack([rows[index][0] for index in tqdm(range(len(rows)), desc=f"decode {split}")]), labels


def train_classifier(
    images: Tensor, labels: Tensor, num_epochs: int, seed: int, device: str, flip: bool = False
) -> ImageClassifier:
    """Train by cross entropy with Adam and a one-cycle learning rate; `flip` mirrors images at random."""
    torch.manual_seed(seed)
    classifier = ImageClassifier(images.shape[1]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(classifier.parameters())
    num_batches = -(-len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_epochs * num_batches)
    for epoch in range(num_epochs):
        for rows in tqdm(torch.randperm(len(images)).split(128), desc=f"classifier, epoch {epoch + 1}/{num_epochs}"):
            x = images[rows].to(device).contiguous(memory_format=torch.channels_last)
            if flip:
                x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
            loss = F.cross_entropy(classifier(x), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy_of(classifier: ImageClassifier, images: Tensor, labels: Tensor, device: str) -> float:
    """Accuracy: the fraction of images whose largest logit is their label's."""
    found = torch.cat([classifier(part.to(device)).argmax(dim=1).cpu() for part in images.split(1000)])
    return (found == labels).float().mean().item()


def classifier_extractor(
    dataset: str,
    sample_shape: tuple[int, ...],
    folder: Path,
    padding: int = 0,
    label_column: str = "label",
    num_epochs: int = 3,
    flip: bool = False,
    device: str = "cpu",
) -> tuple[FeatureExtractor, dict[str, Any]]:
    """The extractor of the classifier in `folder`, trained if it does not exist, and its record.

    Args:
        dataset: ``name[:config]``; its train split trains the classifier, its test split gives the accuracy.
        sample_shape: (C, 32, 32).
        folder: Of ``classifier.safetensors`` and ``classifier.json``.
        padding: Black pixels on each side, as in training.
        label_column: Of the data set.
        num_epochs: Passes over the train split.
        flip: Whether training mirrors images.
        device: Where it runs.

    Returns:
        The extractor, and what it was trained with and its ``"accuracy"``.

    Raises:
        ValueError: If the folder's classifier was trained with other settings.
    """
    weights, record = folder / "classifier.safetensors", folder / "classifier.json"
    asked: dict[str, Any] = {"dataset": Path(dataset).name, "sample_shape": list(sample_shape), "padding": padding}
    asked |= {"num_epochs": num_epochs, "flip": flip, "seed": 0}
    if record.is_file():
        facts = json.loads(record.read_text())
        if different := [key for key, value in asked.items() if facts.get(key) != value]:
            raise ValueError(
                f"the classifier in {folder} was trained with { ({key: facts.get(key) for key in different}) }, not "
                f"{ ({key: asked[key] for key in different}) }; choose another folder."
            )
        classifier = ImageClassifier(sample_shape[0])
        classifier.load_state_dict(load_file(weights))
    else:
        arguments = (sample_shape, padding, label_column)
        classifier = train_classifier(*load_labelled(dataset, "train", *arguments), num_epochs, 0, device, flip)
        held_out = load_labelled(dataset, "test", *arguments)
        facts = {**asked, "accuracy": accuracy_of(classifier, *held_out, device)}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in classifier.state_dict().items()}, weights)
        record.write_text(json.dumps(facts, indent=2) + "\n")  # written last: it marks the pair as complete
    name = (
        f"a small classifier of {facts['dataset']} ({NUM_FEATURES} features before its last layer, "
        f"{100 * facts['accuracy']:.1f} % right on the test split; benchmarks/image_classifier.py)"
    )
    return module_extractor(classifier, name, features=classifier.features, device=device), facts


def main() -> None:
    """Train the classifier and print its accuracy."""
    parser = argparse.ArgumentParser(description="Train the small classifier whose features measure samples.")
    parser.add_argument("--dataset", required=True, help="name[:config] of a labelled data set with train and test")
    parser.add_argument("--num-channels", type=int, default=1)
    parser.add_argument("--padding", type=int, default=0, help="black pixels on each side (default: %(default)s)")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--num-epochs", type=int, default=3)
    parser.add_argument("--flip", action="store_true", help="mirror images at random in training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=path_option, default=Path("outputs/classifier"))
    options = parser.parse_args()
    extractor, facts = classifier_extractor(
        options.dataset,
        (options.num_channels, 32, 32),
        options.output,
        options.padding,
        options.label_column,
        options.num_epochs,
        options.flip,
        options.device,
    )
    print(f"accuracy {facts['accuracy']:.4f} on the test split; weights {extractor.weights_sha256}")


if __name__ == "__main__":
    main()
