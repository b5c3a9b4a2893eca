"""Downloads: each class fetches the files it needs and no others; afterwards no network is needed."""

import pytest
from loopback_hub.client import ClientError
from loopback_hub.transfers import cached, energies, pull, push


def test_a_pull_fetches_what_is_needed_and_then_needs_no_network(hub, client, folder, repo, tmp_path, tiny_pipeline):
    push(client, folder, repo)
    every = pull(client, repo, cache_dir=tmp_path / "all")
    assert every == energies(tiny_pipeline)
    networks = {f"{name}/config.json" for name in ("energy_model", "generator_model", "inference_model")}
    scoring = {
        "model_index.json", "energy_model/config.json", "energy_model/preprocessor_config.json",
        "energy_model/model.safetensors", "scheduler/scheduler_config.json", "image_processor/preprocessor_config.json",
    }  # fmt: skip
    generating = {
        "generator_model/diffusion_pytorch_model.safetensors", "inference_model/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert cached(tmp_path / "all") == scoring | networks | generating
    assert pull(client, repo, "EnergyScoringPipeline", cache_dir=tmp_path / "score") == every
    assert cached(tmp_path / "score") == scoring
    hub.reset()
    assert pull(client, repo, cache_dir=tmp_path / "all", local_files_only=True) == every
    assert pull(client, repo, "EnergyScoringPipeline", cache_dir=tmp_path / "score", local_files_only=True) == every
    assert not hub.log
    with pytest.raises(ClientError, match=f"OSError: '{repo}' is not a local folder"):
        pull(client, repo, cache_dir=tmp_path / "empty", local_files_only=True)


def test_calibration_variant_dtype_subfolder_and_auto_model(hub, client, folder, repo, tmp_path, tiny_pipeline):
    code = """
import torch, hf_ebm
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(folder)
images = torch.rand(40, 1, 8, 8) * torch.linspace(0, 1, 40)[:, None, None, None]
pipe.calibrate(images, target_fpr=0.1).save(folder)
hf_ebm.DDAEBMPipeline.from_pretrained(folder).push_to_hub(repo)
hf_ebm.DDAEBMPipeline.from_pretrained(folder, torch_dtype=torch.float16).push_to_hub(repo, variant="fp16")
"""
    client(code, folder=str(folder), repo=repo)
    code = """
import torch, hf_ebm
from transformers import AutoModel
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(repo, variant="fp16", torch_dtype=torch.float16, cache_dir=cache)
energy = AutoModel.from_pretrained(repo, subfolder="energy_model")
generator = hf_ebm.UNetGeneratorModel.from_pretrained(repo, subfolder="generator_model", variant="fp16")
x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
result = [
    pipe.calibration.num_samples, str(pipe.energy_model.dtype), pipe(x).p_values is not None,
    energy(2 * x - 1).energy.tolist(), type(energy).__module__, str(energy.dtype), type(generator).__name__,
]
"""
    number, dtype, has_p, found, module, full, name = client(code, repo=repo, cache=str(tmp_path / "half"))
    assert (number, dtype, has_p, module, name) == (
        40,
        "torch.float16",
        True,
        "hf_ebm.models.unet_energy",
        "UNetGeneratorModel",
    )
    assert found == energies(tiny_pipeline) and full == "torch.float32"
    assert {"energy_model/model.fp16.safetensors", "calibration.json"} < cached(tmp_path / "half")
    assert not any("/model.safetensors" in path or "generator" in path for path in cached(tmp_path / "half"))
    card = hub.repositories[repo].files()["README.md"].decode()
    assert "## Threshold" in card and "The threshold holds" in card and "no threshold yet" not in card


OFFLINE = """
import huggingface_hub, logging, hf_ebm, hf_ebm.hub.download
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("hf_ebm.hub.download").addHandler(handler)
try:
    found = CALL
finally:
    logging.getLogger("hf_ebm.hub.download").removeHandler(handler)
result = [found, messages]
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
    """The generation pipeline's pull brings no calibration; offline the scores are made without it, with a warning."""
    code = """
import torch, hf_ebm
pipe = hf_ebm.EnergyScoringPipeline.from_pretrained(folder)
images = torch.rand(40, 1, 8, 8) * torch.linspace(0, 1, 40)[:, None, None, None]
pipe.calibrate(images, target_fpr=0.1).save(folder)
"""
    client(code, folder=str(folder))
    push(client, folder, repo)
    cache = str(tmp_path / "c")
    pull(client, repo, cache_dir=cache)
    hub.reset()
    names = {"repo": repo, "cache": cache}
    calibrated, messages = client(OFFLINE_SCORER, **names, options={"local_files_only": True})
    assert not calibrated and len(messages) == 1 and not hub.log
    assert "without calibration.json, calibration.safetensors; a run with the network" in messages[0]
    facts = ("model_index.json", "settings.yaml", "train_summary.json")
    _, messages = client(OFFLINE_FACTS, **names, names=facts)
    assert len(messages) == 1 and "model_index" not in messages[0]  # which is there
    assert "without settings.yaml, train_summary.json;" in messages[0]
    hub.fail("GET .*calibration.json", "status", status=403)
    with pytest.raises(ClientError, match="403"):  # with the network it is an error
        client(OFFLINE_SCORER, **names, options={})
    assert client(OFFLINE_SCORER, **names, options={}) == [True, []]
    assert client(OFFLINE_SCORER, **names, options={"local_files_only": True}) == [True, []]
