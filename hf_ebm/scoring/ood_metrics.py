"""How well a score tells odd samples from in-distribution ones, with confidence intervals.

    AUROC       chance that an odd sample scores higher than an in-distribution one, ties counted half
    AUPR out    average precision with odd samples as positives; AUPR in with the in-distribution ones, scores negated
    FPR95       share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones

Values are scikit-learn's, intervals scipy's percentile bootstrap over both sets. The resamples' metrics are computed
for many resamples at once from one sort of each; scikit-learn takes one resample per call.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

METRICS = {  # what the results say of themselves
    "auroc": "chance that an odd sample scores higher than an in-distribution one, ties counted half",
    "aupr_out": "average precision, odd samples positive",
    "aupr_in": "average precision, in-distribution samples positive, scores negated",
    "fpr95": "share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones",
}
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
    in_distribution: Tensor, odd: Tensor, num_resamples: int = 200, confidence: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`ood_metrics` as ``{metric: {"value", "low", "high"}}``, the interval by a bootstrap over both sets.

    Args:
        in_distribution: Scores, shape (N,).
        odd: Scores, shape (M,), larger = odder.
        num_resamples: Of the bootstrap.
        confidence: Of the interval.
        seed: Of the bootstrap.

    Raises:
        ValueError: If a set has fewer than 10 samples, or a score is not finite.
    """
    from scipy.stats import bootstrap

    sets = [in_distribution.double().numpy(), odd.double().numpy()]
    for name, scores in zip(("in-distribution", "odd"), sets, strict=True):
        if len(scores) < MIN_SAMPLES:
            raise ValueError(f"the {name} set needs at least {MIN_SAMPLES} samples for an interval, got {len(scores)}.")
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise ValueError(f"the {name} scores hold {bad} NaN or infinite ones; the score cannot be ranked.")
    values = ood_metrics(*sets)
    interval = bootstrap(
        sets,
        ood_metrics_of_rows,
        n_resamples=num_resamples,
        batch=max(1, VALUES_AT_A_TIME // (len(sets[0]) + len(sets[1]))),
        vectorized=True,
        paired=False,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return {
        name: {"value": values[name], "low": float(interval.low[i]), "high": float(interval.high[i])}
        for i, name in enumerate(METRICS)
    }
