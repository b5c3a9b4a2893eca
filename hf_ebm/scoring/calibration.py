"""Calibration of OOD scores: p-values and thresholds from the scores of held-out in-distribution data.

    p(score) = (1 + #{calibration scores >= score}) / (n + 1)          is_ood: p <= target_fpr

This is split conformal prediction (Vovk et al. 2005; Bates et al. 2023 for outlier detection). If
the n calibration samples and a new in-distribution sample are exchangeable and scores have no ties,

    P(p <= a) = floor(a (n + 1)) / (n + 1),        with ties at most that,

where the probability is over the calibration set as well as the new sample. For one given calibration set the false
positive rate varies around it, with a standard deviation of about sqrt(a (1 - a) / n).

The formula needs a score function that does not depend on the calibration samples. Scores with fitted statistics
therefore split the held-out samples: a random half fits the statistics, the other half calibrates. All other scores
calibrate on all of them. The density scores compare with reference samples: with given ones, such as training images,
they calibrate on all held-out samples, else on the second half, and the first half is their reference. So do those with
an image encoder, and what `density_encoder` is standardised by are distances within the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hf_ebm.scoring.maps import PixelMoments
from hf_ebm.scoring.scores import FEATURES, FULL, OPTIONAL, SCORE_WORDS, SCORES, Fitted, Moments, Score
from hf_ebm.scoring.statistics import check_not_nan
from hf_ebm.utils.files import expand_home, whole_file
from hf_ebm.utils.validation import check_count, check_fraction, check_seed, is_integer, is_number

logger = logging.getLogger(__name__)
FILE_NAME = "calibration.json"
REFERENCE_FILE = "calibration.safetensors"
# 1, without a version in the file: statistics of the calibration samples themselves; 2: no density; 3: density_full of
# other statistics
FORMAT_VERSION = 4
TENSORS = ("density_reference", "pixel_moments")  # fields that are saved as tensors
MAP_PREFIX = "maps."  # of the names of the latter
MAX_DENSITY_REFERENCE = 2000  # samples
MAX_BANK = 10_000  # features of an image encoder: 15 MB of 768 numbers each
MAX_REFERENCE = 1000  # order statistics that are kept per score, or 10 / target_fpr where that is more


def how_to_calibrate(model: str = "FOLDER") -> str:
    """Return the commands that calibrate a model, for messages."""
    return f"hf-ebm calibrate --model {model} --dataset NAME, or pipe.calibrate(held_out) from Python"


@dataclass(frozen=True)
class Calibration:
    """The result of `EnergyScoringPipeline.calibrate` on held-out in-distribution data.

    Attributes:
        target_fpr: False positive rate: the share of in-distribution samples to flag as OOD, in (0, 1).
        num_samples: Held-out samples.
        seed: Seed of the noise in the statistics, and of the split.
        statistics: Mean and standard deviation of each statistic, and for `density_encoder` of the scores that it sums.
        reference: Sorted calibration scores of each score, at most `MAX_REFERENCE` or 10 / target_fpr of them.
        preprocessing: A description of the preprocessing.
        trained_on: Whether the model was trained on some of the samples, which it should not be; None = not known.
        dataset: Where the samples are from, such as ``"digits, split test"``; None = not known.
        num_fitted: Samples that fitted the statistics and calibrated none of the scores that use them. 0 in files of
            earlier versions, where all samples did both, so that the rate of these scores is approximate.
        density_reference: Statistics of the reference samples of the density scores, at most `MAX_DENSITY_REFERENCE`
            of them, and the features of at most `MAX_BANK`, float16; saved as ``calibration.safetensors``.
        pixel_moments: What standardises each kind of heat maps, by its name; saved there too. Files of earlier versions
            have none.
        has_own_reference: Whether these are other samples than the held-out ones, such as training images.
        reference_dataset: Where they are from, as `dataset`.
        reference_hash: SHA-256 of the saved file; None = there is none.
        encoder: The image encoder, as `hf_ebm.scoring.encoder.ImageEncoder.describe` gives it; None = there was none.
    """

    target_fpr: float
    num_samples: int
    seed: int
    statistics: Mapping[str, Moments]
    reference: Mapping[str, list[float]] = field(default_factory=dict, repr=False)
    preprocessing: str = ""
    trained_on: bool | None = None
    dataset: str | None = None
    num_fitted: int = 0
    density_reference: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    pixel_moments: Mapping[str, PixelMoments] = field(default_factory=dict, repr=False, compare=False)
    has_own_reference: bool = False
    reference_dataset: str | None = None
    reference_hash: str | None = field(default=None, compare=False)
    encoder: Mapping[str, str | None] | None = None

    @classmethod
    def fit(
        cls,
        statistics: Mapping[str, Tensor],
        target_fpr: float,
        seed: int = 0,
        preprocessing: str = "",
        reference: Mapping[str, Tensor] | None = None,
    ) -> Calibration:
        """Fit mean and standard deviation of the statistics, and calibrate every score that they allow.

        Scores with fitted statistics are left out with a warning if half of the samples are too few for `target_fpr`,
        or a statistic such as the compressed size is the same for all samples.

        Args:
            statistics: Statistics of N held-out in-distribution samples, by name, each of shape (N,) or (N, T).
            target_fpr: False positive rate, in (0, 1).
            seed: Seed of the split, and of the noise in the statistics.
            preprocessing: A description of the preprocessing.
            reference: Statistics of other in-distribution samples, with which the density scores compare; None = the
                half of the samples that fits the other statistics.

        Raises:
            ValueError: If there are too few samples for `target_fpr`, or a score is not finite.
        """
        check_fraction("target_fpr", target_fpr)
        target_fpr, seed = float(target_fpr), check_seed("seed", seed)
        number, needed = len(next(iter(statistics.values()))), needed_scores(target_fpr)
        if number < needed:
            raise ValueError(
                f"calibration needs at least {needed} in-distribution samples for target_fpr={target_fpr:g}, and "
                f"{needed_samples(target_fpr)} for the scores with fitted statistics, got {number}; give more, or a "
                "larger target_fpr (--target-fpr)."
            )
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        fitting, calibrating = order[: number // 2], order[number // 2 :]
        density_reference = draw_reference(statistics, fitting if reference is None else None, reference, seed)
        density = Fitted(reference=density_reference)
        possible = {name: score for name, score in SCORES.items() if is_possible(score, statistics)}
        of_distances: dict[str, Moments] = {}
        for name, score in list(possible.items()):
            if score.uses_reference:
                try:
                    if reference is None and number < needed_samples(target_fpr):
                        raise ValueError(f"half of the {number} samples are its reference; give reference=.")
                    if not score.needs_encoder:
                        density.neighbours(score.statistics)
                    elif name == "density_encoder":
                        of_distances = density.distance_moments()
                    else:
                        _ = density.bank
                except ValueError as error:
                    logger.warning("score %r is left out: %s", name, error)
                    del possible[name]
            if not score.needs_fitting or score.uses_reference:
                continue
            half = {m: statistics[m][fitting] for m in score.statistics if m != "energy"}
            flat = [m for m, values in half.items() if bool((values == values[:1]).all())]
            if number < needed_samples(target_fpr):
                logger.warning(
                    "score %r is left out: half of the samples fit its statistics, so it needs %s for target_fpr=%g, "
                    "got %s.",
                    *(name, needed_samples(target_fpr), target_fpr, number),
                )
                del possible[name]
            elif flat:
                logger.warning(
                    "score %r is left out: the %s samples that fit its statistics all have the same %s.",
                    *(name, len(fitting), flat[0]),
                )
                del possible[name]
        standardised = {
            name
            for score in possible.values()
            if score.needs_fitting and not score.uses_reference
            for name in score.statistics
        }
        moments = {name: Moments.of(statistics[name][fitting], name) for name in sorted(standardised)}
        has_density = any(score.uses_reference for score in possible.values())
        moments |= of_distances
        fitted = dataclasses.replace(density, moments=moments)
        if "encoder" not in possible:
            density_reference.pop(FEATURES, None)
        has_own = reference is not None
        ordered = {}
        for name, score in possible.items():
            rows = calibrating if score.needs_fitting and not (score.uses_reference and has_own) else slice(None)
            scores = score.function({m: statistics[m][rows] for m in score.statistics if m in statistics}, fitted)
            ordered[name] = order_statistics(name, scores, target_fpr)
        return cls(
            target_fpr,
            number,
            seed,
            moments,
            ordered,
            preprocessing,
            num_fitted=len(fitting) if standardised or (has_density and not has_own) else 0,
            density_reference=density_reference if has_density else {},
            has_own_reference=has_own and has_density,
        )

    @functools.cached_property
    def fitted(self) -> Fitted:
        """What the scores know of in-distribution data."""
        return Fitted(self.statistics, self.density_reference)

    @property
    def default_score(self) -> str:
        """``density``, or ``energy`` where that was not calibrated."""
        return "density" if "density" in self.reference else "energy"

    def num_calibrated(self, score: str) -> int:
        """Number n of samples whose scores are the calibration scores of `score`."""
        on_all = not SCORES[score].needs_fitting or (SCORES[score].uses_reference and self.has_own_reference)
        return self.num_samples - (0 if on_all else self.num_fitted)

    def scores_with_statistics(self) -> list[str]:
        """Names of the calibrated scores that use `statistics`."""
        return [name for name in self.reference if SCORES[name].needs_fitting]

    def expected_fpr(self, score: str) -> float:
        """``P(p <= target_fpr)`` of an in-distribution sample, on average over calibration sets."""
        number = len(self.reference[score])
        return math.floor(self.target_fpr * (number + 1) + 1e-9) / (number + 1)

    def p_values(self, score: str, scores: Tensor) -> Tensor:
        """Conformal p-values of scores, shape (N,), float64, in (0, 1]; small = out of distribution.

        Raises:
            ValueError: If the calibration lacks the score, or a score is NaN.
        """
        reference = self._reference_of(score)
        check_not_nan(f"score {score!r}", scores)
        at_least = len(reference) - torch.searchsorted(reference, scores.double(), side="left")
        return (1.0 + at_least.double()) / (len(reference) + 1.0)

    def threshold(self, score: str) -> float:
        """The threshold: scores above it are flagged as OOD at ``target_fpr``.

        Raises:
            ValueError: If the calibration lacks the score.
        """
        reference = self._reference_of(score)
        return float(reference[self.p_values(score, reference) > self.target_fpr].max())

    def check_has(self, score: str) -> None:
        """Raise a `ValueError` if the score was not calibrated."""
        if score not in self.reference:
            few = SCORES[score].needs_fitting if score in SCORES else False
            few = few and self.num_samples < needed_samples(self.target_fpr)
            if score == "density_full" and "reconstruction_error" in self.density_reference:
                how = "an earlier version of hf-ebm calibrated it by other statistics; calibrate again"
            elif few:
                needed = needed_samples(self.target_fpr)
                how = (
                    f"it needs at least {needed} samples for target_fpr={self.target_fpr:g}, half of which fit its "
                    f"statistics, and {self.num_samples} were given; calibrate again with more"
                )
            else:
                needs_encoder = score in SCORES and SCORES[score].needs_encoder
                what = (
                    "image_encoder= (--encoder)" if needs_encoder else "a pipeline loaded with load_reconstruction=True"
                )
                how = f"calibrate again, with what that score needs, {what}"
            raise ValueError(
                f"score {score!r} was not calibrated, only {sorted(self.reference)}; {how}: {how_to_calibrate()}."
            )

    def _reference_of(self, score: str) -> Tensor:
        self.check_has(score)
        return torch.tensor(self.reference[score], dtype=torch.float64)

    def describe_scores(self) -> dict[str, dict[str, Any]]:
        """What a model card shows of each calibrated score; the file keeps it, and loading computes it anew."""
        return {
            name: {
                "description": SCORE_WORDS[name],
                "threshold": self.threshold(name),
                "num_calibrated": self.num_calibrated(name),
                "expected_fpr": self.expected_fpr(name),
                "needs_statistics": SCORES[name].needs_fitting,
            }
            for name in self.reference
        }

    def save(self, folder: str | Path) -> None:
        """Write ``calibration.json``, and ``calibration.safetensors`` with what the density scores and maps need."""
        folder = Path(expand_home(folder))
        if self._tensors:
            with whole_file(folder / REFERENCE_FILE) as temporary:
                temporary.write_bytes(self._reference_bytes)
        with whole_file(folder / FILE_NAME) as temporary:
            text = json.dumps({"format_version": FORMAT_VERSION, **self.to_dict(), "scores": self.describe_scores()})
            temporary.write_text(text, encoding="utf-8")
        if not self._tensors:
            (folder / REFERENCE_FILE).unlink(missing_ok=True)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        maps = {
            f"{MAP_PREFIX}{kind}.{name}": values
            for kind, moments in self.pixel_moments.items()
            for name, values in (("mean", moments.mean), ("std", moments.std))
        }
        return {**self.density_reference, **maps}

    @functools.cached_property
    def _reference_bytes(self) -> bytes:
        return safetensors.torch.save({name: values.contiguous() for name, values in self._tensors.items()})

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds: of the tensors only the hash."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in TENSORS}
        values["statistics"] = {name: asdict(moments) for name, moments in self.statistics.items()}
        digest = hashlib.sha256(self._reference_bytes).hexdigest() if self._tensors else None
        return {**values, "reference_hash": digest}

    @classmethod
    def load(cls, folder: str | Path) -> Calibration | None:
        """The calibration in a folder, or None where there is none.

        Raises:
            ValueError: If its ``calibration.json`` is damaged or of a newer version.
        """
        path = Path(expand_home(folder)) / FILE_NAME
        if not path.is_file():
            return None
        try:
            loaded = cls.from_json(path.read_text(encoding="utf-8"))
            if loaded.reference_hash is None:
                return loaded
            density_reference, pixel_moments = split_tensors(read_reference(path.parent, loaded.reference_hash))
            return dataclasses.replace(loaded, density_reference=density_reference, pixel_moments=pixel_moments)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be used: {error} Calibrate again ({how_to_calibrate()}), or delete it for scores "
                "without p-values."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The calibration in the text of a ``calibration.json``.

        Raises:
            ValueError: If the text is not one, says what is wrong with it.
        """
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(f"it must hold a JSON object, got {type(values).__name__}.")
        version = values.pop("format_version", 1)
        if version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"it has format_version {version!r}, and this version of hf-ebm reads 1 to {FORMAT_VERSION}; update "
                "hf-ebm."
            )
        values.pop("scores", None)
        if version < 4 and isinstance(values.get("reference"), dict):
            values["reference"].pop("density_full", None)  # by one reconstruction error
        known = [item.name for item in fields(cls) if item.name not in TENSORS]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"it has unknown keys {unknown}; known are {known}.")
        required = ("target_fpr", "num_samples", "seed", "statistics", "reference")
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"it lacks the keys {missing}.")
        check_fraction("target_fpr", values["target_fpr"])
        check_count("num_samples", values["num_samples"], 1)
        check_count("num_fitted", values.get("num_fitted", 0), 0)
        if not is_integer(values["seed"]):
            raise ValueError(f"seed must be a whole number, got {values['seed']!r}.")
        encoder = values.get("encoder")
        if encoder is not None and not (
            isinstance(encoder, dict) and {*encoder} == {"name", "id", "revision", "sha256"}
        ):
            raise ValueError(f"encoder must be null or have the keys name, id, revision and sha256, got {encoder!r}.")
        if values.get("trained_on") not in (True, False, None):
            raise ValueError(f"trained_on must be true, false or null, got {values['trained_on']!r}.")
        if unknown_scores := sorted(set(values["reference"]) - set(SCORES)):
            raise ValueError(f"reference has unknown scores {unknown_scores}; known are {list(SCORES)}.")
        for name in ("statistics", "reference"):
            if not isinstance(values[name], dict):
                raise ValueError(f"{name} must be an object, got {values[name]!r}.")
        for name, score in values["reference"].items():
            good = isinstance(score, list) and score and all(is_number(value) for value in score)
            if not good or score != sorted(score) or not all(map(math.isfinite, score)):
                raise ValueError(f"reference of {name!r} must be a sorted list of finite numbers.")
        for name, found in values["statistics"].items():
            if not isinstance(found, dict) or set(found) != {"mean", "std"}:
                raise ValueError(f"statistics of {name!r} must have the keys mean and std, got {found!r}.")
            for key, numbers in found.items():
                if not isinstance(numbers, list) or not all(is_number(x) and math.isfinite(x) for x in numbers):
                    raise ValueError(f"{key} of {name!r} must be a list of finite numbers, got {numbers!r}.")
        values["statistics"] = {name: Moments(**found) for name, found in values["statistics"].items()}
        return cls(**values)


