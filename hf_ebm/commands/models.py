"""What the commands share: loading whatever pipeline a folder or a Hub repository holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_pipeline(model: str) -> Any:
    """The pipeline in a run folder or Hub repository, whichever of ours it is."""
    import hf_ebm
    from hf_ebm.pipelines.pipeline_base import EBMPipeline

    folder = Path(model) if Path(model).is_dir() else Path(EBMPipeline.download(model))
    name = json.loads((folder / EBMPipeline.config_name).read_text(encoding="utf-8"))["_class_name"]
    if name not in hf_ebm.__all__:
        raise ValueError(f"--model {model} holds a {name}, which is no pipeline of hf-ebm.")
    return getattr(hf_ebm, name).from_pretrained(folder)
