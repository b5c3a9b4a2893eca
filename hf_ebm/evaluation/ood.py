"""Out-of-distribution (OOD) detection: how well a score separates OOD from in-distribution images.

    AUROC       chance that an OOD sample scores higher than an in-distribution one, ties counted half
    AUPR out    average precision with OOD samples as positives; AUPR in: in-distribution ones, scores negated
    FPR95       share of in-distribution samples flagged as OOD at the threshold that detects 95 % of the OOD ones

AUROC and AUPR are scikit-learn's, which has no FPR95. Confidence intervals are scipy's percentile
bootstrap. A synthetic OOD image is resampled together with the in-distribution image that it was made
from (a paired bootstrap), images of other data sets independently. The metrics of many resamples are
computed at once, from one sort of each, because scikit-learn takes one resample per call.

A model's scores are compared with simple baselines fitted on training images. Each statistic is
computed once per set, for all scores that use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.data.loading import DatasetName, draw_rows, load_named
from hf_ebm.data.splits import share_rows, split_sizes
from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD
from hf_ebm.hub.model_card import show_interval
from hf_ebm.scoring.scores import SCORES, Moments
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


def ood_metrics(in_distribution: np.ndarray, ood: np.ndarray) -> dict[str, float]:
    """AUROC, AUPR both ways and FPR95 of scores that are larger for OOD samples, from arrays (N,) and (M,).

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    check_scores("in_distribution", in_distribution)
    check_scores("ood", ood)
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([in_distribution, ood])
    labels = np.concatenate([np.zeros(len(in_distribution)), np.ones(len(ood))])
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "aupr_out": float(average_precision_score(labels, scores)),
        "aupr_in": float(average_precision_score(1 - labels, -scores)),
        "fpr95": float(fpr95(in_distribution, ood)),
    }


def fpr95(in_distribution: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """Share of in-distribution scores (..., N) at or above the value that 95 % of the OOD ones (..., M) reach."""
    k = ood.shape[-1] // 20  # so many OOD scores may stay below
    threshold = np.partition(ood, k, axis=-1)[..., k : k + 1]
    return (in_distribution >= threshold).mean(axis=-1)


def ood_metrics_of_rows(in_distribution: np.ndarray, ood: np.ndarray) -> np.ndarray:
    """The same four metrics of each row, shape (4, ...), in the order of `METRICS`, of scores (..., N) and (..., M)."""
    num_in, num_ood = in_distribution.shape[-1], ood.shape[-1]
    number = num_in + num_ood
    scores = np.concatenate([in_distribution, ood], axis=-1)
    order = np.argsort(scores, axis=-1)
    scores = np.take_along_axis(scores, order, axis=-1)
    is_ood = order >= num_in
    ood_so_far = np.cumsum(is_ood, axis=-1)

    # first and last place of the group of equal scores that each place belongs to
    places = np.broadcast_to(np.arange(number), scores.shape)
    differs = scores[..., 1:] != scores[..., :-1]
    edge = np.ones((*scores.shape[:-1], 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, differs], axis=-1), places, 0), axis=-1)
    last_or_end = np.where(np.concatenate([differs, edge], axis=-1), places, number)
    last = np.minimum.accumulate(last_or_end[..., ::-1], axis=-1)[..., ::-1]

    ood_below = np.take_along_axis(np.concatenate([0 * ood_so_far[..., :1], ood_so_far], axis=-1), first, axis=-1)
    in_below = first - ood_below
    in_up_to = last + 1 - np.take_along_axis(ood_so_far, last, axis=-1)
    precision_out = (num_ood - ood_below) / (number - first)  # of flagging as OOD at this score and above
    precision_in = in_up_to / (last + 1)  # of accepting at this score and below
    return np.stack(
        [
            (is_ood * 0.5 * (in_below + in_up_to)).sum(axis=-1) / (num_in * num_ood),
            (is_ood * precision_out).sum(axis=-1) / num_ood,
            (~is_ood * precision_in).sum(axis=-1) / num_in,
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

    def metrics_of(inside_places: np.ndarray, *ood_places: np.ndarray, axis: int = -1) -> np.ndarray:
        places = dict.fromkeys(paired, inside_places) | dict(zip(unpaired, ood_places, strict=True))
        found = [ood_metrics_of_rows(inside[inside_places], scores[places[name]]) for name, scores in ood.items()]
        return np.stack([*found, np.mean(found, axis=0)])

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
    values = [ood_metrics(inside, scores) for scores in ood.values()]
    values.append({metric: float(np.mean([row[metric] for row in values])) for metric in METRICS})
    return {
        name: {
            metric: {"value": values[i][metric], "low": float(interval.low[i, j]), "high": float(interval.high[i, j])}
            for j, metric in enumerate(METRICS)
        }
        for i, name in enumerate((*ood, MEAN))
    }


def check_scores(name: str, scores: Any) -> None:
    """Raise a `ValueError` if an array or tensor of scores is empty or holds NaN: neither has a rank."""
    values = np.asarray(scores)
    if values.size == 0:
        raise ValueError(f"{name} must hold at least one score, got none.")
    if bad := int(np.isnan(values).sum()):
        raise ValueError(
            f"{name} holds {bad} NaN among {values.size} scores, which cannot be ranked; check the model's weights and "
            "these images for values that are not finite."
        )


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
TABLE_WIDTH, COLUMN_WIDTH = 120, 22  # of the printed table
IN_DISTRIBUTION = "in_distribution"  # the name of the in-distribution set


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
    }
    return scorers, {"epochs": coder.n_iter_, "converged": coder.n_iter_ < max_epochs}


def make_ood_sets(images: Tensor, names: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Synthetic OOD sets made from in-distribution images, by name.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = sorted(set(names) - set(SYNTHETIC_OOD))
    if unknown:
        raise ValueError(f"OOD sets must be among {sorted(SYNTHETIC_OOD)} or data sets, got {unknown}.")
    return {name: SYNTHETIC_OOD[name](images, torch.Generator().manual_seed(seed)) for name in names}


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
    train = DatasetName.parse(name).of_split("train")
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
    needed = {statistic for name in names for statistic in SCORES[name].statistics}
    standardised = {statistic for name in names if SCORES[name].needs_fitting for statistic in SCORES[name].statistics}

    def statistics(images: Tensor, statistics: set[str]) -> dict[str, Tensor]:
        return pipeline.compute_statistics(to_unit_range(images) if images.ndim == 4 else images, statistics, seed=seed)

    of_train = statistics(train_images, standardised) if standardised else {}
    scales = {name: Moments.of(values, name) for name, values in of_train.items()}
    shown = progress_bar(sets.items(), desc="scoring the sets", total=len(sets))
    found = {name: statistics(images, needed) for name, images in shown}
    return {name: {key: SCORES[name].function(found[key], scales) for key in sets} for name in names}


def format_table(table: Mapping[str, Any], metric: str = "auroc") -> str:
    """One of the metrics of every scorer (rows) on every OOD set and their mean (columns), as text.

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
