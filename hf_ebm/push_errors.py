"""What is said of a push that failed: why, what it left on the Hub, and how to try again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_ebm.hub_names import needs_login

LOST_ANSWER = "(or {}, if only the Hub's answer was lost)"
NOT_MADE = f"Nothing was made there {LOST_ANSWER.format('an empty repository')}"
MADE_EMPTY = f"The repository was made, and has nothing of it yet {LOST_ANSWER.format('all of it')}"
AS_IT_WAS = f"The repository is as it was {LOST_ANSWER.format('has all of it')}"


class PushError(OSError):
    """A push that failed; what was there is as it was, or has all of it. It says how to try again."""


@contextmanager
def as_push_error(repo_id: str, again: str, left: str) -> Iterator[None]:
    """Inside, what goes wrong becomes a `PushError` that says what is `left` on the Hub and how to try again."""
    try:
        yield
    except Exception as error:  # the client's errors have no base class of their own
        cause = str(error.__cause__ or "")
        reason = str(error) if cause in str(error) else f"{error} {cause}".strip()
        if isinstance(error, httpx.ConnectError):
            reason = f"{reason} (is there a network?)"
        forbidden = isinstance(error, HfHubHTTPError) and error.response.status_code == 403
        then = "Once this login may write there, try again" if forbidden else "Try again"
        whole = isinstance(error, HfHubHTTPError | httpx.TransportError)  # its text says all, and is in ours
        raise PushError(
            f"the push to {repo_id!r} failed: {reason.rstrip('.')}. {needs_login(error)}\n"
            f"{left}, and nothing here was changed. {then}: {again}"
        ) from (None if whole else error)
