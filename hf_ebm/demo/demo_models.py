"""The model behind the demo: a generation pipeline and the scoring pipeline on the same networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_ebm.hub.model_card import SETTINGS, SUMMARY, public_name, read_json, read_settings
from hf_ebm.pipelines.loading import load_pipeline, model_folder
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline
from hf_ebm.scoring.calibration import FILE_NAME, REFERENCE_FILE, Calibration
from hf_ebm.utils.torch_utils import find_device


@dataclass(frozen=True)
class DemoModel:
    """A model of images."""

    name: str  # its Hub id or its folder's name
    pipeline: Any  # a generation pipeline, with an energy
    scorer: EnergyScoringPipeline  # on the same networks, calibrated if the repository has a ``calibration.json``
    subject: str = "many images"  # a description of the training data

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, S, S)."""
        return self.pipeline.sample_shape


def load_demo_model(model: str, device: str | None = None) -> DemoModel:
    """The model in a run folder or a Hub repository."""
    where = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline = load_pipeline(model)
    shape = pipeline.sample_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(f"--model {model} has samples of shape {shape}; the demo shows square gray or RGB images.")
    for needed in ("energy_model", "scheduler"):
        if getattr(pipeline, needed) is None:
            raise ValueError(f"--model {model} has no {needed}, which the demo uses; push the model with it.")
    pipeline.to(where)
    folder = model_folder(model, (), extra_files=(SETTINGS, SUMMARY, FILE_NAME, REFERENCE_FILE))
    scorer = EnergyScoringPipeline.from_pipe(pipeline)
    scorer.calibration = Calibration.load(folder)
    for one in (pipeline, scorer):
        one.set_progress_bar_config(disable=True)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return DemoModel(name, pipeline, scorer, find_subject(folder))


def find_subject(folder: Path) -> str:
    """Describe the training data of a model by the settings and the summary in its folder."""
    dataset, number = read_settings(folder).get("dataset"), read_json(folder / SUMMARY).get("num_images")
    if not dataset or not number:
        return "many images"
    words = "small handwritten digits, light on black" if dataset == "digits" else "images of the data set"
    return f"{number:,} {words} (`{public_name(dataset)}`)"
