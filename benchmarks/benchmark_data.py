"""The data sets that benchmarks train on: their images, and the features that samples of them are measured in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from image_classifier import classifier_extractor
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.data.loading import draw_rows, load_named
from hf_ebm.evaluation.feature_extractors import FeatureExtractor, FeatureStatistics, digits_extractor
from hf_ebm.evaluation.sample_metrics import auroc, frechet_distance_of_statistics
from hf_ebm.evaluation.samples import RealImages
from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set with a recipe of that name.

    Attributes:
        dataset: Its name or Hub id.
        sample_shape: (C, H, W) of the models.
        padding: Black pixels on each side.
        classifier: Settings of the classifier whose features measure samples; None: the shipped one of the digits.
    """

    dataset: str
    sample_shape: tuple[int, int, int]
    padding: int = 0
    classifier: dict[str, Any] | None = None


DATA = {
    "digits": Data("digits", (1, 8, 8)),
    "fashion_mnist": Data("zalando-datasets/fashion_mnist", (1, 32, 32), padding=2, classifier={"num_epochs": 3}),
    "cifar10_small": Data("uoft-cs/cifar10", (3, 32, 32), classifier={"num_epochs": 15, "flip": True}),
}


def open_extractor(data: Data, dataset: str, folder: Path, device: str) -> FeatureExtractor:
    """What measures samples of `dataset`: the shipped network, or the classifier in `folder`, trained if not there."""
    if data.classifier is None:
        return digits_extractor(device)
    return classifier_extractor(
        dataset, data.sample_shape, folder / "classifier", data.padding, device=device, **data.classifier
    )[0]


@dataclasses.dataclass(frozen=True)
class BenchmarkData:
    """A data set that is there, with what measures samples of it.

    Attributes:
        extractor: The features.
        held_out: The test split.
        training: The train split.
        found: Statistics that were computed, by split and number of images.
    """

    extractor: FeatureExtractor
    held_out: RealImages
    training: RealImages
    found: dict[tuple[str, int], FeatureStatistics] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, data: Data, dataset: str | None, folder: Path, device: str) -> BenchmarkData:
        """The data set, and the classifier in `folder`, trained now if it is not there.

        Args:
            data: Which.
            dataset: A folder or Hub id instead of the usual one, or None.
            folder: Where the classifier is kept.
            device: Where the classifier runs.
        """
        dataset = dataset or data.dataset
        extractor = open_extractor(data, dataset, folder, device)
        processor = EBMImageProcessor(data.sample_shape[-1], data.sample_shape[0], data.padding)
        test, train = (
            RealImages(*load_named(dataset, data.sample_shape, split, None, processor), batch_size=1000)
            for split in ("test", "train")
        )
        return cls(extractor, test, train)

    def statistics(self, images: RealImages, limit: int | None = None) -> FeatureStatistics:
        """Of at most `limit` images of a split."""
        number = len(images.dataset) if limit is None else limit
        key = (images.source["split"], number)
        if key not in self.found:
            self.found[key] = images.statistics(number, 0, self.extractor)[0]
        return self.found[key]

    def num_samples(self, limit: int) -> int:
        """As many samples as there are training images, at most `limit`."""
        return min(limit, len(self.training.dataset))

    def frechet_distance(self, images: Tensor) -> float:
        """Of images (N, C, H, W) to the held-out ones."""
        generated = FeatureStatistics.of(images.split(512), self.extractor)
        return frechet_distance_of_statistics(self.statistics(self.held_out), generated)

    def held_out_images(self, limit: int) -> Tensor:
        """At most `limit` images of the test split, drawn with seed 0."""
        return torch.cat(
            list(self.held_out.batches(draw_rows(len(self.held_out.dataset), limit, 0), "held-out images"))
        )

    def ood_aurocs(self, pipeline: Any, limit: int) -> dict[str, float]:
        """AUROC of the energy of held-out images against each synthetic OOD set made from them."""
        images = self.held_out_images(limit)

        def energies(images: Tensor) -> Tensor:
            return torch.cat([pipeline.score(to_unit_range(part)).energies.cpu() for part in images.split(1000)])

        in_distribution = energies(images)
        return {
            name: auroc(in_distribution, energies(make(images, torch.Generator().manual_seed(0))))
            for name, make in SYNTHETIC_OOD.items()
        }