def is_possible(score: Score, statistics: Collection[str]) -> bool:
    """Whether a score can be computed from these statistics."""
    optional = {*OPTIONAL} if score.uses_reference else set()
    return {*score.statistics} - optional <= {*statistics}


def draw_reference(
    statistics: Mapping[str, Tensor], rows: Tensor | None, reference: Mapping[str, Tensor] | None, seed: int
) -> dict[str, Tensor]:
    """Statistics of the density scores' reference: `rows` of the held-out samples, or those of other samples.

    At most `MAX_DENSITY_REFERENCE`, and of an encoder's features `MAX_BANK`, selected with the seed.
    """
    names = [name for name in (*FULL, FEATURES) if name in statistics]
    if reference is not None and (missing := [name for name in names if name not in reference]):
        raise ValueError(f"reference must have the statistics {names}, got {sorted(reference)} without {missing}.")
    given = statistics if reference is None else reference
    found = {name: given[name] if rows is None else given[name][rows] for name in names}
    for name, values in found.items():
        limit = MAX_BANK if name == FEATURES else MAX_DENSITY_REFERENCE
        if len(values) > limit:
            found[name] = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:limit]]
    if FEATURES in found:
        found[FEATURES] = found[FEATURES].half()
    return found


def read_reference(folder: Path, expected_hash: str) -> dict[str, Tensor]:
    """The tensors beside a ``calibration.json``.

    Raises:
        ValueError: If it is missing, damaged, or of another calibration.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        raise ValueError(f"the file {REFERENCE_FILE} beside it is missing.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected_hash:
        raise ValueError(f"the file {REFERENCE_FILE} beside it is damaged or of another calibration.")
    return safetensors.torch.load(content)


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, PixelMoments]]:
    """The reference of the density scores, and what standardises each kind of heat maps, from the file's tensors."""
    of_maps = {name.removeprefix(MAP_PREFIX): values for name, values in tensors.items() if name.startswith(MAP_PREFIX)}
    kinds = sorted({name.rpartition(".")[0] for name in of_maps})
    moments = {kind: PixelMoments(of_maps[f"{kind}.mean"], of_maps[f"{kind}.std"]) for kind in kinds}
    return {name: values for name, values in tensors.items() if not name.startswith(MAP_PREFIX)}, moments


