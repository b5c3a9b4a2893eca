"""The Hub's API for the real huggingface_hub client: one method per request.

A commit is taken whole or not at all; only a repository's owner writes to it, and a private one is seen by nobody else.
"""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import parse_qs

from loopback_hub.cards import card_errors
from loopback_hub.exchange import Exchange, RefusalError
from loopback_hub.repository import Commit, Repository, content_id

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
NAME = r"(?P<name>[\w.-]+/[\w.-]+?)"


class Api(Exchange):
    """An exchange with the Hub."""

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
                answers[-1]["oid"] = content_id(data, large)
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
        body = self.fault.received(self.body)
        if content_id(body, large=True) != oid:
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

    def tree(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        commit = repository.commits[self.commit_of(repository, revision)]
        self.answer_json(commit.listing(commit.files))

    def paths_info(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        form = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        self.answer_json(repository.commits[self.commit_of(repository, revision)].listing(form["paths"]))

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision)
        commit = repository.commits[sha]
        if file not in commit.files:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        content = commit.files[file]
        etag = content_id(content, file in commit.large)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            self.answer(200, content, **headers)
            return
        first, last = int(start[1]), len(content) - 1
        self.answer(206, content[first:], **headers, **{"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    routes = (
        (r"GET /api/whoami-v2", whoami),
        (r"POST /api/repos/create", create),
        (r"POST /api/validate-yaml", validate_yaml),
        (rf"POST /api/models/{NAME}/branch/(?P<branch>.+)", branch),
        (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", preupload),
        (rf"POST /{NAME}\.git/info/lfs/objects/batch", lfs_batch),
        (r"PUT /lfs/(?P<oid>\w+)", lfs_upload),
        (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", commit),
        (rf"GET /api/models/{NAME}", info),
        (rf"GET /api/models/{NAME}/revision/(?P<revision>.+)", info),
        (rf"GET /api/models/{NAME}/tree/(?P<revision>.+)", tree),
        (rf"POST /api/models/{NAME}/paths-info/(?P<revision>.+)", paths_info),
        (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+(?:/pr/\d+)?)/(?P<file>.+)", resolve),
    )
