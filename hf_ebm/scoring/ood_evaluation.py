"""How well scores tell odd samples from in-distribution ones, with confidence intervals and simple baselines beside.

    AUROC       chance that an odd sample scores higher than an in-distribution one
    AUPR out    average precision with odd samples as positives; AUPR in with the in-distribution ones, scores negated
    FPR95       share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones

Metrics are scikit-learn's, intervals scipy's percentile bootstrap over both sets. Baselines are fitted on training
images: what an energy-based model must beat to earn its keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.data import load_training_data
from hf_ebm.scoring.odd_images import ODD_IMAGES

Scorer = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [-1, 1] -> scores (N,), larger = odder


def ood_metrics(in_distribution: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    """AUROC, AUPR both ways and FPR95 of scores that are larger for odd samples, from arrays (N,) and (M,)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([in_distribution, odd])
    labels = np.concatenate([np.zeros(len(in_distribution)), np.ones(len(odd))])
    threshold = np.quantile(odd, 0.05, method="lower")  # 95 % of the odd samples lie at or above it
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "aupr_out": float(average_precision_score(labels, scores)),
        "aupr_in": float(average_precision_score(1 - labels, -scores)),
        "fpr95": float((in_distribution >= threshold).mean()),
    }


def with_intervals(
    in_distribution: Tensor, odd: Tensor, num_resamples: int = 200, confidence: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`ood_metrics` as ``{metric: {"value", "low", "high"}}``, the interval by a bootstrap over both sets.

    Raises:
        ValueError: If a set has fewer than 10 samples, or a score is not a number.
    """
    from scipy.stats import bootstrap

    sets = [in_distribution.double().numpy(), odd.double().numpy()]
    for name, scores in zip(("in-distribution", "odd"), sets, strict=True):
        if len(scores) < 10:
            raise ValueError(f"the {name} set needs at least 10 samples for an interval, got {len(scores)}.")
        if np.isnan(scores).any():
            raise ValueError(f"the {name} scores hold {int(np.isnan(scores).sum())} NaN; the score cannot be ranked.")
    values = ood_metrics(*sets)
    names = list(values)
    interval = bootstrap(
        sets,
        lambda a, b: np.array(list(ood_metrics(a, b).values())),
        n_resamples=num_resamples,
        vectorized=False,
        paired=False,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return {
        name: {"value": values[name], "low": float(interval.low[i]), "high": float(interval.high[i])}
        for i, name in enumerate(names)
    }


def fit_baselines(train_images: Tensor, seed: int = 0) -> dict[str, Scorer]:
    """Scores that need no network of ours, fitted on training images, shape (N, C, H, W).

    ``pixel_gaussian``: Mahalanobis distance to the pixels' Gaussian; ``pca_residual``: squared error of the projection
    on the components that explain 90 % of the variance; ``nearest_neighbour``: distance to the 5th nearest training
    image; ``autoencoder``: squared error of scikit-learn's MLP trained to give its input back through 32 units.
    """
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors
    from sklearn.neural_network import MLPRegressor

    def flat(images: Tensor) -> np.ndarray:
        return images.flatten(1).double().numpy()

    train = flat(train_images)
    jitter = np.random.default_rng(seed).normal(scale=1e-3, size=train.shape)  # pixels that never vary have no variance
    gaussian = EmpiricalCovariance().fit(train + jitter)
    pca = PCA(n_components=0.9, svd_solver="full").fit(train)
    neighbours = NearestNeighbors(n_neighbors=min(5, len(train))).fit(train)
    coder = MLPRegressor(hidden_layer_sizes=(128, 32, 128), max_iter=100, early_stopping=True, random_state=seed).fit(
        train, train
    )

    def error(images: Tensor, recon: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return torch.from_numpy(((recon(flat(images)) - flat(images)) ** 2).sum(axis=1))

    return {
        "pixel_gaussian": lambda images: torch.from_numpy(gaussian.mahalanobis(flat(images))),
        "pca_residual": lambda images: error(images, lambda x: pca.inverse_transform(pca.transform(x))),
        "nearest_neighbour": lambda images: torch.from_numpy(neighbours.kneighbors(flat(images))[0][:, -1]),
        "autoencoder": lambda images: error(images, coder.predict),
    }


def make_odd_sets(images: Tensor, names: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Embedded odd sets made from in-distribution images, by name.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = sorted(set(names) - set(ODD_IMAGES))
    if unknown:
        raise ValueError(f"odd sets must be among {sorted(ODD_IMAGES)} or data sets, got {unknown}.")
    return {name: ODD_IMAGES[name](images, torch.Generator().manual_seed(seed)) for name in names}


def load_images(
    name: str, sample_shape: tuple[int, ...], split: str, image_column: str | None, max_images: int, seed: int
) -> Tensor:
    """At most `max_images` images of a data set, drawn with `seed`, prepared as for training, shape (N, C, H, W).

    Raises:
        ValueError: If the data set or its column is missing, or its images cannot be read.
    """
    if max_images < 10:
        raise ValueError(f"max_images must be >= 10, for an interval, got {max_images}.")
    dataset: Any = load_training_data(name, sample_shape, split=split, image_column=image_column)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_images]
    return torch.stack([dataset[index][0] for index in order.sort().values.tolist()])


def format_table(table: Mapping[str, Any]) -> str:
    """AUROC with its interval of every scorer (rows) on every odd set (columns), as text."""
    columns = list(next(iter(table.values())))
    lines = ["AUROC [95 % interval]".ljust(22) + "".join(name[:20].rjust(22) for name in columns)]
    for scorer, rows in table.items():
        cells = []
        for name in columns:
            value = rows[name]["auroc"]
            cells.append(
                f"{value:.3f}" if name == "mean" else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            )
        lines.append(scorer.ljust(22) + "".join(cell.rjust(22) for cell in cells))
    return "\n".join(lines)


def evaluate_ood(
    scorers: Mapping[str, Scorer],
    in_distribution: Tensor,
    odd_sets: Mapping[str, Tensor],
    num_resamples: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Metrics of every scorer on every odd set, and the scores themselves.

    Args:
        scorers: By name; larger scores are odder.
        in_distribution: Held-out images, shape (N, C, H, W).
        odd_sets: Odd images by name, each (M, C, H, W).
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``{scorer: {odd set: {metric: {"value", "low", "high"}}, "mean": {metric: value}}}`` and
        ``{scorer: {"in_distribution" or odd set: scores}}``.
    """
    table: dict[str, Any] = {}
    scores: dict[str, dict[str, Tensor]] = {}
    for scorer_name, scorer in scorers.items():
        found = {"in_distribution": scorer(in_distribution), **{name: scorer(x) for name, x in odd_sets.items()}}
        rows = {
            name: with_intervals(found["in_distribution"], found[name], num_resamples, seed=seed) for name in odd_sets
        }
        metrics = next(iter(rows.values()))
        mean = {metric: float(np.mean([row[metric]["value"] for row in rows.values()])) for metric in metrics}
        table[scorer_name] = {**rows, "mean": mean}
        scores[scorer_name] = found
    return table, scores
