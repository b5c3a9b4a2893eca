"""What is said of the name of a model that is neither a folder here nor to be had from the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_ebm.hub_names import needs_login
from hf_ebm.near_names import folders_in, near_folders

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
