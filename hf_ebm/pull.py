"""Pulling a pipeline: which files of a Hub repository are fetched, and what a pipeline folder must be to be loaded.

Only JSON and safetensors are read, and only classes of hf_ebm, diffusers and transformers are made: a repository cannot
run code here. A pull that fails leaves the cache's revision where it was.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffusers import ModelMixin, SchedulerMixin
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from hf_ebm.commit_pull import HUB_OPTIONS, check_subfolder, pull_commit
from hf_ebm.saved_weights import WEIGHT_STEMS, weight_files
from hf_ebm.user_paths import expand_home

INDEX = "model_index.json"
SETTINGS = "settings.yaml"  # which a run writes at its start, and the index at its end
NAME = re.compile(r"[A-Za-z_]\w*")  # of a component, which is a folder's name
LIBRARIES = re.compile(r"diffusers|transformers|hf_ebm\.(models|schedulers)\.\w+")
CONFIGS = ("config.json", "scheduler_config.json")  # of networks and schedulers


def no_pipeline(folder: Path) -> str:
    """What is said of a folder without an `INDEX`: of a run's before its end, how to go on."""
    if (folder / SETTINGS).is_file():
        return (
            f"{folder} holds no {INDEX}: its training has not ended; go on with it by resume=latest (or begin again), "
            "or give a run folder whose training has ended."
        )
    return f"{folder} holds no {INDEX}: it is no pipeline's folder; give a run folder or a Hub id."


def read_index(path: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The ``model_index.json`` at `path`, with nothing in it that leads out of the folder or to other libraries.

    Args:
        path: The file.
        trust_remote_code: Whether classes of other libraries may be named: the user's decision.

    Raises:
        ValueError: It names the entry that cannot be used.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch or save the pipeline again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str | list):
        raise ValueError(f"{path} must be a JSON object with the pipeline's _class_name; it is no pipeline's index.")
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{path} names a component {name!r}; it must be a plain name, as it is a folder beside it."
            )
        if not isinstance(value, list):
            continue
        if len(value) != 2 or not all(part is None or isinstance(part, str) for part in value):
            raise ValueError(f"{path}: component {name!r} must be [library, class], got {value!r}.")
        if value[0] is not None and not LIBRARIES.fullmatch(value[0]) and not trust_remote_code:
            raise ValueError(
                f"{path}: component {name!r} is a {value[1]} of {value[0]!r}; only classes of hf_ebm, diffusers and "
                "transformers are loaded. If you trust this repository and have read its code, pass "
                "trust_remote_code=True."
            )
    if isinstance(index["_class_name"], list) and not trust_remote_code:
        raise ValueError(f"{path} names code of its own as the pipeline; pass trust_remote_code=True if you trust it.")
    return index


def wanted_components(index: dict[str, Any], names: Collection[str] | None, given: Collection[str]) -> list[str]:
    """Components of `index` to load: those among `names` (None = all) that are not `given` by the caller."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list)
        and not name.startswith("_")
        and value[0] is not None
        and name not in given
        and (names is None or name in names)
    ]


def check_classes(index: dict[str, Any], components: Collection[str]) -> None:
    """Each of `components` of a checked `index` is a network or a scheduler: other classes read files we do not check.

    Those of libraries that the user trusts are not looked at.

    Raises:
        ValueError: It names the component.
    """
    for name in components:
        library, class_name = index[name]
        if not LIBRARIES.fullmatch(library):
            continue
        try:
            found = getattr(importlib.import_module(library), class_name, None)
        except (ImportError, RuntimeError) as error:  # RuntimeError: transformers' own for a module it cannot import
            raise ValueError(f"component {name!r}: {library}.{class_name} cannot be imported here: {error}") from error
        if not (isinstance(found, type) and issubclass(found, ModelMixin | SchedulerMixin | PreTrainedModel)):
            raise ValueError(f"component {name!r} is a {class_name} of {library!r}, which is no network or scheduler.")


def weight_patterns(name: str, variant: str | None) -> list[str]:
    """Glob patterns of a component's safetensors: of the variant, or with None the plain ones alone."""
    infix = "" if variant is None else f".{variant}"
    return [f"{name}/{stem}{infix}{end}.safetensors" for stem in WEIGHT_STEMS for end in ("", "-*-of-*")]


def find_weights(folder: Path, name: str, variant: str | None) -> list[Path]:
    """The safetensors of a component that are there."""
    return [path for pattern in weight_patterns(name, variant) for path in folder.glob(pattern)]


def is_network(folder: Path) -> bool:
    """Whether a component's folder is a network's: a scheduler has another config file, and no weights."""
    return (folder / "config.json").is_file()


