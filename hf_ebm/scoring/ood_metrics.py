"""How well a score tells odd samples from in-distribution ones, with confidence intervals.

    AUROC       chance that an odd sample scores higher than an in-distribution one, ties counted half
    AUPR out    average precision with odd samples as positives; AUPR in with the in-distribution ones, scores negated
    FPR95       share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones

AUROC and AUPR are scikit-learn's, which has no FPR95; intervals are scipy's percentile bootstrap over all sets. The
resamples' metrics are computed for many resamples at once, from one sort of each; scikit-learn takes one per call.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

METRICS = {  # what the results say of themselves
    "auroc": "chance that an odd sample scores higher than an in-distribution one, ties counted half",
    "aupr_out": "average precision, odd samples positive",
    "aupr_in": "average precision, in-distribution samples positive, scores negated",
    "fpr95": "share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones",
}
MEAN = "mean"  # the row of the mean over odd sets
MIN_SAMPLES = 10
VALUES_AT_A_TIME = 4_000_000  # scores of all resamples that are sorted together: 32 MB an array


def ood_metrics(in_distribution: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    """AUROC, AUPR both ways and FPR95 of scores that are larger for odd samples, from arrays (N,) and (M,)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([in_distribution, odd])
    labels = np.concatenate([np.zeros(len(in_distribution)), np.ones(len(odd))])
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "aupr_out": float(average_precision_score(labels, scores)),
        "aupr_in": float(average_precision_score(1 - labels, -scores)),
        "fpr95": float(fpr95(in_distribution, odd)),
    }


def fpr95(in_distribution: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Share of in-distribution scores (..., N) at or above the value that 95 % of the odd ones (..., M) reach."""
    k = odd.shape[-1] // 20  # so many odd scores may stay below
    threshold = np.partition(odd, k, axis=-1)[..., k : k + 1]
    return (in_distribution >= threshold).mean(axis=-1)


def ood_metrics_of_rows(in_distribution: np.ndarray, odd: np.ndarray, axis: int = -1) -> np.ndarray:
    """The same four metrics of each row, shape (4, ...), in the order of `METRICS`.

    Args:
        in_distribution: Scores, one resample per row, shape (..., N).
        odd: Scores, shape (..., M), with the same leading axes.
        axis: Where the samples lie; only the last axis, as scipy gives them.
    """
    num_in, num_odd = in_distribution.shape[-1], odd.shape[-1]
    number = num_in + num_odd
    scores = np.concatenate([in_distribution, odd], axis=-1)
    order = np.argsort(scores, axis=-1)
    scores = np.take_along_axis(scores, order, axis=-1)
    is_odd = order >= num_in
    odd_so_far = np.cumsum(is_odd, axis=-1)

    # first and last place of the group of equal scores that each place belongs to
    places = np.broadcast_to(np.arange(number), scores.shape)
    differs = scores[..., 1:] != scores[..., :-1]
    edge = np.ones((*scores.shape[:-1], 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, differs], axis=-1), places, 0), axis=-1)
    last_or_end = np.where(np.concatenate([differs, edge], axis=-1), places, number)
    last = np.minimum.accumulate(last_or_end[..., ::-1], axis=-1)[..., ::-1]

    odd_below = np.take_along_axis(np.concatenate([0 * odd_so_far[..., :1], odd_so_far], axis=-1), first, axis=-1)
    in_below = first - odd_below
    in_up_to = last + 1 - np.take_along_axis(odd_so_far, last, axis=-1)
    precision_out = (num_odd - odd_below) / (number - first)  # of "odd" said at this score and above
    precision_in = in_up_to / (last + 1)  # of "in distribution" said at this score and below
    return np.stack(
        [
            (is_odd * 0.5 * (in_below + in_up_to)).sum(axis=-1) / (num_in * num_odd),
            (is_odd * precision_out).sum(axis=-1) / num_odd,
            (~is_odd * precision_in).sum(axis=-1) / num_in,
            fpr95(in_distribution, odd),
        ]
    )


def with_intervals(
    in_distribution: Tensor,
    odd_sets: Mapping[str, Tensor],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """`ood_metrics` of each odd set and their mean, with intervals by one bootstrap over all sets.

    A resample of the in-distribution set meets one of each odd set; odd sets of the same size are resampled alike, as
    they may be made of the same images. So the interval of the mean counts what the sets have in common.

    Args:
        in_distribution: Scores, shape (N,), larger = odder.
        odd_sets: Scores by the name of their set, shape (M,) each.
        num_resamples: Of the bootstrap.
        confidence: Of the interval.
        seed: Of the bootstrap.

    Returns:
        ``{odd set or "mean": {metric: {"value", "low", "high"}}}``.

    Raises:
        ValueError: If there is no odd set, a set has fewer than 10 samples, or a score is not finite.
    """
    from scipy.stats import bootstrap

    if not odd_sets:
        raise ValueError("odd_sets must hold the scores of one odd set at least, got none.")
    inside = checked_scores("in-distribution", in_distribution)
    odd = {name: checked_scores("odd", scores) for name, scores in odd_sets.items()}
    sizes = sorted({len(scores) for scores in odd.values()})

    def metrics_of(inside_places: np.ndarray, *odd_places: np.ndarray, axis: int = -1) -> np.ndarray:
        places = dict(zip(sizes, odd_places, strict=True))
        found = [ood_metrics_of_rows(inside[inside_places], scores[places[len(scores)]]) for scores in odd.values()]
        return np.stack([*found, np.mean(found, axis=0)])

    interval = bootstrap(
        [np.arange(len(inside)), *map(np.arange, sizes)],
        metrics_of,
        n_resamples=num_resamples,
        batch=max(1, VALUES_AT_A_TIME // (len(inside) + sizes[-1])),
        vectorized=True,
        paired=False,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    values = [ood_metrics(inside, scores) for scores in odd.values()]
    values.append({metric: float(np.mean([row[metric] for row in values])) for metric in METRICS})
    return {
        name: {
            metric: {"value": values[i][metric], "low": float(interval.low[i, j]), "high": float(interval.high[i, j])}
            for j, metric in enumerate(METRICS)
        }
        for i, name in enumerate((*odd, MEAN))
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
