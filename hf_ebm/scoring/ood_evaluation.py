"""Scores of a model and of simple baselines on in-distribution and odd images, and the table of how well they do.

Each measure is taken once per set, whatever number of scores reads it. Baselines are fitted on training images: what an
energy-based model must beat to earn its keep. The metrics are in `hf_ebm.scoring.ood_metrics`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.card_tables import show_interval
from hf_ebm.data import draw_rows
from hf_ebm.dataset_names import DatasetName, load_named
from hf_ebm.progress import ProgressBar, no_bar
from hf_ebm.scoring.odd_images import ODD_IMAGES
from hf_ebm.scoring.ood_metrics import MIN_SAMPLES, NUM_RESAMPLES, with_intervals
from hf_ebm.scoring.scores import SCORES, MeasureStatistics
from hf_ebm.split_overlap import share_rows, split_sizes

Scorer = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [-1, 1] -> scores (N,), larger = odder
MAX_EPOCHS = 1000  # of the autoencoder; 1,000 digits took 229
MAX_BASELINE_DIMS = 20_000  # a covariance of 3.2 GB
METRIC_NAMES = {"auroc": "AUROC", "aupr_out": "AUPR out", "aupr_in": "AUPR in", "fpr95": "FPR95"}
TABLE_WIDTH, COLUMN_WIDTH = 120, 22  # of the printed table
IN_DISTRIBUTION = "in_distribution"  # the name of the set that is not odd


def fit_baselines(
    train_images: Tensor, seed: int = 0, max_epochs: int = MAX_EPOCHS, progress_bar: ProgressBar = no_bar
) -> tuple[dict[str, Scorer], dict[str, Any]]:
    """Scores that need no network of ours, fitted on training images, shape (N, C, H, W).

    ``pixel_gaussian``: Mahalanobis distance to the pixels' Gaussian; ``pca_residual``: squared error of the projection
    on the components that explain 90 % of the variance; ``nearest_neighbour``: distance to the 5th nearest training
    image; ``autoencoder``: squared error of scikit-learn's MLP trained to give its input back through 32 units, until a
    tenth of the images, which it does not learn from, is no longer explained better, at most `max_epochs`.
    `progress_bar` wraps the four.

    Returns:
        The scorers by name, and ``{"epochs", "converged"}`` of the autoencoder: False if `max_epochs` were too few.

    Raises:
        ValueError: If the images have more values than a covariance of them fits in memory.
    """
    dims = train_images[0].numel()
    if dims > MAX_BASELINE_DIMS:
        raise ValueError(
            f"baselines take images of at most {MAX_BASELINE_DIMS:,} values, got {dims:,}: their covariance would not "
            "fit in memory; use --no-baselines."
        )
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neighbors import NearestNeighbors
    from sklearn.neural_network import MLPRegressor

    def flat(images: Tensor) -> np.ndarray:
        return images.flatten(1).double().numpy()

    train = flat(train_images)
    jitter = np.random.default_rng(seed).normal(scale=1e-3, size=train.shape)  # pixels that never vary have no variance
    gaussian = EmpiricalCovariance()
    pca = PCA(n_components=0.9, svd_solver="full")
    neighbours = NearestNeighbors(n_neighbors=min(5, len(train)))
    options = {"max_iter": max_epochs, "early_stopping": True, "random_state": seed}
    coder = MLPRegressor(hidden_layer_sizes=(128, 32, 128), **options)
    fits: list[Callable[[], Any]] = [
        lambda: gaussian.fit(train + jitter),
        lambda: pca.fit(train),
        lambda: neighbours.fit(train),
        lambda: coder.fit(train, train),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is returned says it
        for fit in progress_bar(fits, desc="fitting the baselines", total=len(fits)):
            fit()

    def error(images: Tensor, recon: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return torch.from_numpy(((recon(flat(images)) - flat(images)) ** 2).sum(axis=1))

    scorers: dict[str, Scorer] = {
        "pixel_gaussian": lambda images: torch.from_numpy(gaussian.mahalanobis(flat(images))),
        "pca_residual": lambda images: error(images, lambda x: pca.inverse_transform(pca.transform(x))),
        "nearest_neighbour": lambda images: torch.from_numpy(neighbours.kneighbors(flat(images))[0][:, -1]),
        "autoencoder": lambda images: error(images, coder.predict),
    }
    return scorers, {"epochs": coder.n_iter_, "converged": coder.n_iter_ < max_epochs}


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
    name: str | DatasetName,
    sample_shape: tuple[int, ...],
    split: str,
    image_column: str | None,
    max_images: int,
    seed: int,
    padding: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """At most `max_images` images of a data set, drawn with `seed`, prepared as for training, and what they are.

    Returns:
        Images in [-1, 1], shape (N, C, H, W), and the source of `hf_ebm.dataset_names.load_named` with ``num_images``.

    Raises:
        ValueError: If the data set or its column is missing, its images cannot be read, or there are too few.
    """
    if max_images < MIN_SAMPLES:
        raise ValueError(f"max_images must be >= {MIN_SAMPLES}, for an interval, got {max_images}.")
    dataset, source = load_named(name, sample_shape, split, image_column, padding)
    return draw_images(dataset, source, max_images, seed)


def draw_images(dataset: Any, source: dict[str, Any], max_images: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """What `load_images` returns, of a data set that `load_named` gave."""
    rows = draw_rows(len(dataset), max_images, seed)
    images = torch.stack([dataset[index][0] for index in rows])
    return images, {**source, "num_images": len(images)}


def load_train_and_test(
    name: str, sample_shape: tuple[int, ...], image_column: str | None, max_images: int, seed: int, padding: int = 0
) -> tuple[tuple[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]:
    """`load_images` of the split "train" and of another one, "test" where the name ``name[:config][@split]`` says none.

    Raises:
        ValueError: As there, and if the other one has rows of "train".
    """
    train = DatasetName.parse(name).of_split("train")
    loaded, source = load_named(name, sample_shape, "test", image_column, padding)
    if share_rows(source["split"], "train", split_sizes(loaded)):
        raise ValueError(
            f"data set {name!r} gives the split {source['split']!r}, which has rows of 'train': what is fitted on "
            "those cannot be judged by them; give a set that has a train and a test split, or name the other one as "
            "name@split."
        )
    fitted = load_images(train, sample_shape, "train", image_column, max_images, seed, padding)
    return fitted, draw_images(loaded, source, max_images, seed)


def score_sets(
    pipeline: Any,
    names: list[str],
    train_images: Tensor,
    sets: Mapping[str, Tensor],
    seed: int = 0,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, dict[str, Tensor]]:
    """The named scores of an `EnergyScoringPipeline` for each set: ``{score: {set: scores (N,)}}``.

    Args:
        pipeline: The pipeline; its own calibration is neither used nor changed.
        names: Of its ``available_scores``.
        train_images: In-distribution images that the scores' statistics come from, shape (N, C, H, W).
        sets: Images by the name of their set.
        seed: Of the noise in the measures.
        progress_bar: Wraps the sets.
    """
    needed = {measure for name in names for measure in SCORES[name].measures}
    standardised = {measure for name in names if SCORES[name].needs_statistics for measure in SCORES[name].measures}
    of_train = pipeline.measure_all(train_images, standardised, seed=seed) if standardised else {}
    statistics = {name: MeasureStatistics.of(values, name) for name, values in of_train.items()}
    shown = progress_bar(sets.items(), desc="scoring the sets", total=len(sets))
    measures = {name: pipeline.measure_all(images, needed, seed=seed) for name, images in shown}
    return {name: {key: SCORES[name].function(measures[key], statistics) for key in sets} for name in names}


def format_table(table: Mapping[str, Any], metric: str = "auroc") -> str:
    """One of the metrics of every scorer (rows) on every odd set and their mean (columns), as text.

    Lines are at most `TABLE_WIDTH` long. Columns that do not fit beside the others come below them.
    """
    columns = list(next(iter(table.values())))
    number = TABLE_WIDTH // COLUMN_WIDTH - 1
    blocks = []
    for start in range(0, len(columns), number):
        shown = columns[start : start + number]
        heading = f"{METRIC_NAMES[metric]} [95 % interval]"[: COLUMN_WIDTH - 1]
        lines = [heading.ljust(COLUMN_WIDTH) + "".join(name[:20].rjust(COLUMN_WIDTH) for name in shown)]
        for scorer, rows in table.items():
            cells = []
            for name in shown:
                cells.append(show_interval(rows[name][metric]))
            lines.append(scorer.ljust(COLUMN_WIDTH) + "".join(cell.rjust(COLUMN_WIDTH) for cell in cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def evaluate_ood(
    scores: Mapping[str, Mapping[str, Tensor]],
    paired: Collection[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """Metrics of every scorer on every odd set.

    Args:
        scores: ``{scorer: {"in_distribution" or odd set: scores (N,)}}``, larger = odder.
        paired: Names of the odd sets that were made from the in-distribution images, in their order.
        num_resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
        progress_bar: Wraps the scorers.

    Returns:
        ``{scorer: {odd set or "mean": {metric: {"value", "low", "high"}}}}``, see `with_intervals`.
    """
    shown = progress_bar(scores.items(), desc="intervals", total=len(scores))
    return {
        scorer: with_intervals(
            found[IN_DISTRIBUTION],
            {name: odd for name, odd in found.items() if name != IN_DISTRIBUTION},
            paired,
            num_resamples,
            seed=seed,
        )
        for scorer, found in shown
    }
