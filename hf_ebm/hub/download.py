"""Downloads of pipelines and networks: which files are fetched, and what is checked before they are loaded.

Files go into huggingface_hub's own cache. Only JSON and safetensors are fetched, and only networks and schedulers of
hf_ebm, diffusers and transformers are built, so a repository cannot run code here unless the user passes
``trust_remote_code=True``.

A repository also has small Python files for users who load it through diffusers without importing our classes:

    DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)

needs a ``pipeline.py`` with the pipeline class and, on the Hub, a ``<component>/<library>.py`` for each component whose
class is not in diffusers or transformers. These files only import from hf_ebm, which must be installed.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_ebm import EXPORTS
from hf_ebm.hub.saved_weights import check_safetensors, check_variant, weight_files, weight_patterns
from hf_ebm.utils.files import expand_home

logger = logging.getLogger(__name__)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
INDEX = "model_index.json"
SETTINGS = "settings.yaml"  # written at the start of a run, as `INDEX` is at its end
NAME = re.compile(r"[A-Za-z_]\w*")  # of a component, which is a folder's name
LIBRARIES = ("diffusers", "transformers")  # whose components are loaded, beside those that hf_ebm exports
CONFIGS = ("config.json", "scheduler_config.json")  # of networks and schedulers
IMAGE_PROCESSOR = "preprocessor_config.json"
COMPONENT_CLASSES = (ModelMixin, SchedulerMixin, PreTrainedModel, BaseImageProcessor)
COMPOSITION = '"model_type": "hf_ebm_composed_energy"'  # in a config that names other energies
CODE_FILE = "pipeline.py"
COMMENT = "# For diffusers' trust_remote_code=True: hf-ebm, which must be installed, has the code.\n"


def check_hub_id(name: str) -> None:
    """Raise an `OSError` if `name`, which is not a local folder, cannot be a Hub id."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(
            f"{name!r} is not a local folder, and cannot be a Hub id, which is written as user/name; check the path."
        ) from error


def check_subfolder(subfolder: str | None) -> str:
    """A subfolder, inside the repository, as a prefix of its files' names: empty, or with a "/" at the end."""
    if subfolder is not None and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise ValueError(f"subfolder must lie inside the repository, got {subfolder!r}.")
    return f"{subfolder.strip('/')}/" if subfolder else ""


def check_revision(revision: str | None) -> None:
    """Raise a `ValueError` if a revision is a path that leads out of the cache, which has a file of its name."""
    if revision is not None and (Path(revision).is_absolute() or ".." in Path(revision).parts):
        raise ValueError(f"revision must be the name of a branch, a tag or a commit, got {revision!r}.")


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Convert the Hub client's errors to an `OSError` that names the repository and the reason."""
    try:
        yield
    except ValueError:
        raise  # what was fetched, or an argument, cannot be used
    except Exception as error:  # the client's errors have no common base class
        raise OSError(f"{repo_id!r} is not a local folder, and could not be fetched from the Hub: {error}") from error


def fetch_first(repo_id: str, file: str, options: dict[str, Any]) -> Path:
    """Fetch a file that the repository must have, and return the cache's folder of the commit it belongs to."""
    check_hub_id(repo_id)
    check_revision(options.get("revision"))
    with hub_errors(repo_id):
        return Path(hf_hub_download(repo_id, file, **options)).parents[len(Path(file).parts) - 1]


def fetch(
    repo_id: str, commit: Path, options: dict[str, Any], patterns: Collection[str], extra: Collection[str] = ()
) -> None:
    """Fetch the files of a commit that match `patterns`; `commit` is its folder in the cache.

    Of the `extra` files, those that the cache lacks are left out with a warning when offline.
    """
    if not patterns and not extra:
        return
    options = {**options, "revision": commit.name}
    with hub_errors(repo_id):
        try:
            snapshot_download(repo_id, allow_patterns=[*patterns, *extra], **options)
            return
        except LocalEntryNotFoundError:
            if not extra:
                raise
        if patterns:
            snapshot_download(repo_id, allow_patterns=[*patterns], **options)
    names = ", ".join(Path(name).name for name in extra if not (commit / name).is_file())
    logger.warning(
        "offline: the model %s is in the cache without %s; a run with the network fetches it.", repo_id, names
    )


