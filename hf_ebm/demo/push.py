"""Create a Space, a page on the Hub that runs the demo of a pushed model.

The Space carries the package itself beside the template: it runs the code it was made with, and installs nothing by a
name that this project does not hold. Of the package's folder only its own files are copied (`package_files`), so that
nothing else that lies in a clone ends up on the Hub.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from string import Template

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

import hf_ebm
from hf_ebm.hub.upload import check_repo_id, with_owner

logger = logging.getLogger(__name__)
TEMPLATE = Path(__file__).parent / "template"
PACKAGE_FILES = (  # Python and the package data of pyproject.toml
    "*.py",
    "training/configs/*.yaml",
    "model_cards/*.md",
    "evaluation/*.safetensors",
    "demo/template/README.md",
    "demo/template/requirements.txt",
)
MOST_NAMED = 10  # files that a warning names
SDK_VERSION = "6.31.0"  # of gradio: the version that the demo was tested with


def write_space(model: str, folder: Path) -> None:
    """Write all files of the Space for a pushed model into `folder`, which must not exist."""
    package = Path(hf_ebm.__file__).parent
    files = package_files(package)
    folder.mkdir()
    for name in files:
        target = folder / "hf_ebm" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / name, target)  # links become files
        if (package / name).parent == TEMPLATE:
            shutil.copyfile(package / name, folder / target.name)
    values = {"title": f"{model.split('/')[-1]} demo", "model": model, "sdk_version": SDK_VERSION}
    card = Template((folder / "README.md").read_text(encoding="utf-8")).substitute(values)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "model.txt").write_text(f"{model}\n", encoding="utf-8")


def package_files(package: Path) -> list[str]:
    """The package's own files, relative to its folder: those of `PACKAGE_FILES`, and in a git clone only tracked ones.

    Python files and data that a clone has and git does not track are named in a warning.
    """
    walk = os.walk(package, followlinks=True)
    names = sorted(Path(folder, name).relative_to(package).as_posix() for folder, _, files in walk for name in files)
    names = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
    names = [name for name in names if any(fnmatch(name, pattern) for pattern in PACKAGE_FILES)]
    tracked = tracked_files(package)
    untracked = [name for name in names if tracked and (package / name).resolve() not in tracked]
    if untracked:
        more = f" and {len(untracked) - MOST_NAMED} more" if len(untracked) > MOST_NAMED else ""
        shown = ", ".join(untracked[:MOST_NAMED])
        logger.warning("not copied into the Space, as git does not track them (git add does): %s%s", shown, more)
    return [name for name in names if name not in untracked]


def tracked_files(package: Path) -> set[Path]:
    """All files that git tracks in the clone that holds the package; empty if there is no clone, or no git."""
    root = package.resolve().parent
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return set()
    tracked = {(root / name).resolve() for name in os.fsdecode(listed).split("\0") if name}
    return tracked if (package / "__init__.py").resolve() in tracked else set()  # a package installed in a clone


def push_space(
    model: str, space: str, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Make or renew a Space for a pushed model, in one commit.

    `model` and `space` are Hub ids, whose owner is by default the user; the model must be on the Hub already. A new
    Space is `private` if it is asked for or the model is. The commit is whole or not there, so that a call which failed
    can be tried again. Returns the Space's URL.
    """
    if Path(model).is_dir():
        raise ValueError(
            f"--model must be the Hub id of a pushed model, and {model} is a folder here, which a Space cannot see; "
            "push it first with hf-ebm push."
        )
    check_repo_id("--model", model)
    check_repo_id("--space", space)
    api = HfApi(endpoint=endpoint, token=token)
    try:
        model, space = with_owner(api, model), with_owner(api, space)
        found = api.model_info(model, revision="main")
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "space")
            write_space(model, folder)
            visibility = private or found.private or None  # None: the owner's own default
            url = api.create_repo(space, repo_type="space", space_sdk="gradio", private=visibility, exist_ok=True)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
            # create_commit, as upload_folder may make several commits, and a Space restarts after each
            api.create_commit(space, operations, commit_message=f"The demo of {model} with hf-ebm", repo_type="space")
        if found.private:
            logger.warning(
                "%s is private, and a new Space of it is, too; in the settings of the Space add the secret HF_TOKEN, a "
                "token that may read the model.",
                model,
            )
    except RepositoryNotFoundError as error:
        raise OSError(
            f"--model {model} is not on the Hub, or not for this login: push it first with hf-ebm push. {error}"
        ) from error
    except HfHubHTTPError as error:
        raise OSError(f"the Space {space} was neither made nor renewed: {error}") from error
    except httpx.TransportError as error:
        raise ConnectionError(f"the Hub at {api.endpoint} cannot be reached ({error}); try again.") from error
    return str(url)
