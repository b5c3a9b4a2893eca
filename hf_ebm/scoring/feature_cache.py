"""Feature statistics of data sets on disk, so that a network sees a data set once.

A file is named by the hash of what it is about: the data set's fingerprint and split, the rows, the extractor with its
weights' hash, both pre-processings. It holds that description and a hash of its tensors: a file that does not fit is
named in a warning and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_ebm.content_hash import hash_tensors
from hf_ebm.scoring.feature_statistics import FeatureStatistics
from hf_ebm.whole_files import whole_file

logger = logging.getLogger(__name__)
FORMAT = 2  # 2: rows of a large set in a drawn order


def default_cache_folder() -> Path:
    """``$HF_HOME/hf_ebm/features``."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_ebm" / "features"


def cached_statistics(
    folder: Path, description: Mapping[str, Any], make: Callable[[], FeatureStatistics]
) -> FeatureStatistics:
    """The statistics that `description` is about, from `folder` if they are there, else made and stored.

    Args:
        folder: The cache.
        description: All that decides the result; JSON.
        make: Computes it.
    """
    about = json.dumps({"format": FORMAT, **description}, sort_keys=True)
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return read_statistics(path, about)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            logger.warning("the cached statistics in %s cannot be used (%s); they are made again.", path, error)
    statistics = make()
    tensors = {
        "total": statistics.total,
        "outer": statistics.outer,
        "num_images": torch.tensor(statistics.num_images),
        "features": statistics.features.contiguous(),
    }
    try:
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"about": about, "sha256": hash_tensors(tensors)})
    except (OSError, SafetensorError) as error:  # the statistics are computed all the same
        logger.warning("the statistics cannot be cached (%s); the next evaluation computes them again.", error)
    return statistics


def read_statistics(path: Path, about: str) -> FeatureStatistics:
    """The statistics in a file.

    Raises:
        ValueError: If it is about something else, or its content was changed.
        SafetensorError: If it is no whole safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    if metadata.get("about") != about:
        raise ValueError("it is about something else")
    if metadata.get("sha256") != hash_tensors(tensors):
        raise ValueError("its content was changed")
    return FeatureStatistics(tensors["total"], tensors["outer"], int(tensors["num_images"]), tensors["features"])
