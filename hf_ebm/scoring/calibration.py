"""From scores to decisions: where a score lies among those of held-out in-distribution data.

    p(score) = (1 + #{calibration scores >= score}) / (n + 1)          is_ood: p <= target_fpr

If calibration and new data are exchangeable, the share of in-distribution samples that are called odd is at most
``target_fpr``, on average over calibration sets, whatever the score's distribution. Source: split conformal prediction,
Vovk et al. 2005; Bates et al. 2023 for outliers. Scores that need the data's statistics would know their own samples
and no others: each calibration score is computed with the statistics of the other samples (as in the jackknife+ of
Barber et al. 2021), and a little wider for it: with few samples the share is rather under ``target_fpr`` than over it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ebm.scoring.scores import SCORES, MeasureStatistics, OthersStatistics
from hf_ebm.user_paths import expand_home
from hf_ebm.whole_files import whole_file

logger = logging.getLogger(__name__)
FILE_NAME = "calibration.json"
MAX_REFERENCE = 1000  # order statistics that are kept per score, or 10 / target_fpr where that is more


def how_to_calibrate(model: str = "FOLDER") -> str:
    """What somebody may do whose model has no calibration, in words."""
    return f"hf-ebm calibrate --model {model} --dataset NAME, or pipe.calibrate(held_out) from Python"


@dataclass(frozen=True)
class Calibration:
    """What `EnergyScoringPipeline.calibrate` found on held-out in-distribution data.

    Attributes:
        target_fpr: Share of in-distribution samples that may be called odd, in (0, 1).
        num_samples: Samples it was made from.
        seed: Of the noise in the measures.
        statistics: Mean and standard deviation of each measure.
        reference: Sorted calibration scores of each score, at most `MAX_REFERENCE` or 10 / target_fpr of them.
        preprocessing: How the images were prepared, in words.
        trained_on: Whether the model was trained on some of the samples, which it should not be; None = not known.
        dataset: Where the samples are from, such as ``"digits, split test"``; None = not known.
    """

    target_fpr: float
    num_samples: int
    seed: int
    statistics: Mapping[str, MeasureStatistics]
    reference: Mapping[str, list[float]] = field(default_factory=dict, repr=False)
    preprocessing: str = ""
    trained_on: bool | None = None
    dataset: str | None = None

    @classmethod
    def fit(
        cls, measures: Mapping[str, Tensor], target_fpr: float, seed: int = 0, preprocessing: str = ""
    ) -> Calibration:
        """Statistics of the measures, and the reference of every score they allow.

        A score of a measure that is the same for all samples, such as the compressed size, is left out with a warning.

        Args:
            measures: Of held-out in-distribution samples, by name, each of shape (N,) or (N, T).
            target_fpr: In (0, 1).
            seed: Of the noise in the measures.
            preprocessing: How the images were prepared, in words.

        Raises:
            ValueError: If there are too few samples for `target_fpr`, or a score is not finite.
        """
        if not 0.0 < target_fpr < 1.0:
            raise ValueError(f"target_fpr must be between 0 and 1, got {target_fpr!r}.")
        number = len(next(iter(measures.values())))
        needed = math.ceil(1.0 / target_fpr - 1e-9) - 1
        if number < max(needed, 2):
            raise ValueError(
                f"calibration needs at least {max(needed, 2)} in-distribution samples for target_fpr={target_fpr}, got "
                f"{number}; give more, or a larger target_fpr (--target-fpr)."
            )
        possible = {name: score for name, score in SCORES.items() if set(score.measures) <= set(measures)}
        for name, score in list(possible.items()):
            flat = [m for m in score.measures if m != "energy" and bool((measures[m] == measures[m][:1]).all())]
            if score.needs_statistics and flat:
                logger.warning("score %r is left out: all %s samples have the same %s.", name, number, flat[0])
                del possible[name]
        standardised = {name for score in possible.values() if score.needs_statistics for name in score.measures}
        statistics = {name: MeasureStatistics.of(measures[name], name) for name in sorted(standardised)}
        others = {name: OthersStatistics(measures[name]) for name in standardised if number > 2}
        reference, kept = {}, max(MAX_REFERENCE, math.ceil(10.0 / target_fpr))
        for name, score in possible.items():
            ordered = score.function(measures, others or statistics).sort().values
            if not torch.isfinite(ordered).all():
                bad = int((~torch.isfinite(ordered)).sum())
                raise ValueError(
                    f"score {name!r} is not finite for {bad} of the {number} calibration samples; take those out, or "
                    "mend the model."
                )
            if number > kept:  # the k-th of m order statistics stands for the share k / (m + 1)
                ranks = -(-torch.arange(1, kept + 1) * (number + 1) // (kept + 1))  # rounded up
                ordered = ordered[ranks - 1]
            reference[name] = ordered.tolist()
        return cls(target_fpr, number, seed, statistics, reference, preprocessing)

    def p_values(self, score: str, scores: Tensor) -> Tensor:
        """Share of in-distribution data that is at least as odd, shape (N,), float64, in (0, 1].

        Raises:
            ValueError: If the calibration lacks the score.
        """
        reference = self._reference_of(score)
        at_least = len(reference) - torch.searchsorted(reference, scores.double(), side="left")
        return (1.0 + at_least.double()) / (len(reference) + 1.0)

    def threshold(self, score: str) -> float:
        """The largest reference score that is not called odd: larger ones are, at ``target_fpr``.

        Raises:
            ValueError: If the calibration lacks the score.
        """
        reference = self._reference_of(score)
        return float(reference[self.p_values(score, reference) > self.target_fpr].max())

    def check_has(self, score: str) -> None:
        """Raise a `ValueError` if the score was not calibrated."""
        if score not in self.reference:
            raise ValueError(
                f"score {score!r} was not calibrated, only {sorted(self.reference)}; calibrate again, with what that "
                f"score needs: {how_to_calibrate()}, of a pipeline loaded with load_reconstruction=True."
            )

    def _reference_of(self, score: str) -> Tensor:
        self.check_has(score)
        return torch.tensor(self.reference[score], dtype=torch.float64)

    def save(self, folder: str | Path) -> None:
        """Write ``calibration.json``, whole or not at all."""
        with whole_file(Path(expand_home(folder)) / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Calibration | None:
        """The calibration in a folder, or None where there is none."""
        path = Path(expand_home(folder)) / FILE_NAME
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["statistics"] = {name: MeasureStatistics(**value) for name, value in values["statistics"].items()}
        return cls(**values)
