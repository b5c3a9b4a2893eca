"""Uploads of pipelines and run folders: weights, configs, card, images, metrics and calibration in one commit.

Only files that training and the commands write are pushed, by their names (`RECORDS` and a component's configs and
weights). A warning names other files, except checkpoints, logs and intermediate samples. Local paths in pushed files
are reduced to their last part. Unchanged files are not sent again, and without a change there is no commit. A push that
fails raises a `PushError`; the commit is then whole or absent, and the same call may be repeated.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, httpx, validate_repo_id

from hf_ebm.hub.download import (
    CODE_FILE,
    INDEX,
    check_subfolder,
    check_weights,
    component_files,
    pipeline_code,
    read_index,
    wanted_components,
)
from hf_ebm.hub.model_card import (
    CARD,
    CONVERSION,
    IMAGE_FILES,
    LIST,
    SETTINGS,
    SUMMARY,
    VALIDATION_PLOT,
    knows_its_run,
    public_card,
    public_settings,
    public_values,
    read_settings,
    render_card,
)
from hf_ebm.hub.saved_weights import WEIGHTS, weight_variant
from hf_ebm.utils.files import expand_home


class PushError(OSError):
    """A push that failed: the repository has all of it or nothing, and the same call may be repeated."""


@contextmanager
def push_errors(repo_id: str) -> Iterator[None]:
    """Convert any error of the block to a `PushError` that names the repository."""
    try:
        yield
    except Exception as error:  # the client's errors have no common base class
        reason = str(error) if isinstance(error, HfHubHTTPError | httpx.TransportError) else repr(error)
        raise PushError(
            f"the push to {repo_id!r} failed: {reason.rstrip('.')}. Nothing here was changed, and the Hub has all of "
            "the commit or nothing: try the same again."
        ) from error


logger = logging.getLogger(__name__)
COMPONENT_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
FACTS_ABOUT_WEIGHTS = (  # what was found out about one set of weights, and does not hold for others
    "metrics.json",
    "evaluate.json",
    "ood.json",
    "calibration.json",
    "calibration.safetensors",
    CONVERSION,
    *IMAGE_FILES,
)
# at the top of a pipeline folder
RECORDS = (INDEX, SETTINGS, SUMMARY, CARD, "metrics.jsonl", VALIDATION_PLOT, *FACTS_ABOUT_WEIGHTS)
NOT_FOR_READERS = (CODE_FILE, "checkpoints", "samples", "logs", "wandb", "__pycache__")  # also ours: no warning
MOST_NAMED = 10  # files that a warning names


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Push a run folder.

    Args:
        folder: It is read only.
        repo_id: Such as ``"user/name"``; created if it does not exist.
        options: ``private``, ``token``, ``create_pr``, ``revision`` (a branch, created if it does not exist),
            ``commit_message``, and ``license`` and ``license_name`` of the weights (see `render_card`).

    Raises:
        ValueError: If the folder holds no whole pipeline, its card lacks a value, or the repository is there and not as
            ``private`` says.
        PushError: If the Hub did not take it.
    """
    folder = Path(expand_home(folder))
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder here: give that of a run, or of a saved pipeline.")
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: it is no pipeline's folder, or its training has not ended.")
    check_weights(folder, wanted_components(read_index(folder / INDEX), None, ()), None)
    return commit_folder(folder, repo_id, **options)


def push_pipeline(pipeline: Any, repo_id: str, variant: str | None = None, **options: Any) -> CommitInfo:
    """Push a pipeline as it is in memory, with the records of the run folder that it was loaded from.

    `variant` is of the weights' file names; see `push_folder` for the rest.
    """
    source = pipeline.name_or_path  # a folder, a Hub id, or None
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if source and (Path(source) / INDEX).is_file():
            warn_of_left_out(Path(source))
            for path in [Path(source) / name for name in RECORDS if (Path(source) / name).is_file()]:
                shutil.copyfile(path, folder / path.name)
        pipeline.save_pretrained(folder, variant=variant)
        return commit_folder(folder, repo_id, **options)


def commit_folder(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    subfolder: str | None = None,
) -> CommitInfo:
    """One commit of what readers of a pipeline folder need, see `push_folder`; into a `subfolder` without a card."""
    check_repo_id("repo_id", repo_id)
    prefix = check_subfolder(subfolder)
    if token is None and get_token() is None:
        raise PushError(f"the push to {repo_id!r} needs a login: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(token=token)
    with push_errors(repo_id):
        repo_id = with_owner(api, repo_id)
        found = is_private(api, repo_id)
    check_visibility("private", private, found, repo_id)
    files = repository_files(folder, repo_id, license, license_name)
    if prefix:
        del files[CARD]  # the repository's card is at its top
    with push_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        listed = api.list_repo_files(repo_id, revision=revision)
        there = [path.removeprefix(prefix) for path in listed if path.startswith(prefix)]
        old = old_files(folder, files, there)
        if not knows_its_run(folder) and CARD in there and not prefix:
            del files[CARD]  # keep the existing card: nothing is known of this pipeline
            old = [path for path in old if path not in FACTS_ABOUT_WEIGHTS]  # and the card shows them
            if license is not None:
                logger.warning("the %s that %s has is kept; state the licence in its metadata there.", CARD, repo_id)
        elif isinstance(card := files.get(CARD), bytes) and ModelCard(card.decode()).data.get("license") is None:
            logger.warning(
                "the model card states no licence. To state one, push again with `hf-ebm push --license ID`, or put it "
                "into the card's metadata on the Hub; a training run has the setting license=ID. IDs: %s",
                LIST,
            )
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(prefix + path, content) for path, content in files.items()]
            + [CommitOperationDelete(prefix + path) for path in old],
            commit_message=commit_message or f"Upload {read_index(folder / INDEX)['_class_name']}",
            create_pr=create_pr,
            revision=revision,
        )


