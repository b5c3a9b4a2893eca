"""Load whichever pipeline a run folder or a Hub repository holds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def model_folder(model: str, names: Collection[str] | None = None, extra_files: Collection[str] = ()) -> Path:
    """The folder of a run, or of a Hub repository's files in the cache."""
    from hf_ebm.hub.download import INDEX, download_pipeline, no_pipeline

    folder = Path(model) if Path(model).is_dir() else download_pipeline(model, names, extra_files=extra_files)
    if not (folder / INDEX).is_file():
        raise ValueError(f"--model {no_pipeline(folder)}")
    return folder


def load_scorer(model: str | Path, **options: Any) -> Any:
    """`EnergyScoringPipeline.from_pretrained` for a command, without the libraries' progress bars."""
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.utils.logging import hide_library_bars

    hide_library_bars()
    return EnergyScoringPipeline.from_pretrained(model, **options)


def load_pipeline(model: str) -> Any:
    """The pipeline in a run folder or Hub repository, whichever of ours it is."""
    import hf_ebm
    from hf_ebm.hub.download import INDEX, read_index
    from hf_ebm.utils.logging import hide_library_bars

    name = read_index(model_folder(model, ()) / INDEX)["_class_name"]
    if name not in hf_ebm.__all__:
        raise ValueError(f"--model {model} holds a {name}, which is no pipeline of hf-ebm.")
    hide_library_bars()
    pipeline = getattr(hf_ebm, name).from_pretrained(model)
    if pipeline.image_processor is None:
        pipeline.image_processor = hf_ebm.EBMImageProcessor.for_model(pipeline.sample_shape)
    return pipeline


def load_image_generator(model: str) -> Any:
    """The generation pipeline of images in a run folder or Hub repository, without progress bars."""
    from hf_ebm import EnergyScoringPipeline

    pipeline = load_pipeline(model)
    if isinstance(pipeline, EnergyScoringPipeline):
        raise ValueError(f"--model {model} is an energy for scoring only, which cannot sample; use another model.")
    if len(pipeline.sample_shape) != 3:
        raise ValueError(
            f"--model {model} makes vectors, not images; use it from Python: "
            f"{type(pipeline).__name__}.from_pretrained({model!r})(batch_size=..., output_type='pt')."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
