"""The real images that samples are compared with: a split of a data set, its statistics, where they are from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from hf_ebm.card_tables import public_name
from hf_ebm.data import draw_rows, fingerprint, load_training_data
from hf_ebm.scoring.feature_cache import cached_statistics
from hf_ebm.scoring.feature_extractors import FeatureExtractor
from hf_ebm.scoring.feature_statistics import FeatureStatistics


@dataclass(frozen=True)
class RealImages:
    """A split of a data set, prepared for a model: its images in batches, and what they are.

    Attributes:
        dataset: Map-style, of 1-tuples of tensors in [-1, 1], shape (C, H, W).
        source: ``{"dataset", "split", "fingerprint"}``.
        batch_size: Of `batches`.
        num_workers: Processes that decode images.
    """

    dataset: Any
    source: dict[str, Any]
    batch_size: int
    num_workers: int = 0

    @classmethod
    def load(
        cls, name: str, sample_shape: tuple[int, ...], split: str, image_column: str | None, **kwargs: Any
    ) -> RealImages:
        """See `hf_ebm.data.load_training_data`, which raises."""
        dataset = load_training_data(name, sample_shape, split=split, image_column=image_column)
        source = {"dataset": public_name(name), "split": split, "fingerprint": fingerprint(dataset)}
        return cls(dataset, source, **kwargs)

    def batches(self, rows: list[int]) -> Iterator[Tensor]:
        """The images of some rows, shape (B, C, H, W).

        Raises:
            ValueError: If one cannot be read; it names it.
        """
        loader = DataLoader(Subset(self.dataset, rows), self.batch_size, num_workers=self.num_workers)
        try:
            for (images,) in loader:
                yield images
        except ValueError as error:  # from a worker it comes with the worker's traceback before the message
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error

    def statistics(
        self, limit: int, seed: int, extractor: FeatureExtractor, preparation: str, cache: Path | None
    ) -> tuple[FeatureStatistics, dict[str, Any]]:
        """Feature statistics of at most `limit` images drawn with `seed`, and their source with ``num_images``."""
        number = min(limit, len(self.dataset))
        rows = draw_rows(len(self.dataset), number, seed)
        description = {
            **self.source,
            "num_images": number,
            "rows": "all" if number == len(self.dataset) else f"drawn with seed {seed}",
            "preparation": preparation,
            "extractor": [extractor.name, extractor.weights_sha256, extractor.preprocessing],
        }

        def make() -> FeatureStatistics:
            return FeatureStatistics.of(self.batches(rows), extractor)

        statistics = make() if cache is None else cached_statistics(cache, description, make)
        return statistics, {**self.source, "num_images": number}
