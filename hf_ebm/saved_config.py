"""Configs of diffusers classes as they are saved: without where they were loaded from, a folder of this machine."""

from __future__ import annotations

import json


class PathlessConfig:
    """Before diffusers' own bases: what it saves has no ``_name_or_path``, which stays in its config in memory."""

    def to_json_string(self) -> str:
        """The config as JSON."""
        values = json.loads(super().to_json_string())  # type: ignore[misc]
        values.pop("_name_or_path", None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"
