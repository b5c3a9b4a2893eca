"""The extras of the package: what is installed for one job and not for all."""

from __future__ import annotations


def how_to_install(extras: str) -> str:
    """What to type for `extras`, such as ``"train,eval"``; the project holds no name on a package index yet."""
    return f"pip install '.[{extras}]' in a clone of hf-ebm"
