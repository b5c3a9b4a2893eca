"""Repositories that are written to: whether a name can be one, whose it is, and who sees it."""

from __future__ import annotations

import os

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
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
