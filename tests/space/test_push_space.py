"""A pushed Space: all its files in one commit, complete enough to run by itself, by the real client over loopback."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from huggingface_hub.errors import RepositoryNotFoundError

from hf_ebm.space.push import push_space, write_space

ROOT = Path(__file__).parents[2]


class Hub(BaseHTTPRequestHandler):
    """Answers what a push asks for; remembers it in ``server.seen``."""

    def reply(self, content, status=200, headers=()):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if self.path == "/api/models/user/model/revision/main":
            self.reply({"id": "user/model", "sha": "0" * 40, "private": False, "siblings": []})
        else:
            self.reply({"error": "Repository not found"}, 404, [("X-Error-Code", "RepoNotFound")])

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.reply({"url": f"{base}/spaces/user/space", "id": "user/space"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        else:
            commit = {
                "commitUrl": f"{base}/spaces/user/space/commit/1",
                "commitOid": "1" * 40,
                "hookOutput": "",
                "success": True,
            }
            self.reply(commit)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_commit_holds_the_whole_space(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    url = push_space("user/model", "user/space", private=True, token="hf_test", endpoint=endpoint)
    assert url.endswith("/spaces/user/space")
    writes = [authorization for path, authorization, _ in hub.seen if "validate-yaml" not in path]
    assert set(writes) == {"Bearer hf_test"}

    created = json.loads(next(body for path, _, body in hub.seen if path == "/api/repos/create"))
    assert (created["type"], created["sdk"]) == ("space", "gradio")
    assert created.get("private") is True or created.get("visibility") == "private"  # by the client's version
    commits = [body for path, _, body in hub.seen if "/commit/" in path]
    assert len(commits) == 1
    lines = [json.loads(line) for line in commits[0].splitlines()]
    pushed = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }

    write_space("user/model", tmp_path / "space")
    expected = {
        path.relative_to(tmp_path / "space").as_posix(): path.read_bytes()
        for path in (tmp_path / "space").rglob("*")
        if path.is_file()
    }
    assert pushed == expected
    assert pushed["model.txt"] == b"user/model\n"
    assert {"app.py", "README.md", "requirements.txt", "hf_ebm/pipelines/pipeline_ddaebm.py"} <= set(pushed)
    assert not [path for path in pushed if "__pycache__" in path]


def test_the_spaces_header_is_the_hubs(tmp_path):
    write_space("user/model", tmp_path / "space")
    card = RepoCard.load(tmp_path / "space" / "README.md")
    header = card.data.to_dict()
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["models"] == ["user/model"]
    assert "$" not in card.content
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert header["sdk_version"] == pinned


def test_the_space_runs_the_package_it_carries(tmp_path):
    write_space("user/model", tmp_path / "space")
    assert not [path for path in (tmp_path / "space").rglob("*") if path.is_symlink()]
    code = "import hf_ebm, hf_ebm.space.limits, hf_ebm.model_cards; print(hf_ebm.__file__)"
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
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["demo"]}
    assert set((ROOT / "hf_ebm/space/template/requirements.txt").read_text().split()) == needed


def test_nothing_is_made_for_a_model_that_is_not_there(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    with pytest.raises(RepositoryNotFoundError):
        push_space("user/none", "user/space", token="hf_test", endpoint=endpoint)
    for model, space, named in ((str(tmp_path), "user/space", "folder here"), ("user/model", "a b", "--space")):
        with pytest.raises(ValueError, match=named):
            push_space(model, space, token="hf_test", endpoint=endpoint)
    assert hub.seen == []


def test_a_hub_that_cannot_be_reached_is_said_so():
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        push_space("user/model", "user/space", token="hf_test", endpoint="http://127.0.0.1:9")
