"""Pushing a pipeline: weights, configs, card, pictures, metrics and calibration in one commit, or nothing of it.

What a run folder has beside them (checkpoints, logs, all sample grids) stays here, and so do the names of folders.
Files that the repository has already are not sent again; if none has changed, there is no commit.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from hf_ebm.hub import CARD, SETTINGS, knows_its_run, public_settings, read_settings, render_card
from hf_ebm.pull import INDEX, check_weights, read_index, wanted_components
from hf_ebm.remote_code import CODE_FILE, component_files, pipeline_code

FACTS = ("*.json", "*.jsonl", "*.png", SETTINGS, CARD)  # at the top of a run folder
COMPONENT_FILES = ("*.json", "*.safetensors")


class PushError(OSError):
    """A push that failed; the repository is as it was, or has all of it. It says how to try again."""


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Push a run folder.

    Args:
        folder: It is read only.
        repo_id: Such as ``"user/name"``; made if it is not there.
        options: ``private``, ``token``, ``create_pr``, ``revision`` (a branch, made if it is not there) and
            ``commit_message``.

    Raises:
        ValueError: If the folder holds no whole pipeline, or its card lacks a value.
        PushError: If the Hub did not take it.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: it is no pipeline's folder, or its training has not ended.")
    check_weights(folder, wanted_components(read_index(folder / INDEX), None, ()), None)
    again = ["hf-ebm", "push", "--model", str(folder), "--repo-id", repo_id]
    again += ["--private"] if options.get("private") else []
    again += ["--branch", options["revision"]] if options.get("revision") else []
    again += ["--create-pr"] if options.get("create_pr") else []
    return commit_folder(folder, repo_id, again=shlex.join(again), **options)


def push_pipeline(pipeline: Any, repo_id: str, variant: str | None = None, **options: Any) -> CommitInfo:
    """Push a pipeline as it is in memory, with what is known in the run folder that it was loaded from.

    Args:
        pipeline: The pipeline.
        repo_id: Such as ``"user/name"``; made if it is not there.
        variant: Of the weights' file names.
        options: See `push_folder`.

    Raises:
        PushError: If the Hub did not take it.
    """
    source = pipeline.name_or_path  # a folder, a Hub id, or None
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if source and (Path(source) / INDEX).is_file():
            for path in [path for pattern in FACTS for path in Path(source).glob(pattern)]:
                shutil.copyfile(path, folder / path.name)
        pipeline.save_pretrained(folder, variant=variant)
        return commit_folder(folder, repo_id, again=f"pipe.push_to_hub({repo_id!r})", **options)


def commit_folder(
    folder: Path,
    repo_id: str,
    again: str,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """One commit of what readers of a pipeline folder need; see `push_folder`. `again`: how to repeat it, in words."""
    api = HfApi(token=token)
    with as_push_error(repo_id, again):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    files = repository_files(folder, repo_id)
    with as_push_error(repo_id, again):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if not knows_its_run(folder) and api.file_exists(repo_id, CARD, revision=revision):
            del files[CARD]  # what is there says more than a card of a pipeline that nothing is known of
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=commit_message or f"Upload {read_index(folder / INDEX)['_class_name']}",
            create_pr=create_pr,
            revision=revision,
        )


def repository_files(folder: Path, repo_id: str) -> dict[str, str | bytes]:
    """What is pushed of a pipeline folder: path in the repository -> file here, or content."""
    index = read_index(folder / INDEX)
    components = wanted_components(index, None, ())
    files: dict[str, str | bytes] = {}
    for pattern in (*FACTS, *(f"{name}/{end}" for name in components for end in COMPONENT_FILES)):
        files |= {path.relative_to(folder).as_posix(): str(path) for path in sorted(folder.glob(pattern))}
    if SETTINGS in files:
        files[SETTINGS] = yaml.safe_dump(public_settings(read_settings(folder)), sort_keys=False).encode()
    code = {CODE_FILE: pipeline_code(index["_class_name"]), **component_files(index, components)}
    return files | {path: text.encode() for path, text in {**code, CARD: str(render_card(folder, repo_id))}.items()}


@contextmanager
def as_push_error(repo_id: str, again: str) -> Iterator[None]:
    """Inside, what goes wrong becomes a `PushError` that says how to try again."""
    try:
        yield
    except Exception as error:  # the client's errors have no base class of their own
        reason = f"{error} {error.__cause__ or ''}".strip()
        raise PushError(
            f"the push to {repo_id!r} failed: {reason}\nThe repository has nothing of it (or, if only the answer was "
            f"lost, all of it), and nothing here was changed. `hf auth whoami` shows the login. Try again: {again}"
        ) from error
