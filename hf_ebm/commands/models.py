"""What the commands share: finding and loading whatever pipeline a folder or a Hub repository holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def model_folder(model: str) -> Path:
    """The folder of a run, or of a Hub repository's files in the cache.

    Raises:
        ValueError: If it holds no pipeline.
    """
    from hf_ebm.pipelines.pipeline_base import EBMPipeline

    folder = Path(model) if Path(model).is_dir() else Path(EBMPipeline.download(model))
    if not (folder / EBMPipeline.config_name).is_file():
        raise ValueError(
            f"--model {model} holds no {EBMPipeline.config_name}: give a run folder whose training has ended."
        )
    return folder


def load_pipeline(model: str) -> Any:
    """The pipeline in a run folder or Hub repository, whichever of ours it is."""
    import hf_ebm

    folder = model_folder(model)
    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    if name not in hf_ebm.__all__:
        raise ValueError(f"--model {model} holds a {name}, which is no pipeline of hf-ebm.")
    return getattr(hf_ebm, name).from_pretrained(folder)


def load_image_generator(model: str) -> Any:
    """The generation pipeline of images in a run folder or Hub repository, without progress bars.

    Raises:
        ValueError: If it holds an energy alone, or makes vectors.
    """
    from hf_ebm import EnergyScoringPipeline

    pipeline = load_pipeline(model)
    if isinstance(pipeline, EnergyScoringPipeline):
        raise ValueError(f"--model {model} holds an energy for scoring alone, which draws nothing; give another model.")
    if len(pipeline.sample_shape) != 3:
        raise ValueError(f"--model {model} makes vectors, not images; use it from Python.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_picture(path: Path) -> None:
    """Raise a `ValueError` if `path` is no name of a picture that can be written."""
    import PIL.Image

    if path.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--output must end in .png or another picture format, got {path.name!r}.")
