"""Saved networks: the names of weight files, which of them a load reads, and how a save replaces them.

    model.safetensors                                                     one file
    model-00001-of-00002.safetensors, model.safetensors.index.json       shards and their index
    model.ema.safetensors, model.ema-00001-of-00002.safetensors, model.safetensors.index.ema.json      variant "ema"

In diffusers the names begin with ``diffusion_pytorch_model``. transformers prefers the single file and diffusers the
index, so a folder must not hold both for one variant. Only safetensors are saved and read, because .bin files and
pickles can run code when they are read. Saved configs hold no local paths (`PathlessConfig`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_ebm.utils.files import expand_home
from hf_ebm.utils.validation import python_number

WEIGHT_STEMS = ("model", "diffusion_pytorch_model")  # of transformers and diffusers


WEIGHTS = re.compile(  # weight files and their indices, with their variant
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors(?:\.index(?:\.(?P<listed>[\w-]+))?\.json)?"
)


def weight_variant(name: str) -> str | None:
    """The variant of a file whose name `WEIGHTS` matches; None = without one."""
    match = WEIGHTS.fullmatch(name)
    return None if match is None else match["variant"] or match["listed"]


def save_network(
    save: Callable[..., Any], folder: str | Path, variant: str | None, push_to_hub: bool, **kwargs: Any
) -> None:
    """Save a network in a temporary folder, and replace the files of `folder` by it when it is complete.

    Weight files of the same variant that the new save does not have (shards, an index, a single file) are deleted.
    Those of other variants stay, which the libraries' own ``save_pretrained`` does not guarantee. A save that fails
    leaves `folder` as it was. `save` is the library's ``save_pretrained``, with `kwargs`; the ``repo_id`` that it
    pushes to is by default the folder's name.
    """
    folder = Path(expand_home(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if push_to_hub:
        kwargs.setdefault("repo_id", folder.name)
    with TemporaryDirectory(prefix=".tmp_save_", dir=folder) as temporary:
        save(temporary, variant=variant, push_to_hub=push_to_hub, **kwargs)
        saved = {path.name: path for path in Path(temporary).iterdir()}
        if any(WEIGHTS.fullmatch(name) for name in saved):
            for path in folder.iterdir():
                stale = WEIGHTS.fullmatch(path.name) and weight_variant(path.name) == variant
                if stale and path.name not in saved:
                    path.unlink()
        for name, path in saved.items():
            path.replace(folder / name)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors that loading `variant` from a network's `folder` reads; empty if there are none."""
    infix = "" if variant is None else f".{variant}"
    for stem in WEIGHT_STEMS:
        single, index = folder / f"{stem}{infix}.safetensors", folder / f"{stem}.safetensors.index{infix}.json"
        if not index.is_file():
            if single.is_file():
                return [single]
            for shard in folder.glob(f"{stem}{infix}-*-of-*.safetensors"):
                raise ValueError(f"{shard} is a shard without its index, {index.name}; save or download it again.")
            continue
        shards = indexed_shards(index)
        for shard in shards:
            if not shard.is_file():
                single_file = f", or delete the index to load {single.name}" if single.is_file() else ""
                raise ValueError(
                    f"{index} names the shard {shard.name}, which is missing; save or download the model again"
                    f"{single_file}."
                )
        if single.is_file():
            raise ValueError(
                f"{folder} holds both {single.name} and {index.name}, which may be different weights; delete one of "
                "them, or save the model again."
            )
        return shards
    return []


def indexed_shards(index: Path) -> list[Path]:
    """The shards that an index names, each beside it, sorted."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid index of shards ({error!r}); save or download it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} must name shards beside it, got {name!r}; save or download it again.")
    return [index.parent / name for name in sorted(names)]


def weight_patterns(name: str, variant: str | None) -> list[str]:
    """Glob patterns of a component's safetensors: of the variant, or with None only those without a variant."""
    infix = "" if variant is None else f".{variant}"
    return [f"{name}/{stem}{infix}{end}.safetensors" for stem in WEIGHT_STEMS for end in ("", "-*-of-*")]


def check_safetensors(path: Path) -> None:
    """Raise a `ValueError` if the file is no safetensors file, or is cut off."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}); save it again, or fetch it again with force_download=True."
        ) from error


def check_variant(variant: str | None) -> None:
    """Raise a `ValueError` if the name of a variant is no word."""
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(f"variant must be a word such as 'fp16', got {variant!r}.")


def require_safetensors(kwargs: dict[str, Any]) -> None:
    """Set ``use_safetensors=True`` for a ``from_pretrained``; a `ValueError` if other weights are asked for."""
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors must be True: .bin and pickles, which can run code, are not read.")
    kwargs["use_safetensors"] = True


def require_safe_serialization(safe_serialization: bool, use_flashpack: bool) -> None:
    """Raise a `ValueError` if a ``save_pretrained`` is asked for a format that is never read here."""
    if not safe_serialization:
        raise ValueError("safe_serialization must be True: models are saved as safetensors only.")
    if use_flashpack:
        raise ValueError("use_flashpack must be False: models are saved as safetensors only.")


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
