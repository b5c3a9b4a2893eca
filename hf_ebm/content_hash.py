"""Hashes of tensors' content: what tells two sets of weights, images or statistics apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and values, whatever their order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_pictures(pictures: Iterable[Any]) -> str:
    """SHA-256 of pictures in their order, by their files' bytes: nothing is decoded, names and dates do not count.

    Args:
        pictures: Undecoded `datasets.Image` (``{"bytes", "path"}``), paths, bytes of files, or PIL images, which are
            hashed by mode, size and pixels. A file that cannot be read counts by its name.
    """
    digest = hashlib.sha256()
    for picture in pictures:
        content = picture
        if isinstance(picture, dict):
            content = picture["path"] if picture.get("bytes") is None else picture["bytes"]
        if isinstance(content, (str, os.PathLike)):
            try:
                content = Path(content).read_bytes()
            except OSError:
                content = Path(content).name.encode()
        elif not isinstance(content, bytes):
            content = f"{content.mode} {content.size}".encode() + content.tobytes()
        digest.update(hashlib.sha256(content).digest())  # of each: a byte more here and less there is another set
    return digest.hexdigest()