def check_weights(folder: Path, components: Collection[str], variant: str | None) -> None:
    """Every component has its config in `folder`, and every network whole safetensors; only their headers are read.

    Raises:
        ValueError: If one has none (of the variant or without one), a file is damaged, a shard is missing, or a
            component is not there or a pipeline itself, whose files would not be checked.
    """
    for name in components:
        if not any((folder / name / config).is_file() for config in CONFIGS):
            raise ValueError(f"{folder} lacks {name!r}, which its index names: there is no {' or '.join(CONFIGS)}.")
        if (folder / name / INDEX).exists():
            raise ValueError(f"{folder}: component {name!r} holds a {INDEX}; a component must be no pipeline itself.")
    of_variant = {name: weight_files(folder / name, variant) for name in components if is_network(folder / name)}
    if variant is not None and of_variant and not any(of_variant.values()):
        raise ValueError(f"{folder} has no weights of variant {variant!r}; leave variant out, or choose another.")
    for name, files in of_variant.items():
        found = files or weight_files(folder / name, None)
        if not found:
            raise ValueError(
                f"{folder} holds no safetensors of {name!r}. Other weights (.bin, .pt, .ckpt, pickles) are not read, "
                "because they can run code: ask for safetensors, or convert them where you trust the source."
            )
        for path in found:
            check_safetensors(path)


def code_patterns(index: dict[str, Any], components: Collection[str]) -> list[str]:
    """The Python files that a trusted `index` names: of `components`, and of the pipeline."""
    pipeline = index["_class_name"]
    root = [f"{pipeline[0]}.py"] if isinstance(pipeline, list) else []
    return [*root, *(f"{name}/{index[name][0]}.py" for name in components)]


def check_safetensors(path: Path) -> None:
    """Raise a `ValueError` if the file is no safetensors file, or is cut off."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}); save it again, or fetch it again with force_download=True."
        ) from error


def download_pipeline(
    repo_id: str,
    names: Collection[str] | None = None,
    given: Collection[str] = (),
    extra_files: Collection[str] = (),
    subfolder: str | None = None,
    variant: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Path:
    """Fetch the files of a pipeline into the cache, whole and of one commit, and return their folder.

    Args:
        repo_id: Such as ``"user/name"``.
        names: Components to fetch; None = all.
        given: Components not to fetch, as the caller has them.
        extra_files: Other files to fetch where they are there; offline, where they are in the cache.
        subfolder: Of the repository, where the pipeline is.
        variant: Of the weights; a network without it is fetched plain.
        trust_remote_code: See `read_index`.
        options: `HUB_OPTIONS` of huggingface_hub.

    Raises:
        OSError: If the repository, the revision or the network is not there, or a file came damaged; what is damaged
            is removed.
        ValueError: If the revision cannot be one, or the index cannot be used.
    """
    check_variant(variant)
    prefix = check_subfolder(subfolder)
    with pull_commit(repo_id, prefix + INDEX, options) as pull:
        folder = pull.root / prefix

        def inside(patterns: Collection[str]) -> list[str]:
            return [prefix + pattern for pattern in patterns]

        index = read_index(folder / INDEX, trust_remote_code)
        components = wanted_components(index, names, given)
        check_classes(index, components)
        weights = [pattern for name in components for pattern in weight_patterns(name, variant)]
        code = code_patterns(index, components) if trust_remote_code else []
        pull.fetch(inside([*(f"{name}/*.json" for name in components), *weights, *code]), inside(extra_files))
        networks = [name for name in components if is_network(folder / name)]
        lacking = [name for name in networks if not find_weights(folder, name, variant)]
        if variant is not None and len(lacking) < len(networks):
            pull.fetch(inside([pattern for name in lacking for pattern in weight_patterns(name, None)]))
        pull.verify()
        check_weights(folder, components, variant)
    return folder


def fetch_network(name: Any, kwargs: dict[str, Any]) -> Any:
    """The folder of a network's files: `name` itself if it is no Hub id, else in the cache, verified.

    Args:
        name: What a network's ``from_pretrained`` was given: a folder, a Hub id, or None.
        kwargs: Its keyword arguments; of a Hub id, what concerns the Hub (`HUB_OPTIONS`, ``subfolder``) is taken out.

    Raises:
        OSError: If the repository, the revision or the network is not there, or a file came damaged.
        ValueError: If its shards and their index do not fit, see `weight_files`.
    """
    if name is None:
        return name
    name = expand_home(name)
    if Path(name).is_dir():
        weight_files(Path(name) / (kwargs.get("subfolder") or ""), kwargs.get("variant"))
        return name
    options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
    prefix, variant = check_subfolder(kwargs.pop("subfolder", None)), kwargs.get("variant")
    check_variant(variant)
    with pull_commit(str(name), f"{prefix}config.json", options) as pull:
        weights = weight_patterns(prefix.rstrip("/"), variant)
        pull.fetch([f"{prefix}*.json", *(pattern.lstrip("/") for pattern in weights)])
        pull.verify()
        weight_files(pull.root / prefix, variant)
    return pull.root / prefix


def check_variant(variant: str | None) -> None:
    """Raise a `ValueError` if the name of a variant is no word."""
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(f"variant must be a word such as 'fp16', got {variant!r}.")
