"""``transformers.pipeline("ood-detection", model=...)``: energies of images without any of our pipelines.

from transformers import pipeline
import hf_ebm.pipelines.ood_detection                     # registers the task

detect = pipeline("ood-detection", model="outputs/ddaebm-digits/energy_model")
detect("digit.png")                                       # {"energy": ...}, low = likely

With ``calibration=FOLDER`` it gives the same scores and p-values as `EnergyScoringPipeline`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_ebm.data.loading import column_images, is_column
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.scoring.scores import FEATURES, SCORES
from hf_ebm.scoring.statistics import RECONSTRUCTIONS, check_not_nan, make_statistics_function

TASK = "ood-detection"


class OODDetectionPipeline(Pipeline):
    """Energies of images (PIL images, paths or URLs), and with ``calibration=`` their scores, p-values and decisions.

    ``calibration`` is a `Calibration`, or the folder that `EnergyScoringPipeline.save_pretrained` wrote. ``score`` is
    one that needs the energy only; the default is ``density`` with a calibration that has it, else ``energy``.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' pipelines; a tuple or a `datasets` column, ``dataset["image"]``, counts as a list."""
        if is_column(inputs):
            inputs = column_images(inputs)
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, *args, **kwargs)

    def _sanitize_parameters(
        self, calibration: Any = None, score: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise ValueError(f"{TASK} takes no argument {sorted(kwargs)}; it knows calibration=... and score=...")
        if isinstance(calibration, str | Path):
            folder, calibration = calibration, Calibration.load(calibration)
            if calibration is None:
                raise ValueError(f"calibration: {folder} holds no calibration.json; make one with pipe.calibrate(...).")
        if score is None and calibration is not None:
            score = calibration.default_score
        if score not in (None, "energy"):
            if score not in SCORES or calibration is None:
                raise ValueError(f"score must be one of {list(SCORES)}, with calibration=..., got {score!r}.")
            calibration.check_has(score)
            if impossible := {*SCORES[score].statistics} & {"energies", FEATURES, *RECONSTRUCTIONS}:
                raise ValueError(
                    f"score {score!r} cannot be computed from the energy alone, it needs {sorted(impossible)}; use "
                    "EnergyScoringPipeline."
                )
        options = {name: value for name, value in (("calibration", calibration), ("score", score)) if value is not None}
        return {}, options, options

    def preprocess(self, image: Any) -> Any:
        """An image, as `hf_ebm.data.image_files.open_image` takes it, as ``pixel_values``, shape (1, C, S, S)."""
        return self.image_processor(image, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: Any, calibration: Calibration | None = None, score: str = "energy") -> Any:
        names = {"energy", *SCORES[score].statistics}
        x = model_inputs["pixel_values"]
        compute = make_statistics_function(self.model, names, 0 if calibration is None else calibration.seed)
        return compute(x)

    def postprocess(
        self, model_outputs: Any, calibration: Calibration | None = None, score: str = "energy"
    ) -> dict[str, Any]:
        """``{"energy": E}``, and with a calibration also ``score``, ``p_value`` and ``is_ood``."""
        statistics = {name: values.cpu() for name, values in model_outputs.items()}
        for name, values in statistics.items():
            check_not_nan(name, values)
        result: dict[str, Any] = {"energy": statistics["energy"].item()}
        if calibration is not None:
            value = SCORES[score].function(statistics, calibration.fitted)
            p_value = calibration.p_values(score, value).item()
            result |= {"score": value.item(), "p_value": p_value, "is_ood": p_value <= calibration.target_fpr}
        return result


PIPELINE_REGISTRY.register_pipeline(TASK, OODDetectionPipeline, pt_model=AutoModel, type="image")
del OODDetectionPipeline._registered_impl  # with it the pipeline's save_pretrained would fail
