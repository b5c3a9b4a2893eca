"""Names of repositories that are written to: whether they can be one, and whose they are."""

from __future__ import annotations

import os

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id


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
    kept = "HF_TOKEN holds a token" if os.environ.get("HF_TOKEN") else "`hf auth login` keeps one"
    if get_token() is None:
        return (
            "Without a login (`hf auth login`, or HF_TOKEN) no private repository is seen, and none can be pushed to."
        )
    return f"The Hub may not know the token that is used ({kept}): `hf auth whoami` asks it."


def with_owner(api: HfApi, name: str) -> str:
    """``"name"`` as ``"user/name"``, the user being whose token `api` has; with an owner already, as it is."""
    return name if "/" in name else f"{api.whoami()['name']}/{name}"
