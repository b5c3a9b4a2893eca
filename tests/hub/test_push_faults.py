"""Faults during a push: it is retried, or the repository is unchanged and the error explains how to retry."""

import pytest
from loopback_hub.client import ClientError
from loopback_hub.transfers import contents, push

from hf_ebm.hub.upload import PushError, push_errors


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("PUT /lfs/", {"fault": "cut_request"}),
        ("/preupload/", {"fault": "status", "status": 500}),
        ("/preupload/", {"fault": "status", "status": 429, "headers": {"Retry-After": "0"}}),
    ],
)
def test_a_push_is_tried_again_after_what_goes_away(hub, client, folder, repo, pattern, fault):
    (folder / "samples.png").write_bytes(repo.encode())  # a large file that the Hub does not have yet
    hub.fail(pattern, **fault)
    push(client, folder, repo)
    assert not hub.faults[0].left and hub.count(pattern) > 1
    assert len(hub.repositories[repo].history["main"]) == 2


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST .*/commit/", {"fault": "cut_request"}),
        ("POST .*/commit/", {"fault": "status", "status": 500}),
        ("PUT /lfs/", {"fault": "corrupt"}),  # damaged on its way: the checksum is wrong there
        ("/preupload/", {"fault": "status", "status": 403}),
    ],
)
def test_a_failed_push_changes_nothing_and_explains_how_to_retry(hub, client, folder, repo, pattern, fault):
    push(client, folder, repo)
    before, mine = hub.repositories[repo].files(), contents(folder)
    (folder / "samples.png").write_bytes(b"another picture of " + repo.encode())
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    hub.fail(pattern, **fault)
    with pytest.raises(ClientError, match=r"PushError: (?s:.*)Nothing here was changed.*try the same again\.$"):
        push(client, folder, repo)
    assert hub.repositories[repo].files() == before
    assert contents(folder).keys() == mine.keys()
    push(client, folder, repo)
    assert hub.repositories[repo].files()["metrics.jsonl"] == b'{"step": 2}\n'


def test_an_error_of_another_kind_is_shown_too():
    with pytest.raises(PushError, match="failed: KeyError") as raised, push_errors("a/b"):
        {}["x"]
    assert isinstance(raised.value.__cause__, KeyError)
