"""Load pipelines from a folder or the Hub: which files are fetched, and what is checked before they are loaded.

Repositories that are written to: whether a name can be one, whose it is, and who sees it.

The Hub's cache on this machine: what a pull brought into it, whether it came whole, and how it is taken back.

The client compares sizes alone, and a process can be killed before anybody has looked further: a file is trusted once
it has been verified. Of that a mark is kept in the repository's folder of the cache, beside what huggingface_hub reads.

What is said of the name of a model that is neither a folder here nor to be had from the Hub.

One pull: files of one commit of a Hub repository into the cache, verified, or nothing of it trusted.

Other processes may use the same cache at the same time. So a pull that fails takes back what is damaged, and the
branch's or tag's place, but no whole file: whoever brought it, another process may be about to read it, and the next
pull need not fetch it again. What cannot be told without the network stays too: every pull verifies all that it uses.
Who fetched the same commit at the same time may need the network once more to find it by the branch's name.

The weight files of one network's folder: their names, which of them a load reads, and how a save replaces them.

    model.safetensors                                                     one file
    model-00001-of-00002.safetensors, model.safetensors.index.json       shards and the index that names them
    model.ema.safetensors, model.ema-00001-of-00002.safetensors, model.safetensors.index.ema.json      variant "ema"

diffusers' names begin with ``diffusion_pytorch_model``. transformers prefers the single file and diffusers the index,
so a folder must not hold both for one variant.

Pulling a pipeline: which files of a Hub repository are fetched, and what a pipeline folder must be to be loaded.

Only JSON and safetensors are read, and only classes of hf_ebm, diffusers and transformers are made: a repository cannot
run code here. A pull that fails leaves the cache's revision where it was.

Weights are saved and read as safetensors only: .bin files and pickles can run code when they are read.

The small Python files of a repository, for those who load it through diffusers without naming our classes.

    DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)

needs a ``pipeline.py`` that has the class, and from the Hub also ``<component>/<library>.py`` for each component whose
class is not of diffusers or transformers. All they do is import from hf_ebm, which must be installed. Our own pipelines
need none of them, and run none but these very lines.

Configs of diffusers classes that save as JSON: numpy numbers become Python's, local paths stay out of the file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import HfApi, constants, get_token, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import HFValidationError, filter_repo_objects, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from hf_ebm.utils.files import expand_home, whole_file
from hf_ebm.utils.validation import folders_in, near_folders, python_number


def check_repo_id(argument: str, value: str) -> None:
    """Raise a `ValueError` that names the `argument` unless its `value` has the form of a Hub id."""
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"{argument} must be a Hub id such as user/name, got {value!r}: {error}") from error


def needs_login(error: BaseException) -> str:
    """What is said to who has no token that the Hub knows; empty for other errors than 401."""
    if not isinstance(error, HfHubHTTPError) or error.response.status_code != 401:
        return ""
    sent = error.response.request.headers.get("authorization")
    if os.environ.get("SPACE_ID"):  # the Hub sets it where it runs a Space, in which nobody can log in
        why = "The Hub may not know the token in this Space's secret HF_TOKEN"
        if sent is None:
            why = "This Space has no secret HF_TOKEN, and without one no private model is seen"
        return f"{why}: put a token there that may read the model, under Settings, Variables and secrets."
    if sent is None:
        return (
            "Without a login (`hf auth login`, or HF_TOKEN) no private repository is seen, and none can be pushed to."
        )
    if sent != f"Bearer {get_token()}":
        return "The Hub may not know the token that was given."
    kept = "HF_TOKEN holds a token" if os.environ.get("HF_TOKEN") else "`hf auth login` keeps one"
    return f"The Hub may not know the token that is used ({kept}): `hf auth whoami` asks it."


def with_owner(api: HfApi, name: str) -> str:
    """``"name"`` as ``"user/name"``, the user being whose token `api` has; with an owner already, as it is."""
    return name if "/" in name else f"{api.whoami(cache=True)['name']}/{name}"


def is_private(api: HfApi, repo_id: str) -> bool | None:
    """Whether a model's repository is private; None: it is not there, or not for this token."""
    try:
        return api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return None


def check_visibility(argument: str, wanted: bool | None, found: bool | None, repo_id: str) -> None:
    """Raise a `ValueError` that names the `argument` if a repository that is there is not as `wanted`.

    The Hub itself would leave it as it is, and say nothing: what was to be private would be public.
    """
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(
            f"{argument} is for a new repository, and {repo_id} is there and {'private' if found else 'public'}; "
            "nothing was pushed. Leave that out, or change the repository first, in its settings on the Hub."
        )


