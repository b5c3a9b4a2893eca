"""Is a picture like those the model learned from? A score, its place among held-out pictures, and that in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.scoring.calibration import Calibration

NUM_OWN_SAMPLES = 32  # drawn for comparison where there is no calibration
REFERENCE_NAMES = {  # by `Calibration.trained_on`
    False: "ordinary pictures, kept out of training",
    None: "ordinary pictures",
    True: "pictures, some of them trained on",
}
CALIBRATED_ON = {
    False: "pictures that were kept out of its training",
    None: "pictures",
    True: "pictures, some of which it was trained on: it calls more ordinary pictures odd than that",
}


@dataclass(frozen=True)
class Reference:
    """What scores are compared with.

    Attributes:
        scores: Sorted, shape (N,).
        name: What they are the scores of, in words.
        threshold: Larger scores are called odd; None without a calibration.
    """

    scores: Tensor
    name: str
    threshold: float | None


@dataclass(frozen=True)
class Verdict:
    """Of one picture.

    Attributes:
        energy: ``E(x, 0)``, low = likely.
        score: The chosen score, larger = odder.
        p_value: Share of ordinary pictures at least as odd; None without a calibration.
        is_ood: Whether it is called odd; None without a calibration.
        text: All that in words, Markdown.
    """

    energy: float
    score: float
    p_value: float | None
    is_ood: bool | None
    text: str


def available_scores(model: DemoModel) -> list[str]:
    """The scores that can be had here; without a calibration, the energy alone."""
    calibration = model.scorer.calibration
    if calibration is None:
        return ["energy"]
    return [name for name in model.scorer.available_scores if name in calibration.reference]


def references(model: DemoModel, own_samples: Tensor) -> dict[str, Reference]:
    """What each available score is compared with: the calibration's, or the energies of the model's own samples.

    Args:
        model: The demo's.
        own_samples: Drawn by it, in [-1, 1], shape (N, C, S, S).
    """
    calibration = model.scorer.calibration
    if calibration is None:
        energies = model.pipeline.score(own_samples).energies.cpu().double().sort().values
        return {"energy": Reference(energies, "pictures that the model drew itself", None)}
    return {
        name: Reference(
            torch.tensor(calibration.reference[name], dtype=torch.float64),
            REFERENCE_NAMES[calibration.trained_on],
            calibration.threshold(name),
        )
        for name in available_scores(model)
    }


def judge(model: DemoModel, x: Tensor, score: Any) -> Verdict:
    """The verdict on one picture in [-1, 1], shape (1, C, S, S).

    Raises:
        ValueError: If the score cannot be had here.
    """
    if score not in available_scores(model):
        raise ValueError(f"The score must be one of {available_scores(model)}, got {score!r}.")
    result: Any = model.scorer(x, score=score)
    energy, value = float(result.energies[0]), float(result.scores[0])
    calibration = model.scorer.calibration
    if calibration is None:
        text = (
            f"### No verdict: this model was not calibrated\n\nIts energy is **{energy:#.4g}** (low = likely), shown "
            "beside the energies of pictures that the model drew itself. To say what is odd, its owner must calibrate "
            "it on pictures that were kept out of its training (`hf-ebm calibrate`), push it again if it is on the "
            "Hub, and start this page again."
        )
        return Verdict(energy, value, None, None, text)
    p_value, is_ood = float(result.p_values[0]), bool(result.is_ood[0])
    return Verdict(energy, value, p_value, is_ood, verdict_text(energy, p_value, is_ood, calibration, score))


def verdict_text(energy: float, p_value: float, is_ood: bool, calibration: Calibration, score: str) -> str:
    """A calibrated verdict in words, Markdown."""
    number = len(calibration.reference[score])
    at_least_as_odd = round(p_value * (number + 1)) - 1
    share = "none" if at_least_as_odd == 0 else f"{at_least_as_odd} ({at_least_as_odd / number:.1%})"
    num_calibrated = calibration.num_calibrated(score)
    kept = "" if number == num_calibrated else f"; {number} of their scores stand for all"
    head = "Odd: unlike the pictures it learned from" if is_ood else "Ordinary: like the pictures it learned from"
    if score != "energy":
        head += f", by {score.replace('_', ' ')}"
    return (
        f"### {head}\n\nAt least as odd as this one, of {number} ordinary pictures: **{share}** (p-value "
        f"{p_value:.3g}). Its energy is **{energy:#.4g}** (low = likely).\n\nWhat is among the oddest "
        f"{calibration.target_fpr:.0%} is called odd: so about {calibration.target_fpr:.0%} of ordinary pictures are, "
        f"too. The model was calibrated on {num_calibrated} {CALIBRATED_ON[calibration.trained_on]}{kept}."
    )
