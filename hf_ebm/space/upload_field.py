"""A Gradio field for one uploaded picture, which hands on the file's path and nothing else.

Gradio's own image field decodes the file before our limits can look at it, and fetches a URL that a hand-made request
names; both are replaced on the field itself (a subclass would make Gradio write files beside this one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import Error


def local_path(path: Any) -> str:
    """`path`, of a file that was uploaded here.

    Raises:
        gradio.exceptions.Error: If it is something else, a URL, say.
    """
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise Error("Upload the picture itself; links are not followed.", print_exception=False)
    return str(path)


def uploaded_path(payload: Any) -> str | None:
    """The path in what the page sent, or None where the field is empty."""
    return None if payload is None else local_path(payload.path)


def make_upload_field(label: str, **options: Any) -> gr.Image:
    """The field, under its heading; the function behind a button gets the file's path, or None."""
    gr.Markdown(f"#### {label}")
    field: Any = gr.Image(
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        label=label,
        show_label=False,  # it would lie on the picture
        buttons=[],
        elem_classes="small-picture",
        **options,
    )
    to_cache = field.async_move_resource_to_block_cache

    async def local_to_cache(path: Any) -> str | None:
        return await to_cache(None if path is None else local_path(path))

    field.async_move_resource_to_block_cache = local_to_cache
    field.preprocess = uploaded_path
    return field