logger = logging.getLogger(__name__)
MARKS = ".hf_ebm_verified"  # holds a JSON of each commit: file -> its `FileIds` numbers when verified, its checksum
CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's name of a small file, the SHA-256 of a large one

FileIds = dict[Path, tuple[int, int, int]]  # file -> its inode, time and size: others once it was fetched again


def cache_folder(repo_id: str, cache_dir: str | Path | None) -> Path:
    """Where the cache keeps a repository: ``refs``, ``snapshots`` (by commit) and ``blobs``."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    return cache / f"models--{repo_id.replace('/', '--')}"


def ref_file(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Where the cache keeps the commit that a branch or tag pointed to when it was last fetched.

    Raises:
        ValueError: If the revision leads out of the cache.
    """
    revision = revision or constants.DEFAULT_REVISION
    if Path(revision).is_absolute() or ".." in Path(revision).parts:
        raise ValueError(f"revision must be the name of a branch, a tag or a commit, got {revision!r}.")
    return cache_folder(repo_id, cache_dir) / "refs" / revision


def restore_ref(ref: Path, before: bytes | None, commit: str | None) -> None:
    """Put `ref` back to what it was, if it holds the `commit` that was just written (None = any commit's name)."""
    if not ref.is_file():
        return
    found = ref.read_text(encoding="utf-8", errors="replace").strip()
    if found != commit and not (commit is None and re.fullmatch(r"[0-9a-f]{40}", found)):
        return
    if before is None:
        ref.unlink()
    else:
        ref.write_bytes(before)


def file_ids(folder: Path) -> FileIds:
    """All files below `folder`; a link has the numbers of what it leads to."""
    return {path: ids_of(path) for path in folder.rglob("*") if path.is_file()}


def ids_of(path: Path) -> tuple[int, int, int]:
    """The `FileIds` numbers of a file."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def new_files(folder: Path, before: FileIds) -> list[Path]:
    """Files below `folder` that were not there `before`, or were fetched again."""
    return [path for path, numbers in file_ids(folder).items() if before.get(path) != numbers]


def known_checksums(root: Path, paths: Collection[Path]) -> dict[str, str]:
    """Checksums of files of a commit that need no network, by name.

    Where the cache has links, a file's checksum is the name of its content; where it has none, as on a file system
    without them, a file that was verified before has it in its mark.
    """
    marks, known = read_marks(root), {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        checksum = Path(os.readlink(path)).name if path.is_symlink() else (marks.get(name) or [None])[-1]
        if isinstance(checksum, str) and CHECKSUM.fullmatch(checksum):
            known[name] = checksum
    return known


def listed_checksums(
    repo_id: str, root: Path, names: list[str], token: str | bool | None, offline: bool
) -> dict[str, str]:
    """Checksums of files of a commit from the repository's list, by name; the other arguments: `verify_checksums`.

    Raises:
        OSError: If the Hub cannot be asked, or must not; it says what to do.
    """
    advice = (
        f"{names[0]} cannot be verified: it was not before, and this cache has no links, whose names would be the "
        f"checksums. Pull once with the network and without local_files_only, or give the folder {root} itself if you "
        "trust what is in it"
    )
    if offline:
        raise OSError(f"{advice}.")
    try:
        entries = HfApi(token=token).get_paths_info(repo_id, names, revision=root.name)
    except Exception as error:  # the client's errors have no base class of their own
        raise OSError(f"{advice}. The Hub could not be asked: {error}") from error
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {entry.path: entry.blob_id if entry.lfs is None else entry.lfs.sha256 for entry in files}


def remove_damaged(root: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """Take files of a commit out of the cache that have not the checksums that are `expected`, by name.

    One that somebody else replaces meanwhile is left: it is not what was read.

    Returns:
        The checksums that the damaged files had.
    """
    damaged, numbers = {}, {}
    for name, checksum in expected.items():
        numbers[name] = ids_of(root / name)
        if (found := file_checksum(root / name, len(checksum) == 64)) != checksum:
            damaged[name] = found
    for name in damaged:  # after all were read: two files may share their content
        if (root / name).is_file() and ids_of(root / name) == numbers[name]:
            remove_content(root, root / name)
    return damaged


def verify_checksums(
    repo_id: str, root: Path, paths: Collection[Path], token: str | bool | None, offline: bool = False
) -> None:
    """Compare files of a commit with their checksums, unless they were verified before and are the same since.

    Args:
        repo_id: The repository.
        root: Folder of the commit in the cache; its name is the commit.
        paths: Files in it.
        token: To read the repository's list, for files without `known_checksums`.
        offline: Whether the Hub must not be asked for it.

    Raises:
        OSError: It names the first file that is damaged, or that cannot be verified. All damaged ones were removed.
    """
    marks, now = read_marks(root), file_ids(root)
    local = {path.relative_to(root).as_posix(): path for path in paths}
    pending = {name: path for name, path in local.items() if (marks.get(name) or [])[:3] != list(now[path])}
    if not pending:
        return
    expected = known_checksums(root, pending.values())
    if unknown := [name for name in pending if name not in expected]:
        expected |= listed_checksums(repo_id, root, unknown, token, offline)
    damaged = remove_damaged(root, expected)
    for name, found in damaged.items():
        raise OSError(f"{name} came damaged (checksum {found}, not {expected[name]}); it was removed, try again.")
    write_marks(root, marks | {name: [*now[pending[name]], checksum] for name, checksum in expected.items()})


def file_checksum(path: Path, large: bool) -> str:
    """The SHA-256 of a large file; of a small one git's name of its content."""
    checksum = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum.update(block)
    return checksum.hexdigest()


