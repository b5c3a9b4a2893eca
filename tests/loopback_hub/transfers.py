"""Transfers: a push or a download by a client process, and the resulting folders and caches."""

import re

import pytest
import torch

X = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
PUSH = "from hf_ebm.hub.upload import push_folder; result = str(push_folder(folder, repo, **options))"
PULL = """
import torch
import hf_ebm
pipe = getattr(hf_ebm, kind).from_pretrained(repo, **options)
result = pipe.score(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)).energies.tolist()
"""


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(client, folder, repo, **options):
    return client(PUSH, folder=str(folder), repo=repo, options=options)


def pull(client, repo, kind="DDAEBMPipeline", **options):
    return client(
        PULL, repo=repo, kind=kind, options={key: str(v) if key == "cache_dir" else v for key, v in options.items()}
    )


def energies(pipeline):
    return pytest.approx(pipeline.score(X).energies.tolist(), rel=1e-5)


def cached(cache):
    """What a cache has, without the names of repository and commit."""
    return {"/".join(path.parts[path.parts.index("snapshots") + 2 :]) for path in cache.rglob("snapshots/*/**/*.*")}


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)
