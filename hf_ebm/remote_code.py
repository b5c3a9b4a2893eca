"""The small Python files of a repository, for those who load it through diffusers without naming our classes.

    DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)

needs a ``pipeline.py`` that has the class, and from the Hub also ``<component>/<library>.py`` for each component whose
class is not of diffusers or transformers. All they do is import from hf_ebm, which must be installed. Our own pipelines
need none of them, and run none but these very lines.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

CODE_FILE = "pipeline.py"
COMMENT = "# For diffusers' trust_remote_code=True: hf-ebm, which must be installed, has the code.\n"


def pipeline_code(class_name: str) -> str:
    """``pipeline.py`` of a pipeline.

    It has one name for all: diffusers keeps one module for all folders and wants to find one class in it.
    """
    return f"{COMMENT}from hf_ebm import {class_name} as Pipeline  # noqa: F401\n"


def component_code(library: str, class_name: str) -> str:
    """A component's ``<library>.py``."""
    return f"{COMMENT}from {library} import {class_name}  # noqa: F401\n"


def component_files(index: dict[str, Any], components: Collection[str]) -> dict[str, str]:
    """Path and content of the files of `components` whose classes are ours; `index` is a checked index."""
    return {
        f"{name}/{index[name][0]}.py": component_code(*index[name])
        for name in components
        if index[name][0].startswith("hf_ebm.")
    }


def holds_own_code(folder: Path, index: dict[str, Any], components: Collection[str]) -> bool:
    """Whether all code in `folder` that loading `components` would run is, to the letter, what we write there.

    Beside the index only `CODE_FILE` may lie, which is not run: diffusers runs others, by names of its own.
    """
    ours = component_files(index, components)
    found = [f"{name}/{index[name][0]}.py" for name in components if (folder / name / f"{index[name][0]}.py").is_file()]
    if not {path.name for path in folder.glob("*.py")} <= {CODE_FILE}:
        return False
    return bool(found) and all((folder / path).read_text(encoding="utf-8") == ours.get(path) for path in found)