def remove_content(root: Path, path: Path) -> None:
    """Take a file of a commit out of the cache, its content, and all links that lead to it."""
    content = path.resolve()
    links = [other for other in root.parents[1].rglob("*") if other.is_symlink() and other.resolve() == content]
    for found in {content, path, *links}:
        found.unlink(missing_ok=True)


def marks_file(root: Path) -> Path:
    """Where the marks of a commit are kept; `root` is its folder in the cache."""
    return root.parents[1] / MARKS / f"{root.name}.json"


def read_marks(root: Path) -> dict[str, list[Any]]:
    """The marks of a commit; none where they are not there or damaged: then files are verified again."""
    try:
        marks = json.loads(marks_file(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def write_marks(root: Path, marks: dict[str, list[Any]]) -> None:
    """Keep the marks of a commit; in a cache that cannot be written files are verified every time."""
    try:
        with whole_file(marks_file(root)) as path:
            path.write_text(json.dumps(marks), encoding="utf-8")
    except OSError as error:
        logger.info("%s cannot be written (%s): the next pull verifies the files again.", marks_file(root), error)


logger = logging.getLogger(__name__)
MOST_NAMED = 5  # folders in a message


def check_hub_id(name: str) -> None:
    """Raise an `OSError` if `name`, which is no folder here, can be no Hub id: then the Hub need not be asked."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = "and can be no Hub id, which is written as user/name; check the path."
        raise OSError(f"{name!r} is no folder here, {reason}{meant(name)}") from error


def warn_of_near_folder(name: str) -> None:
    """Say that the Hub is asked where a folder here may have been meant: without a network its silence takes time."""
    if meant(name):
        logger.warning("%r is no folder here; the Hub is asked for it.", name)


def not_to_be_had(name: str, error: Exception) -> OSError:
    """The error for a name that could not be had from the Hub, and why, from the client's `error`."""
    reason = str(error)
    if isinstance(error, LocalEntryNotFoundError) and is_offline_mode():
        reason = "HF_HUB_OFFLINE is set, and the cache does not have all of it; pull it once with the network"
    elif isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:  # it has asked, and looked here
        reason = (
            f"the Hub could not be reached (is there a network?), and the cache does not have all of it: "
            f"{error.__cause__}. With HF_HUB_OFFLINE=1 the cache alone is asked, at once"
        )
    reason = f"{reason.rstrip('.')}. {needs_login(error)}".rstrip()
    if hint := meant(name):  # first, as the Hub's answer to a name that it does not know is long
        return OSError(f"{name!r} is no folder here.{hint} It could not be had from the Hub either: {reason}")
    return OSError(f"{name!r} is no folder here, and could not be had from the Hub: {reason}")


def meant(name: str) -> str:
    """A sentence with the folders here that may have been meant, or the models beside; empty where there are none."""
    parent = Path(name).parent
    near = near_folders(Path(name))
    if not near and not parent.is_dir():
        near = [str(found) for other in near_folders(parent) if (found := Path(other, Path(name).name)).is_dir()]
    if near:
        return f" Did you mean {', '.join(near)}?"
    beside = [folder for folder in folders_in(parent) if is_model(parent / folder)] if "/" in name else []
    more = " and others" if len(beside) > MOST_NAMED else ""
    return f" The folder {parent} here has {', '.join(beside[:MOST_NAMED])}{more}." if beside else ""


def is_model(folder: Path) -> bool:
    """Whether a pipeline or a model was saved there, by the file that either has."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json"))


logger = logging.getLogger(__name__)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
LOST = {  # file beside a pipeline -> what there is without it
    "calibration.json": "no p-values and verdicts",
    "settings.yaml": "no padding as in training",
}


def check_subfolder(subfolder: str | None) -> str:
    """A subfolder of a repository as a prefix of its files' names: empty, or with a "/" at the end.

    Raises:
        ValueError: If it leads out of the repository.
    """
    if subfolder is not None and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise ValueError(f"subfolder must lie inside the repository, got {subfolder!r}.")
    return f"{subfolder.strip('/')}/" if subfolder else ""


@dataclass
class CommitPull:
    """The files of one commit that are being fetched.

    Attributes:
        repo_id: Of the repository.
        root: Folder of the commit in the cache.
        options: `HUB_OPTIONS`; the revision is the commit, though somebody pushes meanwhile.
        patterns: What was asked for.
    """

    repo_id: str
    root: Path
    options: dict[str, Any]
    patterns: list[str]

    def fetch(self, patterns: Collection[str], beside: Collection[str] = ()) -> None:
        """Fetch the files that the patterns name, where they are there.

        Args:
            patterns: Of files that are needed.
            beside: Of files that a pipeline can be without: offline those that the cache lacks are left out, as an
                earlier pull of another kind need not have brought them.
        """
        self.patterns += [*patterns, *beside]
        if not patterns and not beside:
            return
        try:
            snapshot_download(self.repo_id, allow_patterns=[*patterns, *beside], **self.options)
        except LocalEntryNotFoundError:
            if not self.offline or not beside:
                raise
            self.fetch(patterns)
            lacking = [Path(name).name for name in beside if not (self.root / name).is_file()]
            logger.warning(
                "offline: the model %s is in the cache, but not all that may lie beside it; %s. A run with the network "
                "brings what there is.",
                self.repo_id,
                ", ".join(f"without {name} {LOST.get(name, 'less is told of the model')}" for name in lacking),
            )

    @property
    def offline(self) -> bool:
        """Whether the Hub must not be asked: the caller's ``local_files_only``, or ``HF_HUB_OFFLINE``."""
        return bool(self.options.get("local_files_only")) or is_offline_mode()

    def verify(self) -> None:
        """Compare all that was asked for with its checksums, whoever brought it into the cache; raises an OSError."""
        here = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        paths = [self.root / name for name in filter_repo_objects(here, allow_patterns=self.patterns)]
        verify_checksums(self.repo_id, self.root, paths, self.options.get("token"), self.offline)


@contextmanager
def pull_commit(repo_id: str, first_file: str, options: dict[str, Any]) -> Iterator[CommitPull]:
    """Inside, a pull that has fetched `first_file`; whatever goes wrong takes back what came damaged.

    Args:
        repo_id: Such as ``"user/name"``.
        first_file: A file that the repository must have.
        options: `HUB_OPTIONS` of huggingface_hub.

    Raises:
        OSError: If the repository, the revision, the file or the network is not there, or a file came damaged; for a
            name that can be no Hub id without asking the Hub.
        ValueError: If the revision cannot be one, or the body raised it.
    """
    check_hub_id(repo_id)
    warn_of_near_folder(repo_id)
    ref = ref_file(repo_id, options.get("revision"), options.get("cache_dir"))
    ref_before = ref.read_bytes() if ref.is_file() else None
    files_before = file_ids(cache_folder(repo_id, options.get("cache_dir")))
    root: Path | None = None
    try:
        root = Path(hf_hub_download(repo_id, first_file, **options)).parents[len(Path(first_file).parts) - 1]
        yield CommitPull(repo_id, root, {**options, "revision": root.name}, [first_file])
    except BaseException as error:
        if root is not None:
            remove_damaged(root, known_checksums(root, new_files(root, files_before)))
        restore_ref(ref, ref_before, None if root is None else root.name)
        if isinstance(error, Exception) and not isinstance(error, ValueError):  # the client's have no base of their own
            raise not_to_be_had(repo_id, error) from error
        raise  # what is there cannot be used


WEIGHT_STEMS = ("model", "diffusion_pytorch_model")  # of transformers and diffusers
WEIGHTS = re.compile(  # weight files and their indices, with their variant
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors(?:\.index(?:\.(?P<listed>[\w-]+))?\.json)?"
)


def weight_variant(name: str) -> str | None:
    """The variant of a file whose name `WEIGHTS` matches; None = without one."""
    match = WEIGHTS.fullmatch(name)
    return None if match is None else match["variant"] or match["listed"]


@contextmanager
def replacing_weights(folder: str | Path, variant: str | None) -> Iterator[str]:
    """A temporary folder to save a network in; at the end its files replace those of `folder`.

    Weight files of the same variant that the new save does not have (shards, an index, a single file) are deleted.
    Those of other variants stay, which the libraries' own ``save_pretrained`` does not guarantee. A save that fails
    leaves `folder` as it was.

    Args:
        folder: The network's folder; made if it is not there.
        variant: The variant that is saved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".tmp_save_", dir=folder) as temporary:
        yield temporary
        saved = {path.name: path for path in Path(temporary).iterdir()}
        if any(WEIGHTS.fullmatch(name) for name in saved):
            for path in folder.iterdir():
                stale = WEIGHTS.fullmatch(path.name) and weight_variant(path.name) == variant
                if stale and path.name not in saved:
                    path.unlink()
        for name, path in saved.items():
            path.replace(folder / name)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors that loading `variant` from a network's `folder` reads; empty if there are none.

    Raises:
        ValueError: If an index is damaged or names a shard that is missing, if shards have no index, or if there is a
            single file beside an index.
    """
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
    """The shards that an index names, each beside it, sorted.

    Raises:
        ValueError: If the index is not valid, or a name leads out of its folder.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid index of shards ({error!r}); save or download it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} must name shards beside it, got {name!r}; save or download it again.")
    return [index.parent / name for name in sorted(names)]


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


def require_safetensors(kwargs: dict[str, Any]) -> None:
    """Set ``use_safetensors=True`` in the keyword arguments of a ``from_pretrained``.

    Raises:
        ValueError: If the caller wants other weights, which can run code when they are read.
    """
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors must be True: .bin and pickles, which can run code, are not read.")
    kwargs["use_safetensors"] = True


def require_safe_serialization(safe_serialization: bool, use_flashpack: bool) -> None:
    """Raise a `ValueError` if a ``save_pretrained`` is asked for a format that is never read here."""
    if not safe_serialization:
        raise ValueError("safe_serialization must be True: models are saved as safetensors only.")
    if use_flashpack:
        raise ValueError("use_flashpack must be False: models are saved as safetensors only.")


CODE_FILE = "pipeline.py"
COMMENT = "# For diffusers' trust_remote_code=True: hf-ebm, which must be installed, has the code.\n"


def pipeline_code(class_name: str) -> str:
    """``pipeline.py`` of a pipeline.

    It has one name for all: diffusers keeps one module for all folders and wants to find one class in it.
    """
    return f"{COMMENT}from hf_ebm import {class_name} as Pipeline  # noqa: F401\n"


def component_code(library: str, class_name: str) -> str:
    """A component's ``<library>.py``."""
    return f"{COMMENT}from {library} import {class_name}  # noqa: F401\n"


def component_files(index: dict[str, Any], components: Collection[str]) -> dict[str, str]:
    """Path and content of the files of `components` whose classes are ours; `index` is a checked index."""
    return {
        f"{name}/{index[name][0]}.py": component_code(*index[name])
        for name in components
        if index[name][0].startswith("hf_ebm.")
    }


def holds_own_code(folder: Path, index: dict[str, Any], components: Collection[str]) -> bool:
    """Whether all code in `folder` that loading `components` would run is, to the letter, what we write there.

    Beside the index only `CODE_FILE` may lie, which is not run: diffusers runs others, by names of its own.
    """
    ours = component_files(index, components)
    found = [f"{name}/{index[name][0]}.py" for name in components if (folder / name / f"{index[name][0]}.py").is_file()]
    if not {path.name for path in folder.glob("*.py")} <= {CODE_FILE}:
        return False
    return bool(found) and all((folder / path).read_text(encoding="utf-8") == ours.get(path) for path in found)


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
