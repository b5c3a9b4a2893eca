"""Out-of-distribution (OOD) detection: how well a score separates OOD from in-distribution images.

    AUROC       chance that an OOD sample scores higher than an in-distribution one, ties counted half
    AUPR out    average precision with OOD samples as positives; AUPR in: in-distribution ones, scores negated
    FPR95       share of in-distribution samples flagged as OOD at the threshold that detects 95 % of the OOD ones

AUROC and AUPR are as in scikit-learn, which takes one resample per call: here the counts of each
value give those of many. Confidence intervals are scipy's percentile bootstrap. A synthetic OOD image
is resampled together with the in-distribution image that it was made from (a paired bootstrap),
images of other data sets independently.

A model's scores are compared with simple baselines fitted on training images. Each statistic is
computed once per set, for all scores that use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.data.loading import DatasetName, draw_rows, load_named
from hf_ebm.data.splits import share_rows, split_sizes
from hf_ebm.hub.model_card import show_interval
from hf_ebm.scoring.calibration import MAX_BANK, MAX_DENSITY_REFERENCE
from hf_ebm.scoring.scores import FEATURES, FULL, SCORES, Fitted, Moments
from hf_ebm.scoring.statistics import compute_compressed_size
from hf_ebm.utils.logging import ProgressBar, no_bar
from hf_ebm.utils.validation import check_count, check_fraction, check_seed

METRICS = {  # descriptions in the results
    "auroc": "chance that an OOD sample scores higher than an in-distribution one, ties counted half",
    "aupr_out": "average precision, OOD samples positive",
    "aupr_in": "average precision, in-distribution samples positive, scores negated",
    "fpr95": "share of in-distribution samples flagged as OOD at the threshold that detects 95 % of the OOD ones",
}
MEAN = "mean"  # the row of the mean over OOD sets
MIN_SAMPLES = 10
NUM_RESAMPLES = 1000
VALUES_AT_A_TIME = 4_000_000  # scores of all resamples that are sorted together: 32 MB an array


def fpr95(in_distribution: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """Share of in-distribution scores (..., N) at or above the value that 95 % of the OOD ones (..., M) reach."""
    k = ood.shape[-1] // 20  # so many OOD scores may stay below
    threshold = np.partition(ood, k, axis=-1)[..., k : k + 1]
    return (in_distribution >= threshold).mean(axis=-1)


def ood_metrics(in_distribution: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """The `METRICS` in their order, shape (4, ...), of each row of scores (..., N) and (..., M), none of them NaN.

    Rows hold the same few values, as resamples do: memory grows with rows times different values.
    """
    n, m = in_distribution.shape[-1], ood.shape[-1]
    scores = np.concatenate([in_distribution, ood], axis=-1)
    values, places = np.unique(scores, return_inverse=True)
    rows = places.reshape(-1, n + m)
    rows = rows + len(values) * np.arange(len(rows))[:, None]

    def count(part: np.ndarray) -> np.ndarray:  # of each value, in ascending order, shape (..., V)
        return np.bincount(part.ravel(), minlength=len(values) * len(rows)).reshape(*scores.shape[:-1], -1)

    num_in, num_ood = count(rows[:, :n]), count(rows[:, n:])
    in_up_to, ood_up_to = num_in.cumsum(axis=-1), num_ood.cumsum(axis=-1)
    in_from, ood_from = n - in_up_to + num_in, m - ood_up_to + num_ood
    precision_out = ood_from / np.maximum(in_from + ood_from, 1)  # of flagging as OOD at this score and above
    precision_in = in_up_to / np.maximum(in_up_to + ood_up_to, 1)  # of accepting at this score and below
    return np.stack(
        [
            (num_ood * (in_up_to - 0.5 * num_in)).sum(axis=-1) / (n * m),
            (num_ood * precision_out).sum(axis=-1) / m,
            (num_in * precision_in).sum(axis=-1) / n,
            fpr95(in_distribution, ood),
        ]
    )


def with_intervals(
    in_distribution: Tensor,
    ood_sets: Mapping[str, Tensor],
    paired: Collection[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """`ood_metrics` of each OOD set and their mean, with intervals by one bootstrap over all sets.

    Each resample of the in-distribution set is compared with one resample of each OOD set: of a
    paired set, the images made from the resampled in-distribution images; of another set, an
    independent resample. So the interval of the mean accounts for what the sets have in common.

    Args:
        in_distribution: Scores, shape (N,), larger = more out of distribution.
        ood_sets: Scores by the name of their set, shape (M,) each.
        paired: Names of the OOD sets whose i-th image was made from the i-th in-distribution image.
        num_resamples: Resamples of the bootstrap, >= 1.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        ``{OOD set or "mean": {metric: {"value", "low", "high"}}}``.

    Raises:
        ValueError: If there is no OOD set, a set has fewer than 10 samples, a paired set is not as large as the
            in-distribution set, or a score is not finite.
    """
    from scipy.stats import bootstrap

    check_count("num_resamples", num_resamples, 1)
    check_fraction("confidence", confidence)
    check_seed("seed", seed)
    if not ood_sets:
        raise ValueError("ood_sets must hold the scores of one OOD set at least, got none.")
    inside = checked_scores("in-distribution", in_distribution)
    ood = {name: checked_scores("OOD", scores) for name, scores in ood_sets.items()}
    for name in paired:
        if name not in ood or len(ood[name]) != len(inside):
            got = f"{len(ood[name])} scores" if name in ood else "no such set"
            raise ValueError(
                f"paired must name OOD sets with one score per in-distribution score ({len(inside)}), got {name!r} "
                f"with {got}."
            )
    unpaired = [name for name in ood if name not in paired]

    def with_mean(found: list[np.ndarray]) -> np.ndarray:
        return np.stack([*found, np.mean(found, axis=0)])

    def metrics_of(inside_places: np.ndarray, *ood_places: np.ndarray, axis: int = -1) -> np.ndarray:
        places = dict.fromkeys(paired, inside_places) | dict(zip(unpaired, ood_places, strict=True))
        return with_mean([ood_metrics(inside[inside_places], scores[places[name]]) for name, scores in ood.items()])

    interval = bootstrap(
        [np.arange(len(inside)), *(np.arange(len(ood[name])) for name in unpaired)],
        metrics_of,
        n_resamples=num_resamples,
        batch=max(1, VALUES_AT_A_TIME // (len(inside) + max(map(len, ood.values())))),
        vectorized=True,
        paired=False,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    values = with_mean([ood_metrics(inside, scores) for scores in ood.values()])
    columns = {"value": values, "low": interval.low, "high": interval.high}
    return {
        name: {metric: {key: float(x[i, j]) for key, x in columns.items()} for j, metric in enumerate(METRICS)}
        for i, name in enumerate((*ood, MEAN))
    }


def checked_scores(kind: str, scores: Tensor) -> np.ndarray:
    """The scores (N,) of a set in double precision.

    Raises:
        ValueError: If there are fewer than 10, or one is not finite.
    """
    if len(scores) < MIN_SAMPLES:
        raise ValueError(f"the {kind} set needs at least {MIN_SAMPLES} samples for an interval, got {len(scores)}.")
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(f"the {kind} scores hold {bad} NaN or infinite ones; the score cannot be ranked.")
    return scores.double().numpy()


Scorer = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [-1, 1] -> scores (N,), larger = more out of distribution
MAX_EPOCHS = 1000  # of the autoencoder; 1,000 digits took 229
MAX_BASELINE_DIMS = 20_000  # a covariance of 3.2 GB
METRIC_NAMES = {"auroc": "AUROC", "aupr_out": "AUPR out", "aupr_in": "AUPR in", "fpr95": "FPR95"}
TABLE_WIDTH = 120  # of the printed table
IN_DISTRIBUTION = "in_distribution"  # the name of the in-distribution set


def fit_baselines(
    train_images: Tensor, seed: int = 0, max_epochs: int = MAX_EPOCHS, progress_bar: ProgressBar = no_bar
) -> tuple[dict[str, Scorer], dict[str, Any]]:
    """Scores that need no network of ours, fitted on training images, shape (N, C, H, W).

    ``pixel_gaussian``: Mahalanobis distance to the pixels' Gaussian; ``pca_residual``: squared error of the projection
    on the components that explain 90 % of the variance; ``nearest_neighbour``: distance to the 5th nearest training
    image; ``autoencoder``: squared error of scikit-learn's MLP trained to give its input back through 32 units, until a
    tenth of the images, which it does not learn from, is no longer explained better, at most `max_epochs`;
    ``png_size``: the compressed size, small = out of distribution. `progress_bar` wraps the first four.

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
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result reports it
        for fit in progress_bar(fits, desc="fitting the baselines", total=len(fits)):
            fit()

    def error(images: Tensor, recon: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return torch.from_numpy(((recon(flat(images)) - flat(images)) ** 2).sum(axis=1))

    scorers: dict[str, Scorer] = {
        "pixel_gaussian": lambda images: torch.from_numpy(gaussian.mahalanobis(flat(images))),
        "pca_residual": lambda images: error(images, lambda x: pca.inverse_transform(pca.transform(x))),
        "nearest_neighbour": lambda images: torch.from_numpy(neighbours.kneighbors(flat(images))[0][:, -1]),
        "autoencoder": lambda images: error(images, coder.predict),
        "png_size": lambda images: -compute_compressed_size(images).double(),
    }
    return scorers, {"epochs": coder.n_iter_, "converged": coder.n_iter_ < max_epochs}


def load_images(
    name: str | DatasetName,
    sample_shape: tuple[int, ...],
    split: str,
    image_column: str | None,
    max_images: int,
    seed: int,
    image_processor: EBMImageProcessor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """At most `max_images` images of a data set, drawn with `seed`, prepared as for training, and what they are.

    Returns:
        Images in [-1, 1], shape (N, C, H, W), and the source of `hf_ebm.data.loading.load_named` with ``num_images``.

    Raises:
        ValueError: If the data set or its column is missing, its images cannot be read, or there are too few.
    """
    if max_images < MIN_SAMPLES:
        raise ValueError(f"max_images must be >= {MIN_SAMPLES}, for an interval, got {max_images}.")
    dataset, source = load_named(name, sample_shape, split, image_column, image_processor)
    return draw_images(dataset, source, max_images, seed)


def draw_images(dataset: Any, source: dict[str, Any], max_images: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """What `load_images` returns, of a data set that `load_named` gave."""
    rows = draw_rows(len(dataset), max_images, seed)
    images = torch.stack([dataset[index][0] for index in rows])
    return images, {**source, "num_images": len(images)}


def load_train_and_test(
    name: str,
    sample_shape: tuple[int, ...],
    image_column: str | None,
    max_images: int,
    seed: int,
    image_processor: EBMImageProcessor | None = None,
) -> tuple[tuple[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]:
    """`load_images` of the split "train" and of the split in ``name[:config][@split]`` ("test" by default).

    Raises:
        ValueError: As there, and if the other one has rows of "train".
    """
    train = replace(DatasetName.parse(name), split="train")
    loaded, source = load_named(name, sample_shape, "test", image_column, image_processor)
    if share_rows(source["split"], "train", split_sizes(loaded)):
        raise ValueError(
            f"data set {name!r} gives the split {source['split']!r}, which has rows of 'train': what is fitted on "
            "those cannot be judged by them; give a set that has a train and a test split, or name the other one as "
            "name@split."
        )
    fitted = load_images(train, sample_shape, "train", image_column, max_images, seed, image_processor)
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
        seed: Seed of the noise in the statistics.
        progress_bar: Wraps the sets.
    """
    fitted_scores = [name for name in names if SCORES[name].needs_fitting]
    needed, of_fitted = pipeline.needed(*names), pipeline.needed(*fitted_scores) if fitted_scores else set()

    def statistics(images: Tensor, statistics: set[str]) -> dict[str, Tensor]:
        return pipeline.compute_statistics(to_unit_range(images) if images.ndim == 4 else images, statistics, seed=seed)

    of_train = statistics(train_images, of_fitted) if of_fitted else {}
    standardised = {m for name in fitted_scores if not SCORES[name].uses_reference for m in SCORES[name].statistics}
    moments = {name: Moments.of(of_train[name], name) for name in standardised}
    reference = {name: values[:MAX_DENSITY_REFERENCE] for name, values in of_train.items() if name in FULL}
    reference |= {name: values[:MAX_BANK].half() for name, values in of_train.items() if name == FEATURES}
    if "density_encoder" in names:
        moments |= Fitted(reference=reference).distance_moments()
    fitted = Fitted(moments, reference)
    shown = progress_bar(sets.items(), desc="scoring the sets", total=len(sets))
    found = {name: statistics(images, needed) for name, images in shown}
    return {name: {key: SCORES[name].function(found[key], fitted) for key in sets} for name in names}


def format_table(table: Mapping[str, Any], metric: str = "auroc") -> str:
    """One of the metrics of every scorer (rows) on every OOD set and their mean (columns), as text.

    Lines are at most `TABLE_WIDTH` long. Columns that do not fit beside the others come below them.
    """
    import pandas as pd

    frame = pd.DataFrame.from_dict(
        {scorer: [show_interval(row[metric]) for row in rows.values()] for scorer, rows in table.items()},
        orient="index",
        columns=[name[:20] for name in next(iter(table.values()))],
    )
    frame.columns.name = f"{METRIC_NAMES[metric]} [95 % interval]"
    lines = frame.to_string(line_width=TABLE_WIDTH).splitlines()
    return "\n".join(line.rstrip(" \\") for line in lines)  # pandas ends those that continue below with a backslash


def evaluate_ood(
    scores: Mapping[str, Mapping[str, Tensor]],
    paired: Collection[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """Metrics of every scorer on every OOD set.

    Args:
        scores: ``{scorer: {"in_distribution" or OOD set: scores (N,)}}``, larger = more out of distribution.
        paired: Names of the OOD sets that were made from the in-distribution images, in their order.
        num_resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
        progress_bar: Wraps the scorers.

    Returns:
        ``{scorer: {OOD set or "mean": {metric: {"value", "low", "high"}}}}``, see `with_intervals`.
    """
    shown = progress_bar(scores.items(), desc="intervals", total=len(scores))
    return {
        scorer: with_intervals(
            found[IN_DISTRIBUTION],
            {name: ood for name, ood in found.items() if name != IN_DISTRIBUTION},
            paired,
            num_resamples,
            seed=seed,
        )
        for scorer, found in shown
    }
