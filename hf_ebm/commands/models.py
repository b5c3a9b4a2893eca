"""What the commands share: loading whatever pipeline a folder or a Hub repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_pipeline(model: str) -> Any:
    """The pipeline in a run folder or Hub repository, whichever of ours it is."""
    import hf_ebm
    from hf_ebm.pull import INDEX, download_pipeline, read_index

    folder = Path(model) if Path(model).is_dir() else download_pipeline(model, names=())  # its index alone
    name = read_index(folder / INDEX)["_class_name"]
    if name not in hf_ebm.__all__:
        raise ValueError(f"--model {model} holds a {name}, which is no pipeline of hf-ebm.")
    return getattr(hf_ebm, name).from_pretrained(model)