def no_pipeline(folder: Path) -> str:
    """The message about a folder without an `INDEX`; for an unfinished run, it contains the command that resumes it."""
    if (folder / SETTINGS).is_file():
        return (
            f"{folder} holds no {INDEX}: its training has not ended; resume it with resume=latest (or restart it), "
            "or give a run folder whose training has ended."
        )
    return f"{folder} holds no {INDEX}: it is not a pipeline folder; give a run folder or a Hub id."


def read_index(path: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The ``model_index.json`` at `path`, with nothing in it that leads out of the folder or to other libraries."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); save the pipeline again, or fetch it with force_download=True."
        ) from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str | list):
        raise ValueError(
            f"{path} must be a JSON object with the pipeline's _class_name; this is not a pipeline's index."
        )
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
        if value[0] is not None and not is_known(*value) and not trust_remote_code:
            hint = "If you trust this repository and have read its code, pass trust_remote_code=True."
            if value[0].startswith("hf_ebm."):
                hint = "This version of hf-ebm exports no such class; install the one that saved it."
            raise ValueError(
                f"{path}: component {name!r} is a {value[1]} of {value[0]!r}; only classes of hf_ebm, diffusers and "
                f"transformers are loaded. {hint}"
            )
    if isinstance(index["_class_name"], list) and not trust_remote_code:
        raise ValueError(f"{path} names code of its own as the pipeline; pass trust_remote_code=True if you trust it.")
    return index


def is_known(library: str, class_name: str) -> bool:
    """Whether a class is of diffusers, of transformers, or exported by hf_ebm from the module `library`."""
    return library in LIBRARIES or EXPORTS.get(class_name) == library


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
    """Check that `components` of a checked `index` are networks, schedulers or image processors.

    Other classes read unchecked files.

    Classes of other libraries, which the user trusts, are not checked.
    """
    for name in components:
        library, class_name = index[name]
        if not is_known(library, class_name):
            continue
        try:
            found = getattr(importlib.import_module(library), class_name, None)
        except (ImportError, RuntimeError) as error:  # RuntimeError: transformers' own for a module it cannot import
            raise ValueError(f"component {name!r}: {library}.{class_name} cannot be imported here: {error}") from error
        if not (isinstance(found, type) and issubclass(found, COMPONENT_CLASSES)):
            raise ValueError(
                f"component {name!r} is a {class_name} of {library!r}, not a network, scheduler or image processor."
            )


