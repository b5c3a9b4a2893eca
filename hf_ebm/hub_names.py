"""Names of repositories that are written to: whether they can be one, and whose they are."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id


def check_repo_id(argument: str, value: str) -> None:
    """Raise a `ValueError` that names the `argument` unless its `value` has the form of a Hub id."""
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"{argument} must be a Hub id such as user/name, got {value!r}: {error}") from error


def with_owner(api: HfApi, name: str) -> str:
    """``"name"`` as ``"user/name"``, the user being whose token `api` has; with an owner already, as it is."""
    return name if "/" in name else f"{api.whoami()['name']}/{name}"
