"""A Gradio field for one uploaded image that passes on only the path of the file.

Gradio's own image field decodes the file before our limits are checked, and fetches the URL in a forged request. Both
are overridden in a class, since Gradio creates new fields of a field's class during a session (for examples).
"""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import Error


def local_path(path: Any) -> str:
    """Return `path` if it is a file that was uploaded here; anything else, such as a URL, is an error."""
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise Error("Upload the image file itself; links are not followed.", print_exception=False)
    return str(path)


def uploaded_path(self: Any, payload: Any) -> str | None:
    """Return the path that the page sent, or None if the field is empty."""
    return None if payload is None else local_path(payload.path)


async def keep_local_file(self: Any, path: Any) -> str | None:
    """Return Gradio's cached copy of a file that was uploaded here."""
    return await gr.Image.async_move_resource_to_block_cache(self, None if path is None else local_path(path))


# made without Gradio's own `__new__` of component classes, which would write an interface file beside this one
UploadField: Any = ABCMeta.__new__(
    type(gr.Image),
    "UploadField",
    (gr.Image,),
    {
        "__module__": __name__,
        "__doc__": "An image field, for the page; a path, for the server.",
        "is_template": True,  # the page knows it by the name of its base
        "preprocess": uploaded_path,
        "async_move_resource_to_block_cache": keep_local_file,
    },
)


def make_upload_field(label: str, **options: Any) -> Any:
    """Create the field under its heading; event functions receive the file's path, or None."""
    gr.Markdown(f"#### {label}")
    return UploadField(
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        label=label,
        show_label=False,  # it would cover the image
        buttons=[],
        elem_classes="small-image",
        **options,
    )
