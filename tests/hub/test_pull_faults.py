"""Faults during a download: the client retries, or the error names the cause and the next download works."""

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


@pytest.mark.parametrize("kind", ["short", "full disk", "status"])
def test_after_a_pull_that_failed_the_next_one_works(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
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
        hub.fail("GET .*energy_model/model.safetensors", kind, status=403)
        with pytest.raises(
            ClientError, match=r"OSError: .*could not be fetched from the Hub: .*(should be of size|403)"
        ):
            pull(client, repo, cache_dir=cache)
    found = pull(client, repo, cache_dir=cache)
    assert found == energies(tiny_pipeline) != before
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == found


def damage(cache, name):
    """Overwrite the first bytes of a file in the cache, whose size stays."""
    (path,) = cache.rglob(name)
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


@pytest.mark.parametrize("name", ["model_index.json", "energy_model/model.safetensors"])
def test_a_damaged_file_is_fetched_again_by_force_download(hub, client, folder, repo, tmp_path, tiny_pipeline, name):
    push(client, folder, repo)
    cache = tmp_path / "c"
    pull(client, repo, cache_dir=cache)
    damage(cache, name)
    for local_files_only in (False, True):
        with pytest.raises(ClientError, match=rf"ValueError: .*{name} is (damaged|not valid).*force_download=True"):
            pull(client, repo, cache_dir=cache, local_files_only=local_files_only)
    assert pull(client, repo, cache_dir=cache, force_download=True) == energies(tiny_pipeline)


@pytest.mark.parametrize("kind", ["UNetEnergyModel", "UNetGeneratorModel", "AutoModel"])
def test_networks_by_hub_id(hub, client, folder, repo, tmp_path, tiny_pipeline, kind):
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
    total, shown = client(code, **names)
    expected = sum(parameter.double().sum().item() for parameter in getattr(tiny_pipeline, component).parameters())
    assert total == pytest.approx(expected) and shown == repo
    assert {Path(name).parent.name for name in cached(tmp_path / "c")} == {component}
    with pytest.raises(ClientError, match=r"OSError: '?alice/none'? is not a local folder"):
        client(code, **{**names, "repo": "alice/none"})
    damage(tmp_path / "c", "*.safetensors")
    with pytest.raises(ClientError, match=r"safetensors is damaged.*force_download=True"):
        client(code, **names)
