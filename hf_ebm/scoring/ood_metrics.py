"""How well a score tells odd samples from in-distribution ones, with confidence intervals.

    AUROC       chance that an odd sample scores higher than an in-distribution one, ties counted half
    AUPR out    average precision with odd samples as positives; AUPR in with the in-distribution ones, scores negated
    FPR95       share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones

AUROC and AUPR are scikit-learn's, which has no FPR95; intervals are scipy's percentile bootstrap. A
synthetic OOD set is made from the in-distribution images, so its scores depend on theirs: an image
and what was made from it are resampled together (a paired bootstrap). A set of other images is
resampled independently. The resamples' metrics are computed for many resamples at once, from one
sort of each; scikit-learn takes one per call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hf_ebm.counting import check_count, check_fraction, check_seed

METRICS = {  # what the results say of themselves
    "auroc": "chance that an odd sample scores higher than an in-distribution one, ties counted half",
    "aupr_out": "average precision, odd samples positive",
    "aupr_in": "average precision, in-distribution samples positive, scores negated",
    "fpr95": "share of in-distribution samples called odd at the threshold that finds 95 % of the odd ones",
}
MEAN = "mean"  # the row of the mean over odd sets
MIN_SAMPLES = 10
NUM_RESAMPLES = 1000
VALUES_AT_A_TIME = 4_000_000  # scores of all resamples that are sorted together: 32 MB an array


def ood_metrics(in_distribution: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    """AUROC, AUPR both ways and FPR95 of scores that are larger for odd samples, from arrays (N,) and (M,).

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    check_scores("in_distribution", in_distribution)
    check_scores("odd", odd)
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
    """Share of in-distribution scores (..., N) at or above the value that 95 % of the odd ones (..., M) reach.

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    check_scores("in_distribution", in_distribution)
    check_scores("odd", odd)
    k = odd.shape[-1] // 20  # so many odd scores may stay below
    threshold = np.partition(odd, k, axis=-1)[..., k : k + 1]
    return (in_distribution >= threshold).mean(axis=-1)


def ood_metrics_of_rows(in_distribution: np.ndarray, odd: np.ndarray, axis: int = -1) -> np.ndarray:
    """The same four metrics of each row, shape (4, ...), in the order of `METRICS`.

    Args:
        in_distribution: Scores, one resample per row, shape (..., N).
        odd: Scores, shape (..., M), with the same leading axes.
        axis: Where the samples lie; only the last axis, as scipy gives them.

    Raises:
        ValueError: If a set is empty or a score is NaN.
    """
    check_scores("in_distribution", in_distribution)
    check_scores("odd", odd)
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
    paired: Collection[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """`ood_metrics` of each odd set and their mean, with intervals by one bootstrap over all sets.

    Each resample of the in-distribution set is compared with one resample of each odd set: of a
    paired set, the images made from the resampled in-distribution images; of another set, an
    independent resample. So the interval of the mean accounts for what the sets have in common.

    Args:
        in_distribution: Scores, shape (N,), larger = odder.
        odd_sets: Scores by the name of their set, shape (M,) each.
        paired: Names of the odd sets whose i-th image was made from the i-th in-distribution image.
        num_resamples: Resamples of the bootstrap, >= 1.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        ``{odd set or "mean": {metric: {"value", "low", "high"}}}``.

    Raises:
        ValueError: If there is no odd set, a set has fewer than 10 samples, a paired set is not as large as the
            in-distribution set, or a score is not finite.
    """
    from scipy.stats import bootstrap

    check_count("num_resamples", num_resamples, 1)
    check_fraction("confidence", confidence)
    check_seed("seed", seed)
    if not odd_sets:
        raise ValueError("odd_sets must hold the scores of one odd set at least, got none.")
    inside = checked_scores("in-distribution", in_distribution)
    odd = {name: checked_scores("odd", scores) for name, scores in odd_sets.items()}
    for name in paired:
        if name not in odd or len(odd[name]) != len(inside):
            got = f"{len(odd[name])} scores" if name in odd else "no such set"
            raise ValueError(
                f"paired must name odd sets with one score per in-distribution score ({len(inside)}), got {name!r} "
                f"with {got}."
            )
    unpaired = [name for name in odd if name not in paired]

    def metrics_of(inside_places: np.ndarray, *odd_places: np.ndarray, axis: int = -1) -> np.ndarray:
        places = dict.fromkeys(paired, inside_places) | dict(zip(unpaired, odd_places, strict=True))
        found = [ood_metrics_of_rows(inside[inside_places], scores[places[name]]) for name, scores in odd.items()]
        return np.stack([*found, np.mean(found, axis=0)])

    interval = bootstrap(
        [np.arange(len(inside)), *(np.arange(len(odd[name])) for name in unpaired)],
        metrics_of,
        n_resamples=num_resamples,
        batch=max(1, VALUES_AT_A_TIME // (len(inside) + max(map(len, odd.values())))),
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
