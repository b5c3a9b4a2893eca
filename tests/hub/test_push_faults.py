"""Faults on the way up: the push is tried again, or the repository is as before and the error says how to try again."""

import pytest
from loopback_hub.client import ClientError
from loopback_hub.transfers import contents, push

from hf_ebm.hub.upload import PushError, as_push_error


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
def test_a_push_that_fails_changes_nothing_and_says_how_to_try_again(hub, client, folder, repo, pattern, fault):
    push(client, folder, repo)
    before, mine = hub.repositories[repo].files(), contents(folder)
    (folder / "samples.png").write_bytes(b"another picture of " + repo.encode())
    (folder / "metrics.jsonl").write_text('{"step": 2}\n')
    hub.fail(pattern, **fault)
    again = "Once this login may write there, try again" if fault.get("status") == 403 else "Try again"
    left = r"The repository is as it was \(or has all of it, .*\), and nothing here was changed"
    said = rf"PushError: (?s:.*)\n{left}\. {again}: hf-ebm push --model {folder} --repo-id {repo}$"
    with pytest.raises(ClientError, match=said):
        push(client, folder, repo)
    assert hub.repositories[repo].files() == before
    assert contents(folder).keys() == mine.keys()
    push(client, folder, repo)
    assert hub.repositories[repo].files()["metrics.jsonl"] == b'{"step": 2}\n'


def test_the_command_to_try_again_has_all_options_but_the_token(hub, client, folder, repo):
    for options, expected in (
        ({"private": True, "commit_message": "my words"}, "--private --message 'my words'"),
        ({"private": False, "revision": "try", "create_pr": True}, "--no-private --branch try --create-pr"),
    ):
        with pytest.raises(ClientError, match=rf"--repo-id {repo} {expected}$"):
            push(client, folder, repo, token="bob-token", **options)
    code = "import hf_ebm; hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo, **options)"
    with pytest.raises(ClientError, match=r"push_to_hub\('.*', variant='fp16', private=True\)$"):
        options = {"private": True, "variant": "fp16", "token": "bob-token"}
        client(code, folder=str(folder), repo=repo, options=options)


def test_of_a_repository_that_was_not_there_nothing_is_said_to_be_as_it_was(hub, client, folder, repo):
    code = """
import traceback, hf_ebm
try:
    hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo, private=True)
except OSError as error:
    result = ["".join(traceback.format_exception(error)), str(error)]
"""
    for name, pattern, left in (
        ("bob/model", None, "Nothing was made there (or an empty repository, if only the Hub's answer was lost)"),
        (repo, "POST .*/commit/", "The repository was made, and has nothing of it yet (or all of it, if only"),
    ):
        if pattern:
            hub.fail(pattern, "status", status=403)
        shown, said = client(code, folder=str(folder), repo=name)
        assert left in said and "403" in said and "as it was" not in said
        assert shown.count("Traceback") == 1  # the Hub's own words are in ours
    assert "bob/model" not in hub.repositories and set(hub.repositories[repo].files()) == {".gitattributes"}


def test_an_error_of_another_kind_is_shown_too():
    with pytest.raises(PushError, match="failed: 'x'") as raised, as_push_error("a/b", "again", "Nothing was made"):
        {}["x"]
    assert isinstance(raised.value.__cause__, KeyError)
