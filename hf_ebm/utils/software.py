"""Versions of the software in use, and how to install the package's extras."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("hf-ebm", "torch", "diffusers", "transformers", "datasets", "torchmetrics", "scikit-learn", "scipy")


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that scores and metrics come from; one that is absent is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with_version = next(iter(metadata.distributions(name=name)), None)
        if with_version is not None:
            versions[name] = with_version.version
    return versions


def how_to_install(extras: str) -> str:
    """What to type for `extras`, such as ``"train,eval"``; the project holds no name on a package index yet."""
    return f"pip install '.[{extras}]' in a clone of hf-ebm"