def needed_scores(target_fpr: float) -> int:
    """The fewest calibration scores with which a p-value can be as small as `target_fpr`."""
    return max(math.ceil(1.0 / target_fpr - 1e-9) - 1, 2)


def needed_samples(target_fpr: float) -> int:
    """The fewest held-out samples for a score with fitted statistics: half of them calibrate, at least 2 fit."""
    return max(2 * needed_scores(target_fpr) - 1, 4)


def order_statistics(name: str, scores: Tensor, target_fpr: float) -> list[float]:
    """The calibration scores of the score `name` in ascending order, or evenly spaced ones of very many.

    Of n scores m are kept, the k-th of them the one with rank ``ceil(k (n + 1) / (m + 1))``. So the false positive rate
    at ``a`` lies at most ``1 / (n + 1)`` under ``floor(a (m + 1)) / (m + 1)``.

    Raises:
        ValueError: If a score is not finite.
    """
    ordered = scores.sort().values
    number, kept = len(ordered), max(MAX_REFERENCE, math.ceil(10.0 / target_fpr))
    if bad := int((~ordered.isfinite()).sum()):
        raise ValueError(
            f"score {name!r} is not finite for {bad} of the {number} calibration samples; leave these samples out, or "
            "check the model's weights for values that are not finite."
        )
    if number > kept:
        ranks = -(-torch.arange(1, kept + 1) * (number + 1) // (kept + 1))  # rounded up
        ordered = ordered[ranks - 1]
    return [float(value) for value in ordered]