def where_it_is(commit: CommitInfo, branch: str | None = None) -> str:
    """The page of a pushed commit's repository, who can see it and the `branch`, or the page of its pull request."""
    if commit.pr_url:
        return commit.pr_url
    try:
        seen_by = "private" if HfApi().model_info(commit.repo_url.repo_id).private else "public"
    except Exception:  # the push is done, whatever happens to this question
        seen_by = "public, or private by your account's settings"
    on_branch = f"branch {branch}, " if branch else ""
    return f"{commit.repo_url} ({seen_by}), {on_branch}commit {commit.oid}"


def repository_files(
    folder: Path, repo_id: str, license: str | None = None, license_name: str | None = None
) -> dict[str, str | bytes]:
    """What is pushed of a pipeline folder: path in the repository -> file here, or content.

    What lies in the folder and is not pushed is named in a warning.
    """
    index = read_index(folder / INDEX)
    components = wanted_components(index, None, ())
    paths = [folder / name for name in RECORDS]
    paths += [path for name in components for path in sorted((folder / name).iterdir()) if of_component(path.name)]
    files: dict[str, str | bytes] = {
        path.relative_to(folder).as_posix(): public_file(path) for path in paths if path.is_file()
    }
    if SETTINGS in files:
        settings = public_settings(read_settings(folder))
        settings |= {"license": license, "license_name": license_name} if license is not None else {}
        files[SETTINGS] = yaml.safe_dump(settings, sort_keys=False).encode()
    code = {CODE_FILE: pipeline_code(index["_class_name"]), **component_files(index, components)}
    card = render_card(folder, repo_id, license, license_name)
    warn_of_left_out(folder)
    return files | {path: text.encode() for path, text in {**code, CARD: public_card(str(card), folder)}.items()}


def of_component(name: str) -> bool:
    """Whether a file of that name in a component's folder is one of its configs or weights."""
    return name in COMPONENT_CONFIGS or WEIGHTS.fullmatch(name) is not None


def warn_of_left_out(folder: Path) -> None:
    """Name the files and folders of a pipeline folder that are not pushed because hf-ebm does not write them."""
    index = read_index(folder / INDEX)
    components = wanted_components(index, None, ())
    code = component_files(index, components)
    left_out = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in sorted(folder.iterdir())
        if path.name not in (*RECORDS, *NOT_FOR_READERS, *components) and not path.name.startswith(".")
    ]
    folders = [folder / name for name in components if (folder / name).is_dir()]
    for path in [path for component in folders for path in sorted(component.iterdir())]:
        name = path.relative_to(folder).as_posix()
        if not (of_component(path.name) or name in code or path.name in NOT_FOR_READERS or path.name.startswith(".")):
            left_out.append(name)
    if left_out:
        more = f" and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        logger.warning(
            "not pushed, as hf-ebm does not write files of these names: %s%s", ", ".join(left_out[:MOST_NAMED]), more
        )


def public_file(path: Path) -> str | bytes:
    """A file without local paths: its own path if it holds none, otherwise its new content."""
    if path.suffix not in (".json", ".jsonl"):
        return str(path)
    text, has_lines = path.read_text(encoding="utf-8"), path.suffix == ".jsonl"
    try:
        found = [json.loads(line) for line in text.splitlines()] if has_lines else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make it again, or delete it.") from error
    public = public_values(found)
    if isinstance(public, dict):
        public.pop("_name_or_path", None)  # where diffusers and transformers loaded it from
    if public == found:
        return str(path)
    lines = [json.dumps(line) + "\n" for line in public] if has_lines else [json.dumps(public, indent=2)]
    return "".join(lines).encode()


def old_files(folder: Path, files: Collection[str], there: Collection[str]) -> list[str]:
    """Paths `there`, in the repository, that earlier pushes left and the new `files` lack: they describe other weights.

    Only names that we give are returned; of weights, those of the variants of `files`.
    """
    components = wanted_components(read_index(folder / INDEX), None, ())

    variants = {weight_variant(Path(path).name) for path in files if WEIGHTS.fullmatch(Path(path).name)}

    def is_ours(path: str) -> bool:
        parent, _, name = path.rpartition("/")
        if parent in components:
            return weight_variant(name) in variants if WEIGHTS.fullmatch(name) else name in COMPONENT_CONFIGS
        return path in FACTS_ABOUT_WEIGHTS

    return sorted(path for path in there if path not in files and is_ours(path))


def check_repo_id(argument: str, value: str) -> None:
    """Raise a `ValueError` that names the `argument` unless its `value` has the form of a Hub id."""
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"{argument} must be a Hub id such as user/name, got {value!r}: {error}") from error


def with_owner(api: HfApi, name: str) -> str:
    """``"name"`` as ``"user/name"``, with the user of `api`'s token; unchanged if it has an owner."""
    return name if "/" in name else f"{api.whoami(cache=True)['name']}/{name}"


def is_private(api: HfApi, repo_id: str) -> bool | None:
    """Whether a model's repository is private; None: it does not exist, or is not visible with this token."""
    try:
        return api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return None


def check_visibility(argument: str, wanted: bool | None, found: bool | None, repo_id: str) -> None:
    """Raise a `ValueError` that names the `argument` if a repository that is there is not as `wanted`.

    The Hub itself would silently leave it unchanged, and publish what should be private.
    """
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(
            f"{argument} is for a new repository, and {repo_id} is there and {'private' if found else 'public'}; "
            "nothing was pushed. Leave that out, or change the repository first, in its settings on the Hub."
        )
