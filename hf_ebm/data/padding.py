"""The padding that a model was trained with, which pictures need that it shall score, rebuild or be compared with."""

from __future__ import annotations

from pathlib import Path

from hf_ebm.utils.validation import check_count


def find_padding(model: str, padding: int | None = None) -> int:
    """`padding`, or with None that of the ``settings.yaml`` in the model's folder or repository; 0 where there is none.

    Raises:
        ValueError: If it is no whole number >= 0.
    """
    if padding is None:
        from hf_ebm.hub.download import download_pipeline
        from hf_ebm.hub.model_card import SETTINGS, read_settings

        folder = Path(model) if Path(model).is_dir() else download_pipeline(model, (), extra_files=(SETTINGS,))
        settings = read_settings(folder)
        padding = settings.get("padding", 0) if isinstance(settings, dict) else 0
    check_count("--padding", padding, 0)
    return padding
