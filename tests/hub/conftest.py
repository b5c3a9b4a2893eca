"""The Hub without an earlier test's requests; a repository and a run folder for each test."""

import json
import re

import PIL.Image
import pytest
import yaml
from run_records import METRICS, SUMMARY

from hf_ebm.hub.model_card import write_card


@pytest.fixture(autouse=True)
def hub(hub_server):
    hub_server.reset()
    return hub_server


@pytest.fixture
def repo(request):
    """A repository for this test only."""
    return "alice/" + re.sub(r"\W+", "-", request.node.name)[-80:].strip("-._")


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A run folder with all that a run leaves."""
    folder = tmp_path / "run"
    tiny_pipeline.save_pretrained(folder)
    settings = {"output_dir": str(folder), "dataset": "digits", "batch_size": 8, "seed": 0, "max_grad_norm": None}
    settings["license"] = "mit"
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "train_summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    PIL.Image.new("L", (8, 8)).save(folder / "samples.png")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "optimizer.bin").write_bytes(b"a pickle")
    write_card(folder)
    return folder
