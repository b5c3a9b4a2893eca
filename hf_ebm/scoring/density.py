"""A two-sided OOD score: how far the statistics of a sample are from those of in-distribution samples.

    d(x) = mean Euclidean distance of u(x) to its 5 nearest reference samples,        u = standardised statistics

An energy alone is one-sided and follows an image's complexity: simple images get low energies whatever they show. A
sample whose energies are unusually low for in-distribution data is as far from the reference as one whose energies are
unusually high. The statistics are the energies of all noise levels, with some scores also the norms of their gradients,
the compressed size, the reconstruction errors of all noise levels, and the certainty of p(y | x) of an energy with
classes.

A statistic whose reference values are all positive is taken as its logarithm, because ratios matter then; below half of
the smallest reference value the logarithm goes on as its tangent, so that it is defined, and monotone, everywhere. A
statistic with other values, such as an energy of a network without a lower bound, is taken as it is, and so are those
that are logarithms already (`AS_THEY_ARE`).

Source: several statistics, from both sides, are Morningstar et al., "Density of States Estimation for Out-of-
Distribution Detection", AISTATS 2021, and Mahmood et al., "Multiscale Score Matching for Out-of-Distribution
Detection", ICLR 2021, who fit other densities; the distance to the nearest neighbours is that of Sun et al.,
"Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, there in features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_NEIGHBOURS = 5
DISTANCES = 8_000_000  # to the reference that are computed at a time


@dataclass(frozen=True)
class NearestNeighbours:
    """The statistics of a reference set, and the distance of samples to their nearest ones there.

    Attributes:
        names: Names of the statistics.
        points: Standardised statistics of the reference, shape (R, D), float64.
        floor: Below which the logarithm of a statistic is its tangent, shape (D,); NaN where it is taken as it is.
        mean, std: Of the transformed statistics of the reference, shape (D,).
        columns: Description of each of the D columns.
    """

    names: tuple[str, ...]
    points: Tensor
    floor: Tensor
    mean: Tensor
    std: Tensor
    columns: tuple[str, ...]

    @classmethod
    def fit(cls, statistics: Mapping[str, Tensor], names: Sequence[str]) -> NearestNeighbours:
        """The named statistics of R reference samples, each of shape (R,) or (R, T).

        Raises:
            ValueError: If there are too few samples, a value is not finite, or a statistic is the same for all.
        """
        values, columns = columns_of(statistics, names)
        check_enough(len(values))
        if not torch.isfinite(values).all():
            raise ValueError("reference must give finite statistics; leave out the samples whose are not.")
        lowest = values.min(dim=0).values
        is_log = torch.cat([torch.full((statistics[name][0].numel(),), name in AS_THEY_ARE) for name in names])
        floor = torch.where((lowest > 0) & ~is_log, 0.5 * lowest, torch.nan)
        transformed = transform(values, floor)
        mean, std = transformed.mean(dim=0), transformed.std(dim=0)
        if flat := [name for name, one in zip(columns, std, strict=True) if not one > 0]:
            raise ValueError(f"reference must give statistics that differ between samples, got one {flat[0]} for all.")
        return cls(tuple(names), (transformed - mean) / std, floor, mean, std, tuple(columns))

    def standardise(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """The samples' points, shape (N, D), float64."""
        values, _ = columns_of(statistics, self.names)
        return (transform(values, self.floor) - self.mean) / self.std

    def distance(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """Mean distance of each sample to its nearest reference samples, shape (N,), float64."""
        return mean_distance(self.standardise(statistics), self.points)

    def explain(self, statistics: Mapping[str, Tensor]) -> list[str]:
        """For each sample the statistic that is farthest from the reference, and on which side: no verdict."""
        points, texts = self.standardise(statistics), []
        for point in points:
            column = int(point.abs().argmax())
            value, reference = point[column], self.points[:, column]
            is_low = bool(value < 0)
            beyond = float((reference > value if is_low else reference < value).double().mean())
            text = f"farthest statistic: {self.columns[column]}, {'lower' if is_low else 'higher'} than for "
            text += f"{100 * beyond:.3g} % of the reference samples"
            if self.columns[column].startswith(("the energy", "the compressed size")):
                text += " (on the simple side)" if is_low else " (on the complex side)"
            texts.append(text)
        return texts


def check_enough(number: int) -> None:
    """Raise a `ValueError` unless a reference of so many samples has enough neighbours."""
    if number <= NUM_NEIGHBOURS:
        raise ValueError(
            f"reference must have more than {NUM_NEIGHBOURS} samples, the neighbours that are compared, got "
            f"{number}; give more."
        )


def mean_distance(points: Tensor, reference: Tensor, leave_out: int = 0) -> Tensor:
    """Mean Euclidean distance of each point (N, D) to its 5 nearest ones of the reference (R, D), shape (N,), float64.

    With ``leave_out=1`` the nearest is left out, which for a point of the reference is the point itself.
    """
    parts = []
    for part in points.double().split(max(1, DISTANCES // len(reference))):
        found = torch.cdist(part, reference).topk(NUM_NEIGHBOURS + leave_out, dim=1, largest=False)
        parts.append(found.values[:, leave_out:].mean(dim=1))
    return torch.cat(parts)


def columns_of(statistics: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, list[str]]:
    """The named statistics side by side, shape (N, D), float64, and a description of each column."""
    parts, columns = [], []
    for name in names:
        values = statistics[name].double()
        words = WORDS[name]
        columns += [words] if values.ndim == 1 else [f"{words} at t = {t}" for t in range(values.shape[1])]
        parts.append(values.reshape(len(values), -1))
    return torch.cat(parts, dim=1), columns


def transform(values: Tensor, floor: Tensor) -> Tensor:
    """The logarithm of each column, below `floor` its tangent; columns whose floor is NaN as they are, shape (N, D)."""
    safe = torch.where(floor.isnan(), 1.0, floor)
    log = torch.where(values > safe, values.clamp(min=safe).log(), safe.log() + (values - safe) / safe)
    return torch.where(floor.isnan(), values, log)


WORDS = {
    "clean_energies": "the energy",
    "gradient_norms": "the gradient norm of the energy",
    "compressed_size": "the compressed size",
    "reconstruction_errors": "the reconstruction error",
    "class_log_odds": "the log odds of the most likely class",
    "class_log_entropy": "the entropy of the class probabilities",
}
AS_THEY_ARE = ("class_log_odds", "class_log_entropy")  # logarithms already
