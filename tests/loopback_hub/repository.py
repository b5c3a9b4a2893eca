"""The Hub's state: repositories with branches that point to immutable commits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def content_id(content: bytes, large: bool) -> str:
    """How a file's content is named: a large file's (git LFS) by its SHA-256, any other's as git does."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    """One state of a repository: path -> content, and whether it is kept as a large file."""

    message: str
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def listing(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """The Hub's information on those of `paths` that exist."""
        entries = []
        for path in sorted(set(paths) & set(self.files)):
            data = self.files[path]
            entries.append({"type": "file", "path": path, "size": len(data), "oid": content_id(data, large=False)})
            if path in self.large:
                oid = content_id(data, large=True)
                entries[-1]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return entries


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
        """Put `commit` on top of `branch`, which may be new.

        Returns:
            The commit's name.
        """
        files = sorted(commit.files.items())
        listing = [f"{len(self.commits)}", *(f"{path} {content_id(data, large=False)}" for path, data in files)]
        sha = hashlib.sha1("\n".join(listing).encode()).hexdigest()
        self.commits[sha] = commit
        self.branches[branch] = sha
        self.history.setdefault(branch, []).append(sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a commit's own name means, or None."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content."""
        return self.commits[self.branches.get(revision, revision)].files
