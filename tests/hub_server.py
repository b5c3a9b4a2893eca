"""A small Hub for the tests: the requests of the real huggingface_hub client, over HTTP on the loopback interface.

Repositories have branches, commits, pull requests, large files (git LFS) and an owner; a commit is taken whole or not.
``hub.fail(...)`` makes the next requests that match go wrong in one of the `FAULTS`; ``hub.log`` has all requests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

FAULTS = ("status", "cut_request", "cut_answer", "corrupt", "short")
USERS = {"alice-token": "alice", "bob-token": "bob"}
LFS_SUFFIXES = (".safetensors", ".png", ".bin")


def blob_id(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    """One state of a repository: path -> content, and whether it is kept as a large file."""

    message: str
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)


@dataclass
class Repository:
    """Branches point at commits; a commit is named by what it holds and how many came before it."""

    private: bool = False
    kind: str = "model"
    sdk: str | None = None  # of a Space
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)  # branch -> commits, oldest first

    def commit(self, branch: str, commit: Commit) -> str:
        listing = [f"{len(self.commits)}", *(f"{path} {blob_id(data)}" for path, data in sorted(commit.files.items()))]
        sha = hashlib.sha1("\n".join(listing).encode()).hexdigest()
        self.commits[sha] = commit
        self.branches[branch] = sha
        self.history.setdefault(branch, []).append(sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)].files


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class Hub(ThreadingHTTPServer):
    """Start with ``with Hub() as hub:``; its address is ``hub.url``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # sha256 -> content
        self.log: list[str] = []  # "METHOD /path"
        self.faults: list[dict[str, Any]] = []
        self.connections: list[socket.socket] = []

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone: open connections end, new ones are refused."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections = []

    def start_again(self) -> None:
        """Be back, at the same address."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.__enter__()

    def fail(self, pattern: str, fault: str, times: int = 1, status: int = 500, headers: Any = None) -> None:
        """Make the next `times` requests whose "METHOD /path" matches `pattern` go wrong."""
        assert fault in FAULTS
        self.faults.append(
            {"pattern": re.compile(pattern), "fault": fault, "left": times, "status": status, "headers": headers or {}}
        )

    def reset(self) -> None:
        """Forget faults and log."""
        self.faults, self.log = [], []

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {path}"
        self.server.log.append(line)
        self.fault = next((f for f in self.server.faults if f["left"] and f["pattern"].search(line)), None)
        if self.fault is not None:
            self.fault["left"] -= 1
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault is not None and self.fault["fault"] == "cut_request":
            self.rfile.read(length // 2)
            self.cut()
            return
        self.body = self.rfile.read(length)
        if self.fault is not None and self.fault["fault"] == "status":
            self.answer(self.fault["status"], b'{"error": "as the test wants it"}', **self.fault["headers"])
            return
        try:
            self.route(path)
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer(refusal.status, json.dumps({"error": refusal.message}).encode(), **headers)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (http.server's names)

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        """Send `content`, or what a fault makes of it."""
        fault = self.fault["fault"] if self.fault is not None else None
        if fault == "short":
            content = content[:-1]
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "cut_answer":
            content = content[: len(content) // 2]
        self.wfile.write(content)
        if fault == "cut_answer":
            self.cut()

    def cut(self) -> None:
        """End the connection here and now."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode())

    def user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        name = USERS.get(header.removeprefix("Bearer "))
        if name is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return name

    def repository(self, name: str, write: bool = False) -> Repository:
        user, repository = self.user(), self.server.repositories.get(name)
        owns = user == name.split("/")[0]
        if repository is None or (repository.private and not owns):
            raise RefusalError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and not owns:
            raise RefusalError(401 if user is None else 403, "You have no right to write here")
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise RefusalError(404, "Invalid rev id", "RevisionNotFound")
        return sha

    def route(self, path: str) -> None:
        path = re.sub(r"^/api/spaces/", "/api/models/", re.sub(r"^/spaces/", "/", path))  # one namespace for both
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match is not None:
                method(self, **match.groupdict())
                return
        raise RefusalError(404, f"this Hub does not know {self.command} {path}")

    # what the client asks for

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        self.answer_json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        user, values = self.user(), json.loads(self.body)
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        if values.get("organization") not in (None, user):
            raise RefusalError(403, f"You don't have the rights to create a model under {values['organization']!r}")
        name = f"{user}/{values['name']}"
        exists = name in self.server.repositories
        if not exists:
            private, kind = values.get("visibility") == "private", values.get("type", "model")
            self.server.repositories[name] = Repository(private, kind, values.get("sdk"))
            self.server.repositories[name].commit("main", Commit("initial commit", {".gitattributes": b""}))
        self.answer_json({"url": f"{self.server.url}/{name}", "id": name}, 409 if exists else 200)

    def validate_yaml(self) -> None:
        errors = card_errors(json.loads(self.body)["content"])
        self.answer_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if branch in repository.branches:
            raise RefusalError(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        repository.history[branch] = list(repository.history["main"])
        self.answer_json({})

    def preupload(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        commit = repository.commits[self.commit_of(repository, revision)]
        answers = []
        for item in json.loads(self.body)["files"]:
            path, large = item["path"], item["path"].endswith(LFS_SUFFIXES)
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if path in commit.files:
                data = commit.files[path]
                answers[-1]["oid"] = hashlib.sha256(data).hexdigest() if large else blob_id(data)
        self.answer_json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self.repository(name, write=True)
        answers = []
        for item in json.loads(self.body)["objects"]:
            answers.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in self.server.large_files:
                answers[-1]["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self.answer_json({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str) -> None:
        body = self.body
        if self.fault is not None and self.fault["fault"] == "corrupt":  # damaged on its way here
            body = bytes([body[0] ^ 1]) + body[1:]
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(422, "The checksum does not match the content")
        self.server.large_files[oid] = body
        self.answer(200, b"")

    def commit(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        parent = repository.commits[self.commit_of(repository, revision)]
        lines = [json.loads(line) for line in self.body.splitlines()]
        new = Commit(lines[0]["value"]["summary"], dict(parent.files), set(parent.large))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                new.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large_files:
                    raise RefusalError(422, f"{value['path']} was never uploaded")
                new.files[value["path"]] = self.server.large_files[value["oid"]]
                new.large.add(value["path"])
            elif line["key"] == "deletedFile":
                del new.files[value["path"]]
                new.large.discard(value["path"])
            else:
                raise RefusalError(400, f"this Hub does not know {line['key']}")
        requests = sum(branch.startswith("refs/pr/") for branch in repository.branches)
        is_request = self.query.get("create_pr") == ["1"]
        branch = f"refs/pr/{requests + 1}" if is_request else revision
        sha = repository.commit(branch, new)
        url = f"{self.server.url}/{name}"
        answer = {"success": True, "commitUrl": f"{url}/commit/{sha}", "commitOid": sha}
        self.answer_json(answer | ({"pullRequestUrl": f"{url}/discussions/{requests + 1}"} if is_request else {}))

    def info(self, name: str, revision: str = "main") -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha].files)]
        private = repository.private
        self.answer_json(
            {"id": name, "modelId": name, "sha": sha, "private": private, "tags": [], "siblings": siblings}
        )

    def listing(self, commit: Commit, paths: Any) -> list[dict[str, Any]]:
        entries = []
        for path in sorted(set(paths) & set(commit.files)):
            data = commit.files[path]
            entries.append({"type": "file", "path": path, "size": len(data), "oid": blob_id(data)})
            if path in commit.large:
                sha256 = hashlib.sha256(data).hexdigest()
                entries[-1]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return entries

    def tree(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        commit = repository.commits[self.commit_of(repository, revision)]
        self.answer_json(self.listing(commit, commit.files))

    def paths_info(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        form = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        self.answer_json(self.listing(repository.commits[self.commit_of(repository, revision)], form["paths"]))

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision)
        commit = repository.commits[sha]
        if file not in commit.files:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        content = commit.files[file]
        etag = hashlib.sha256(content).hexdigest() if file in commit.large else blob_id(content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            self.answer(200, content, **headers)
            return
        first, last = int(start[1]), len(content) - 1
        self.answer(206, content[first:], **headers, **{"Content-Range": f"bytes {first}-{last}/{len(content)}"})


NAME = r"(?P<name>[\w.-]+/[\w.-]+?)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"POST /api/models/{NAME}/branch/(?P<branch>.+)", Handler.branch),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.lfs_upload),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", Handler.commit),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>.+)", Handler.info),
    (rf"GET /api/models/{NAME}/tree/(?P<revision>.+)", Handler.tree),
    (rf"POST /api/models/{NAME}/paths-info/(?P<revision>.+)", Handler.paths_info),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+(?:/pr/\d+)?)/(?P<file>.+)", Handler.resolve),
]


def card_errors(content: str) -> list[str]:
    """What the Hub refuses in a card's metadata: by its documentation, as far as our cards use it."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["there is no metadata"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"metadata is no YAML: {error}"]
    errors = [
        f'"{key}" must be a string'
        for key in ("license", "library_name", "pipeline_tag")
        if not isinstance(data.get(key, ""), str)
    ]
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            with contextlib.suppress(KeyError, TypeError):
                dataset, metrics = result["dataset"], result["metrics"]
                if (
                    isinstance(result["task"]["type"], str)
                    and dataset["name"]
                    and dataset["type"]
                    and all(metric["type"] and metric["value"] is not None for metric in metrics)
                ):
                    continue
            errors.append(f'"model-index" has a result without task, dataset or metric: {result}')
    return errors
