"""Configs of diffusers classes that save as JSON: numpy numbers become Python's, local paths stay out of the file."""

from __future__ import annotations

import json
from typing import Any

from hf_ebm.counting import python_number


class PathlessConfig:
    """Mixin before diffusers' own bases; ``_name_or_path``, a local folder, stays in the config in memory only."""

    def register_to_config(self, **kwargs: Any) -> None:
        """Store settings in the config, as ``ConfigMixin.register_to_config``; numpy numbers become Python's."""
        values = {name: python_number(value) for name, value in kwargs.items()}
        super().register_to_config(**values)  # type: ignore[misc]

    def to_json_string(self) -> str:
        """The config as JSON."""
        values = json.loads(super().to_json_string())  # type: ignore[misc]
        values.pop("_name_or_path", None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"