def is_network(folder: Path) -> bool:
    """Whether a component's folder is a network's: a scheduler has another config file, and no weights.

    A composed energy has a config only, which names its parts, and no file of another kind beside it.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    has_config_only = all(other.suffix in (".json", ".py") for other in folder.iterdir())
    return not (has_config_only and COMPOSITION in path.read_text(encoding="utf-8"))


def check_weights(folder: Path, components: Collection[str], variant: str | None) -> None:
    """Check that `folder` has each component's config and each network's safetensors, whose headers are read."""
    for name in components:
        configs = (IMAGE_PROCESSOR,) if name == "image_processor" else CONFIGS
        if not any((folder / name / config).is_file() for config in configs):
            raise ValueError(f"{folder} lacks {name!r}, which its index names: there is no {' or '.join(configs)}.")
        if (folder / name / INDEX).exists():
            raise ValueError(
                f"{folder}: component {name!r} holds a {INDEX}; a component must not be a pipeline itself."
            )
    of_variant = {name: weight_files(folder / name, variant) for name in components if is_network(folder / name)}
    if variant is not None and of_variant and not any(of_variant.values()):
        raise ValueError(
            f"You are trying to load the model files of the `variant={variant}`, but {folder} has none; leave "
            "variant out, or choose another."
        )
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
    """Fetch the files of a pipeline, all of one commit, and return their folder in huggingface_hub's cache.

    Components are fetched that are among `names` (None = all) and not `given` by the caller; a network without the
    `variant` is fetched plain. `extra_files` are optional, `options` are `HUB_OPTIONS` of huggingface_hub.

    Raises:
        OSError: If the repository, the revision or the network is not available.
        ValueError: If an argument, the index or a weight file cannot be used.
    """
    check_variant(variant)
    prefix = check_subfolder(subfolder)
    commit = fetch_first(repo_id, prefix + INDEX, options)
    folder = commit / prefix

    def inside(patterns: Collection[str]) -> list[str]:
        return [prefix + pattern for pattern in patterns]

    index = read_index(folder / INDEX, trust_remote_code)
    components = wanted_components(index, names, given)
    check_classes(index, components)
    weights = [pattern for name in components for pattern in weight_patterns(name, variant)]
    code = code_patterns(index, components) if trust_remote_code else []
    needed = [*(f"{name}/*.json" for name in components), *weights, *code]
    fetch(repo_id, commit, options, inside(needed), inside(extra_files))
    networks = [name for name in components if is_network(folder / name)]
    lacking = [
        name
        for name in networks
        if not any(path for pattern in weight_patterns(name, variant) for path in folder.glob(pattern))
    ]
    if variant is not None and len(lacking) < len(networks):
        plain = [pattern for name in lacking for pattern in weight_patterns(name, None)]
        fetch(repo_id, commit, options, inside(plain))
    check_weights(folder, components, variant)
    return folder


def fetch_network(name: Any, kwargs: dict[str, Any]) -> Any:
    """The folder of a network's files: `name` itself if it is a folder, otherwise in huggingface_hub's cache.

    For a Hub id, `HUB_OPTIONS` and ``subfolder`` are removed from `kwargs`, those of a ``from_pretrained``.

    Raises:
        OSError: If the repository, the revision or the network is not available.
        ValueError: If the weights' shards and index do not match (`weight_files`), or a file from the Hub is damaged.
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
    commit = fetch_first(str(name), f"{prefix}config.json", options)
    weights = [pattern.lstrip("/") for pattern in weight_patterns(prefix.rstrip("/"), variant)]
    fetch(str(name), commit, options, [f"{prefix}*.json", *weights])
    for path in weight_files(commit / prefix, variant):
        check_safetensors(path)
    return commit / prefix


def pipeline_code(class_name: str) -> str:
    """The content of a pipeline's ``pipeline.py``.

    The class has one alias for all pipelines: diffusers keeps one module for all folders and expects one class in it.
    """
    return f"{COMMENT}from hf_ebm import {class_name} as Pipeline  # noqa: F401\n"


def component_files(index: dict[str, Any], components: Collection[str]) -> dict[str, str]:
    """Path and content of the files of `components` whose classes are ours; `index` is a checked index."""
    return {
        f"{name}/{index[name][0]}.py": "{}from {} import {}  # noqa: F401\n".format(COMMENT, *index[name])
        for name in components
        if index[name][0].startswith("hf_ebm.")
    }


def holds_own_code(folder: Path, index: dict[str, Any], components: Collection[str]) -> bool:
    """Whether all code in `folder` that loading `components` would run is identical to what we write there.

    `CODE_FILE`, which is not run, may be beside the index. Other Python files may not, as diffusers may run them.
    """
    ours = component_files(index, components)
    found = [f"{name}/{index[name][0]}.py" for name in components if (folder / name / f"{index[name][0]}.py").is_file()]
    if not {path.name for path in folder.glob("*.py")} <= {CODE_FILE}:
        return False
    return bool(found) and all((folder / path).read_text(encoding="utf-8") == ours.get(path) for path in found)
