"""The real images that samples are compared with: a split of a data set, its statistics, where they are from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from hf_ebm.data import HubImages, draw_rows
from hf_ebm.dataset_names import DatasetName, load_named
from hf_ebm.pictures import words_of
from hf_ebm.progress import ProgressBar, no_bar
from hf_ebm.scoring.feature_cache import cached_statistics
from hf_ebm.scoring.feature_extractors import FeatureExtractor
from hf_ebm.scoring.feature_statistics import MAX_KEPT, FeatureStatistics


@dataclass(frozen=True)
class RealImages:
    """A split of a data set, prepared for a model: its images in batches, and what they are.

    Attributes:
        dataset: Map-style, of 1-tuples of tensors in [-1, 1], shape (C, H, W).
        source: ``{"dataset", "split", "fingerprint"}``, see `hf_ebm.dataset_names.load_named`.
        batch_size: Of `batches`.
        num_workers: Processes that decode images.
        progress_bar: Wraps what is read.
    """

    dataset: Any
    source: dict[str, Any]
    batch_size: int
    num_workers: int = 0
    progress_bar: ProgressBar = no_bar

    @classmethod
    def load(
        cls,
        name: str | DatasetName,
        sample_shape: tuple[int, ...],
        split: str,
        image_column: str | None,
        padding: int = 0,
        **kwargs: Any,
    ) -> RealImages:
        """See `hf_ebm.dataset_names.load_named`, which raises."""
        dataset, source = load_named(name, sample_shape, split, image_column, padding)
        return cls(dataset, source, **kwargs)

    def batches(self, rows: list[int], title: str) -> Iterator[Tensor]:
        """The images of some rows, shape (B, C, H, W); `title` is that of the progress bar.

        Raises:
            ValueError: If one cannot be read; it names it.
        """
        loader = DataLoader(Subset(self.dataset, rows), self.batch_size, num_workers=self.num_workers)
        try:
            for (images,) in self.progress_bar(loader, desc=title, total=len(loader)):
                yield images
        except ValueError as error:
            raise ValueError(words_of(error)) from error

    def statistics(
        self, limit: int, seed: int, extractor: FeatureExtractor, preparation: str, cache: Path | None
    ) -> tuple[FeatureStatistics, dict[str, Any]]:
        """Feature statistics of at most `limit` images drawn with `seed`, and their source with ``num_images``.

        Of more than `MAX_KEPT` images, whose features are not all kept, the order is drawn, too: an image folder goes
        by class, and the first rows are not like the others.
        """
        number = min(limit, len(self.dataset))
        rows, drawn = draw_rows(len(self.dataset), number, seed), number < len(self.dataset)
        if number > MAX_KEPT:
            order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
            rows, drawn = [rows[place] for place in order.tolist()], True
        description = {
            **self.source,
            # changes between the rows that the source's hash is of
            "loaded": self.dataset.dataset._fingerprint if isinstance(self.dataset, HubImages) else None,
            "num_images": number,
            "rows": f"drawn with seed {seed}" if drawn else "all",
            "preparation": preparation,
            "extractor": [extractor.name, extractor.weights_sha256, extractor.preprocessing],
        }

        def make() -> FeatureStatistics:
            return FeatureStatistics.of(self.batches(rows, f"{self.source['split']} images"), extractor)

        statistics = make() if cache is None else cached_statistics(cache, description, make)
        return statistics, {**self.source, "num_images": number}
