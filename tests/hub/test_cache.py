"""The cache: a file is verified once and again when it changed, whoever left it and however it is kept."""

import os
import shutil

import pytest
from huggingface_hub import scan_cache_dir
from loopback_hub.client import Client, ClientError
from loopback_hub.transfers import PULL, cached, energies, pull, push


def test_files_are_verified_once_and_again_when_they_changed(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    pull(client, repo, cache_dir=cache)
    assert not scan_cache_dir(cache).warnings  # the marks are nothing to the client
    verified = """
import hf_ebm.hub.download as cache
calls, checksum = [], cache.file_checksum
cache.file_checksum = lambda path, large: calls.append(path.name) or checksum(path, large)
try:
    exec(code_of_pull)
finally:
    cache.file_checksum = checksum
    result = calls
"""
    options = {"cache_dir": str(cache), "local_files_only": True}
    again = {"code_of_pull": PULL, "repo": repo, "kind": "DDAEBMPipeline", "options": options}
    assert client(verified, **again) == []
    (weights,) = cache.rglob("energy_model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    os.utime(weights)
    assert client(verified, **again) == ["model.safetensors"]
    weights.write_bytes(content)
    with pytest.raises(ClientError, match=r"OSError: .*model.safetensors came damaged"):
        pull(client, repo, cache_dir=cache)
    assert not scan_cache_dir(cache).warnings
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)


@pytest.fixture
def client_without_links(hub, tmp_path):
    """A client whose cache is as on a file system without symbolic links."""
    (tmp_path / "home").mkdir()
    process = Client(hub.url, tmp_path / "home", "alice-token", HF_HUB_DISABLE_SYMLINKS="1")
    yield process
    process.close()


def test_a_cache_without_links(hub, client, client_without_links, folder, repo, tmp_path, tiny_pipeline):
    """Pulled once with the network it is verified without, though every file's inode and time changed since."""
    push(client, folder, repo)
    cache, copied = tmp_path / "c", tmp_path / "copied"
    assert pull(client_without_links, repo, cache_dir=cache) == energies(tiny_pipeline)
    assert not [path for path in cache.rglob("*") if path.is_symlink()]
    hub.reset()
    for folder in (cache, shutil.copytree(cache, copied, copy_function=shutil.copyfile)):
        found = pull(client_without_links, repo, cache_dir=folder, local_files_only=True)
        assert found == energies(tiny_pipeline) and not hub.log
    (weights,) = copied.rglob("energy_model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ClientError, match=r"OSError: .*model.safetensors came damaged"):
        pull(client_without_links, repo, cache_dir=copied, local_files_only=True)
    shutil.rmtree(next(cache.rglob(".hf_ebm_verified")))  # as if another library had fetched it
    advice = r"OSError: .*cannot be verified.*Pull once with the network.*or give the folder .*snapshots"
    with pytest.raises(ClientError, match=advice):
        pull(client_without_links, repo, cache_dir=cache, local_files_only=True)
    assert not hub.log
    hub.fail("POST .*/paths-info/", "status", status=403)
    with pytest.raises(ClientError, match=advice + r"(?s:.*)The Hub could not be asked"):
        pull(client_without_links, repo, cache_dir=cache)
    assert pull(client_without_links, repo, cache_dir=cache) == energies(tiny_pipeline)


KILLED = """
import os, signal
import hf_ebm.hub.download
hf_ebm.hub.download.verify_checksums = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
exec(code_of_pull)
"""


@pytest.mark.parametrize("offline", [False, True])
def test_what_a_killed_pull_left_is_verified(hub, client, folder, repo, tmp_path, tiny_pipeline, offline):
    push(client, folder, repo)
    cache = tmp_path / "c"
    hub.fail("GET .*energy_model/model.safetensors", "corrupt")
    with pytest.raises(RuntimeError, match="client process ended"):
        killed = Client(hub.url, tmp_path, "alice-token")
        killed(KILLED, code_of_pull=PULL, repo=repo, kind="DDAEBMPipeline", options={"cache_dir": str(cache)})
    assert "energy_model/model.safetensors" in cached(cache)
    with pytest.raises(ClientError, match=r"OSError: .*energy_model/model.safetensors came damaged"):
        pull(client, repo, cache_dir=cache, local_files_only=offline)
    assert "energy_model/model.safetensors" not in cached(cache)
    assert pull(client, repo, cache_dir=cache) == energies(tiny_pipeline)
    hub.reset()
    assert pull(client, repo, cache_dir=cache, local_files_only=True) == energies(tiny_pipeline) and not hub.log


OFFLINE = """
import huggingface_hub, logging, hf_ebm, hf_ebm.hub.download
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("hf_ebm.hub.download").addHandler(handler)
try:
    found = CALL
finally:
    logging.getLogger("hf_ebm.hub.download").removeHandler(handler)
result = [found, told]
"""
OFFLINE_SCORER = OFFLINE.replace(
    "CALL",
    "hf_ebm.EnergyScoringPipeline.from_pretrained(repo, cache_dir=cache, **options).calibration is not None",
)
OFFLINE_FACTS = OFFLINE.replace(
    "CALL",
    "str(hf_ebm.hub.download.download_pipeline(repo, (), extra_files=names, cache_dir=cache, local_files_only=True))",
)


def test_offline_a_pipeline_can_be_without_what_lies_beside_it(hub, client, folder, repo, tmp_path):
    """The generation pipeline's pull brings no calibration; offline the scores are made without it, and it is said."""
    code = """
import torch, hf_ebm
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(folder)
images = torch.rand(40, 1, 8, 8) * torch.linspace(-1, 1, 40)[:, None, None, None]
pipe.calibrate(images, target_fpr=0.1).save(folder)
"""
    client(code, folder=str(folder))
    push(client, folder, repo)
    cache = str(tmp_path / "c")
    pull(client, repo, cache_dir=cache)
    hub.reset()
    names = {"repo": repo, "cache": cache}
    calibrated, told = client(OFFLINE_SCORER, **names, options={"local_files_only": True})
    assert not calibrated and len(told) == 1 and not hub.log
    assert "without calibration.json no p-values and verdicts. A run with the network" in told[0]
    facts = ("model_index.json", "settings.yaml", "train_summary.json")
    _, told = client(OFFLINE_FACTS, **names, names=facts)
    assert len(told) == 1 and "model_index" not in told[0]  # which is there
    assert "without settings.yaml no padding as in training, without train_summary.json less is told" in told[0]
    hub.fail("GET .*calibration.json", "status", status=403)
    with pytest.raises(ClientError, match="403"):  # with the network it is an error
        client(OFFLINE_SCORER, **names, options={})
    assert client(OFFLINE_SCORER, **names, options={}) == [True, []]
    assert client(OFFLINE_SCORER, **names, options={"local_files_only": True}) == [True, []]
