"""Faults on the way down: the pull is tried again, or the error says what came, and what was there stays."""

import json
from pathlib import Path

import pytest
import torch
from loopback_hub.client import ClientError
from loopback_hub.transfers import PULL, cached, energies, pull, push


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("GET .*energy_model/model.safetensors", {"fault": "cut_answer"}),
        ("HEAD .*model_index.json", {"fault": "status", "status": 500}),
        ("GET .*energy_model/model.safetensors", {"fault": "status", "status": 429, "headers": {"Retry-After": "0"}}),
    ],
)
def test_a_pull_is_tried_again_after_what_goes_away(hub, client, folder, repo, tmp_path, tiny_pipeline, pattern, fault):
    push(client, folder, repo)
    hub.fail(pattern, **fault)
    assert pull(client, repo, cache_dir=tmp_path / "c") == energies(tiny_pipeline)
    assert not hub.faults[0].left


FULL_DISK = """
import resource
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file may grow further: what a full disk does
try:
    exec(code_of_pull)
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""


@pytest.mark.parametrize("kind", ["corrupt", "short", "full disk"])
def test_a_pull_that_fails_leaves_what_was_there(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
    push(client, folder, repo)
    cache = tmp_path / "c"
    before = pull(client, repo, cache_dir=cache)
    torch.nn.init.ones_(tiny_pipeline.energy_model.unet.conv_out.bias)
    tiny_pipeline.energy_model.save_pretrained(folder / "energy_model")
    push(client, folder, repo)
    if kind == "full disk":
        with pytest.raises(ClientError, match=r"OSError: .*File too large"):
            client(FULL_DISK, code_of_pull=PULL, repo=repo, kind="DDAEBMPipeline", options={"cache_dir": str(cache)})
    else:
        hub.fail("GET .*energy_model/model.safetensors", kind)
        with pytest.raises(ClientError, match=r"OSError: .*(came damaged|should be of size)"):
            pull(client, repo, cache_dir=cache)
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == before != energies(tiny_pipeline)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == energies(tiny_pipeline)


def test_a_damaged_file_is_not_kept_when_another_fails(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    hub.fail("GET .*generator_model/diffusion_pytorch_model.safetensors", "status", status=403)
    with pytest.raises(ClientError, match=r"OSError: .*could not be had"):
        pull(client, repo, cache_dir=cache)
    assert "energy_model/model.safetensors" not in cached(cache) and not list(cache.rglob("refs/main"))
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*came damaged"):  # fetched again, over what was there
        pull(client, repo, cache_dir=cache, force_download=True)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)


FAILS_BESIDE_ANOTHER = """
import subprocess, sys
from hf_ebm.hub.download import pull_commit
theirs = "import sys; from huggingface_hub import *; "
with pull_commit(repo, "model_index.json", {"cache_dir": cache}) as pull:
    subprocess.run([sys.executable, "-c", theirs + "snapshot_download(sys.argv[1], cache_dir=sys.argv[2],"
                    "allow_patterns=['generator_model/*', 'scheduler/*'])", repo, cache], check=True)
    pull.fetch(["generator_model/*", "energy_model/*.safetensors"])
    pull.verify()
"""


def test_a_pull_that_fails_leaves_what_another_process_fetched(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*energy_model/model.safetensors came damaged"):
        client(FAILS_BESIDE_ANOTHER, repo=repo, cache=str(tmp_path / "c"))
    left = cached(tmp_path / "c")
    assert {"generator_model/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"} <= left
    assert "energy_model/model.safetensors" not in left
    assert pull(client, repo, cache_dir=tmp_path / "c") == energies(tiny_pipeline)


@pytest.mark.parametrize("kind", ["UNetEnergyModel", "UNetGeneratorModel", "AutoModel"])
def test_networks_by_hub_id_are_verified(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
    code = """
import hf_ebm, hf_ebm.models.unet_energy, transformers
loads = getattr(hf_ebm, kind, None) or transformers.AutoModel
model = loads.from_pretrained(repo, subfolder=subfolder, cache_dir=cache)
total = sum(parameter.double().sum().item() for parameter in model.parameters())
result = total, model.config["_name_or_path"] if "Generator" in kind else model.name_or_path
"""
    component = "generator_model" if kind == "UNetGeneratorModel" else "energy_model"
    push(client, folder, repo)
    names = {"repo": repo, "kind": kind, "subfolder": component, "cache": str(tmp_path / "c")}
    hub.fail(f"GET .*{component}/.*safetensors", "corrupt")
    with pytest.raises(ClientError, match=r"OSError: .*safetensors came damaged"):
        client(code, **names)
    assert not [name for name in cached(tmp_path / "c") if name.endswith(".safetensors")]
    total, shown = client(code, **names)
    expected = sum(parameter.double().sum().item() for parameter in getattr(tiny_pipeline, component).parameters())
    assert total == pytest.approx(expected) and shown == repo
    assert {Path(name).parent.name for name in cached(tmp_path / "c")} == {component}
    with pytest.raises(ClientError, match="OSError"):
        client(code, **{**names, "repo": "alice/none"})


def test_a_damaged_index_is_noticed(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    files = hub.repositories[repo].files()
    files["model_index.json"] = json.dumps(json.loads(files["model_index.json"])).encode() + b"!"
    hub.fail("GET .*/resolve/.*/model_index.json", "corrupt")  # "!" becomes " ": whole JSON, but not what was pushed
    with pytest.raises(ClientError, match=r"OSError: .*model_index.json came damaged"):
        pull(client, repo, cache_dir=tmp_path / "c")
    assert "model_index.json" not in cached(tmp_path / "c")
