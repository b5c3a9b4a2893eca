"""A pushed Space: all files in one commit, complete enough to run on its own, by the real client over loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from loopback_hub.client import ClientError
from loopback_hub.repository import Commit, Repository

from hf_ebm.demo.push import package_files, push_space, write_space

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's own need there

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(hub_server):
    """A Hub with alice's model alone."""
    hub_server.reset()
    hub_server.repositories = {"alice/model": Repository()}
    hub_server.repositories["alice/model"].commit("main", Commit("a model"))
    return hub_server


def test_one_commit_holds_the_whole_space(hub, client, tmp_path):
    url = client(
        "from hf_ebm.demo.push import push_space\nresult = push_space('alice/model', 'alice/space', private=True)"
    )
    assert url.endswith("alice/space")
    space = hub.repositories["alice/space"]
    assert (space.kind, space.sdk, space.private) == ("space", "gradio", True)
    assert len(space.history["main"]) == 2  # the Hub's first commit of a new repository, and ours

    write_space("alice/model", tmp_path / "space")
    expected = {
        path.relative_to(tmp_path / "space").as_posix(): path.read_bytes()
        for path in (tmp_path / "space").rglob("*")
        if path.is_file()
    }
    pushed = {path: content for path, content in space.files().items() if path != ".gitattributes"}
    assert pushed == expected
    assert pushed["model.txt"] == b"alice/model\n"
    assert {"app.py", "README.md", "requirements.txt", "hf_ebm/pipelines/pipeline_ddaebm.py"} <= set(pushed)
    assert not [path for path in pushed if "__pycache__" in path]

    pulled = client(
        "from huggingface_hub import snapshot_download\n"
        "result = snapshot_download('alice/space', repo_type='space', local_dir=folder)",
        folder=str(tmp_path / "pulled"),
    )
    assert all((Path(pulled) / path).read_bytes() == content for path, content in expected.items())


@pytest.mark.parametrize("in_git", [True, False])
def test_only_the_packages_own_files_are_copied(tmp_path, in_git, caplog):
    """Of a clone, those that git tracks; without git those that an installed package has."""
    clone, package = tmp_path / "clone", tmp_path / "clone" / "hf_ebm"
    own = [
        "__init__.py",
        "demo/template/app.py",
        "evaluation/x.safetensors",
        "model_cards/ddaebm.md",
        "training/run.py",
    ]
    secrets = [".env", "token.txt", "id_rsa", "keys.json", "demo/template/.env", ".cache/x.py", "training/a.png"]
    for name in [*own, *secrets]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x")
    (package / "training").rename(clone / "training")
    (package / "training").symlink_to("../training")
    if in_git:
        added = ["training/run.py", "hf_ebm/training", "hf_ebm/id_rsa", *(f"hf_ebm/{name}" for name in own[:-1])]
        for arguments in (["init", "-q"], ["add", *added]):
            subprocess.run(["git", *arguments], cwd=clone, check=True)
        (package / "my_keys.py").write_text("KEY = 1")
    assert package_files(package) == own
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["my_keys.py"] * in_git


def test_the_spaces_header_is_the_hubs(tmp_path):
    write_space("user/model", tmp_path / "space")
    card = RepoCard.load(tmp_path / "space" / "README.md")
    header = card.data.to_dict()
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["models"] == ["user/model"]
    assert "license" not in header
    assert "$" not in card.content
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert header["sdk_version"] == pinned


def test_the_space_runs_the_package_it_carries(tmp_path):
    write_space("user/model", tmp_path / "space")
    assert not [path for path in (tmp_path / "space").rglob("*") if path.is_symlink()]
    code = "import hf_ebm, hf_ebm.demo.limits, hf_ebm.model_cards; print(hf_ebm.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "space",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / "space" / "hf_ebm" / "__init__.py")


def test_the_space_needs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["demo"]}
    assert set((ROOT / "hf_ebm/demo/template/requirements.txt").read_text().split()) == needed


def test_nothing_is_made_for_a_model_that_is_not_there(hub, tmp_path):
    with pytest.raises(OSError, match=r"--model alice/none is not on the Hub.*push it first with hf-ebm push"):
        push_space("alice/none", "alice/space", token="alice-token", endpoint=hub.url)
    wrong = ((str(tmp_path), "alice/space", "folder here"), ("alice/model", "a b", "--space"))
    for model, space, named in wrong:
        with pytest.raises(ValueError, match=named):
            push_space(model, space, token="alice-token", endpoint=hub.url)
    assert set(hub.repositories) == {"alice/model"} and not hub.count("POST")


@pytest.mark.parametrize("private", [False, True])
def test_a_private_models_space_reports_that_it_needs_a_token(hub, client, private):
    hub.repositories["alice/model"].private = private
    printed = client("""
import logging
import hf_ebm.demo.push as push
result = []
push.logger.handlers = [logging.Handler()]
push.logger.handlers[0].emit = lambda record: result.append(record.getMessage())
push.push_space("alice/model", "alice/space")
""")
    assert [text.partition(",")[0] for text in printed] == (["alice/model is private"] if private else [])
    assert all("secret HF_TOKEN" in text for text in printed)
    assert hub.repositories["alice/space"].private == private


def test_a_space_without_an_owner_is_the_users(hub, client):
    url = client("from hf_ebm.demo.push import push_space\nresult = push_space('model', 'mine')")
    assert url.endswith("alice/mine") and "app.py" in hub.repositories["alice/mine"].files()


def test_an_unreachable_hub_is_reported():
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        push_space("user/model", "user/space", token="hf_test", endpoint="http://127.0.0.1:9")


def test_a_space_needs_a_login(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OSError, match=r"the Space alice/space was neither made nor renewed: (?s:.*)401"):
        push_space("alice/model", "alice/space", token="hf_wrong", endpoint=hub.url)
    assert set(hub.repositories) == {"alice/model"}


def test_a_space_that_may_not_see_its_model_ends_with_the_hubs_answer(hub, client, tmp_path):
    hub.repositories["alice/model"].private = True
    write_space("alice/model", tmp_path / "space")
    code = """
import os, runpy
token = os.environ.pop("HF_TOKEN")
os.environ["SPACE_ID"] = "alice/space"
try:
    runpy.run_path(app, run_name="__main__")
finally:
    os.environ["HF_TOKEN"] = token
    del os.environ["SPACE_ID"]
"""
    said = (
        "SystemExit: hf-ebm: error: 'alice/model' is not a local folder, and could not be fetched from the Hub: .*401"
    )
    with pytest.raises(ClientError, match=said):
        client(code, app=str(tmp_path / "space" / "app.py"))
