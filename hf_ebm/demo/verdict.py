"""Compare an image with the training data: its score among the scores of held-out images, and a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringOutput
from hf_ebm.scoring.calibration import Calibration

NUM_OWN_SAMPLES = 32  # for comparison without a calibration
REFERENCE_NAMES = {  # by `Calibration.trained_on`
    False: "held-out images, not used in training",
    None: "in-distribution images",
    True: "images, some of them used in training",
}
CALIBRATED_ON = {
    False: "images that were not used in its training",
    None: "images",
    True: "images, some of which were used in its training, so it flags more images than that",
}


@dataclass(frozen=True)
class Reference:
    """Scores to compare with."""

    scores: Tensor  # sorted, shape (N,)
    name: str  # a description of the images they come from
    threshold: float | None  # larger scores are flagged as OOD; None without a calibration


def available_scores(model: DemoModel) -> list[str]:
    """List the calibrated scores; without a calibration, only the energy."""
    calibration = model.scorer.calibration
    if calibration is None:
        return ["energy"]
    return [name for name in model.scorer.available_scores if name in calibration.reference]


def references(model: DemoModel, own_samples: Tensor) -> dict[str, Reference]:
    """Return the reference of each available score: the calibration's scores, or energies of the model's samples."""
    calibration = model.scorer.calibration
    if calibration is None:
        energies = model.pipeline.score(own_samples).energies.cpu().double().sort().values
        return {"energy": Reference(energies, "samples of the model", None)}
    return {
        name: Reference(
            torch.tensor(calibration.reference[name], dtype=torch.float64),
            REFERENCE_NAMES[calibration.trained_on],
            calibration.threshold(name),
        )
        for name in available_scores(model)
    }


def judge(model: DemoModel, x: Tensor, score: Any) -> tuple[EnergyScoringOutput, str]:
    """Score one image in [0, 1], shape (1, C, S, S); the second is a description of the result, Markdown.

    The result has a heat map where the model is calibrated with one.
    """
    if score not in available_scores(model):
        raise ValueError(f"The score must be one of {available_scores(model)}, got {score!r}.")
    result: Any = model.scorer(x, score=score, output_maps=bool(model.scorer.calibrated_maps))
    energy = float(result.energies[0])
    calibration = model.scorer.calibration
    if calibration is None:
        text = (
            f"### No verdict: this model was not calibrated\n\nIts energy is **{energy:#.4g}** (low = likely), shown "
            "beside the energies of the model's own samples. To detect out-of-distribution images, the model must be "
            "calibrated on held-out images (`hf-ebm calibrate`), pushed again if it is on the Hub, and this page "
            "restarted."
        )
        return result, text
    p_value, is_ood = float(result.p_values[0]), bool(result.is_ood[0])
    return result, verdict_text(energy, p_value, is_ood, calibration, score)


def verdict_text(energy: float, p_value: float, is_ood: bool, calibration: Calibration, score: str) -> str:
    """Describe the result of a calibrated model, Markdown."""
    number = len(calibration.reference[score])
    num_at_least = round(p_value * (number + 1)) - 1
    share = "none" if num_at_least == 0 else f"{num_at_least} ({num_at_least / number:.1%})"
    num_calibrated = calibration.num_calibrated(score)
    kept = "" if number == num_calibrated else f"; {number} of their scores are kept"
    head = "Out-of-distribution: unlike the training data" if is_ood else "In-distribution: like the training data"
    if score != "energy":
        head += f", by {score.replace('_', ' ')}"
    return (
        f"### {head}\n\nOf {number} in-distribution images, with at least this score: **{share}** (p-value "
        f"{p_value:.3g}). Its energy is **{energy:#.4g}** (low = likely).\n\nThe threshold is set so that about "
        f"{calibration.target_fpr:.0%} of images like the training data are flagged, too. The model was calibrated on "
        f"{num_calibrated} {CALIBRATED_ON[calibration.trained_on]}{kept}."
    )
