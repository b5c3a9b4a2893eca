"""``transformers.pipeline("ood-detection", model=...)``: energies of images without any of our pipelines.

from transformers import pipeline
import hf_ebm.pipelines.ood_detection                     # registers the task

detect = pipeline("ood-detection", model="outputs/ddaebm-digits/energy_model")
detect("digit.png")                                       # {"energy": ...}, low = likely
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_ebm.data.loading import column_images, is_column
from hf_ebm.models.eval_copy import in_eval
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.scoring.statistics import check_not_nan

TASK = "ood-detection"


class OODDetectionPipeline(Pipeline):
    """Energies of images (PIL images, paths or URLs), and with ``calibration=`` their p-values and decisions.

    ``calibration`` is a `Calibration`, or the folder that `EnergyScoringPipeline.save_pretrained` wrote.
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
        self, calibration: Any = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise ValueError(f"{TASK} takes no argument {sorted(kwargs)}; it knows calibration=...")
        if isinstance(calibration, str | Path):
            folder, calibration = calibration, Calibration.load(calibration)
            if calibration is None:
                raise ValueError(f"calibration: {folder} holds no calibration.json; make one with pipe.calibrate(...).")
        return {}, {}, {} if calibration is None else {"calibration": calibration}

    def preprocess(self, image: Any) -> Any:
        """An image, as `hf_ebm.data.image_files.open_image` takes it, as ``pixel_values``, shape (1, C, S, S)."""
        return self.image_processor(image, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: Any) -> Any:
        with torch.no_grad():
            return in_eval(self.model)(**model_inputs)

    def postprocess(self, model_outputs: Any, calibration: Calibration | None = None) -> dict[str, Any]:
        """``{"energy": E}``, and with a calibration also ``p_value`` and ``is_ood``."""
        energy = model_outputs.energy.float().cpu()
        check_not_nan("energy", energy)
        result: dict[str, Any] = {"energy": energy.item()}
        if calibration is not None:
            p_value = calibration.p_values("energy", energy).item()
            result |= {"p_value": p_value, "is_ood": p_value <= calibration.target_fpr}
        return result


PIPELINE_REGISTRY.register_pipeline(TASK, OODDetectionPipeline, pt_model=AutoModel, type="image")
del OODDetectionPipeline._registered_impl  # with it the pipeline's save_pretrained would fail
