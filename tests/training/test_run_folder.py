"""The folder of every training script's run: it ends as a pipeline, and is neither mixed with nor lost to another."""

import io
import json
import sys

import PIL.Image
import pytest
import torch
import yaml
from accelerate.tracking import LoggerType, get_available_trackers
from small_runs import all_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hf_ebm
from hf_ebm.training.loop import make_accelerator
from hf_ebm.training.run_folder import push_checkpoint
from hf_ebm.training.settings import make_settings


def test_a_run_ends_as_a_pipeline_folder(tmp_path, script):
    folder = script.train(tmp_path / "run", sample_every=2, trackers=["tensorboard"])
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model_index.json", "generator_model", "energy_model", "inference_model", "scheduler", "settings.yaml",
        "metrics.jsonl", "samples", "samples.png", "checkpoints", "README.md", "train_summary.json", "logs",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    pipe = getattr(hf_ebm, script.pipeline).from_pretrained(folder)
    assert len(pipe(2).images) == 2
    card = (folder / "README.md").read_text()
    assert "library_name: hf-ebm" in card and "More information needed" not in card and "`batch_size` | `8`" in card
    saved = yaml.safe_load((folder / "settings.yaml").read_text())
    assert make_settings(script.settings_class, saved) == script.settings(
        tmp_path / "run", sample_every=2, trackers=["tensorboard"]
    )
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]


def test_trackers_get_the_losses_and_the_samples(tmp_path, script):
    """As tensorboard reads them back: the scalars of ``metrics.jsonl``, and the pictures of ``samples/``."""
    folder = script.train(tmp_path / "run", sample_every=2, log_every=1, trackers="tensorboard")
    read = EventAccumulator(str(folder / "logs" / "hf-ebm")).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = [(one.step, one.value) for one in read.Scalars("learning_rate")]
    assert written == [(line["step"], pytest.approx(line["learning_rate"])) for line in lines]
    shown = read.Images("samples")
    assert [one.step for one in shown] == [2, 4]
    with PIL.Image.open(folder / "samples" / "step_00000004.png") as picture:
        assert PIL.Image.open(io.BytesIO(shown[1].encoded_image_string)).tobytes() == picture.convert("RGB").tobytes()


FAKE_WANDB = """
log = []
class config:
    @staticmethod
    def update(values, **kwargs): log.append(("config", values))
class Image:
    def __init__(self, pixels, **kwargs): self.pixels = pixels
class Run:
    config = config
    def log(self, values, step=None, **kwargs): log.append((step, values))
    def finish(self): log.append(("finished", None))
run = None
def init(**kwargs):
    global run
    log.append(("init", kwargs))
    run = Run()
    return run
"""


def test_wandb_gets_them_too(tmp_path, script, monkeypatch):
    """A stand-in notes what reaches it: the settings, the losses of each step, the pictures, and the end."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(FAKE_WANDB)
    (tmp_path / "site" / "wandb-0.18.0.dist-info").mkdir()
    (tmp_path / "site" / "wandb-0.18.0.dist-info" / "METADATA").write_text("Name: wandb\nVersion: 0.18.0\n")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    if LoggerType.WANDB not in get_available_trackers():  # which were looked for when accelerate was imported
        monkeypatch.setattr("accelerate.tracking._available_trackers", [*get_available_trackers(), LoggerType.WANDB])
    folder = script.train(tmp_path / "run", sample_every=2, log_every=1, trackers="wandb")
    noted = sys.modules["wandb"].log
    assert [name for name, _ in noted if isinstance(name, str)] == ["init", "config", "finished"]
    assert noted[0][1]["project"] == "hf-ebm" and noted[0][1]["dir"] == str(folder)
    assert noted[1][1]["batch_size"] == 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = [(step, values["learning_rate"]) for step, values in noted[2:-1] if "learning_rate" in values]
    assert written == [(line["step"], pytest.approx(line["learning_rate"])) for line in lines]
    shown = {step: values["samples"] for step, values in noted[2:-1] if "samples" in values}
    assert list(shown) == [2, 4]
    with PIL.Image.open(folder / "samples" / "step_00000004.png") as picture:
        assert shown[4][0].pixels.tobytes() == picture.convert("RGB").tobytes()


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1)
    before = all_weights(folder)
    with pytest.raises(ValueError, match="overwrite_output_dir=true"):
        script.train(tmp_path / "run", max_steps=1, seed=1)
    assert all(torch.equal(value, before[key]) for key, value in all_weights(folder).items())
    script.train(tmp_path / "run", max_steps=1, seed=1, overwrite_output_dir=True)
    key = next(key for key in before if key.startswith("generator_model/") and before[key].ndim > 1)
    assert not torch.equal(all_weights(folder)[key], before[key])


def test_a_run_that_made_no_step_does_not_occupy_the_folder(tmp_path, script):
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        PIL.Image.new("L", (8, 8), 30 * index).save(tmp_path / "pictures" / f"{index}.png")
    whole = (tmp_path / "pictures" / "7.png").read_bytes()
    (tmp_path / "pictures" / "7.png").write_bytes(whole[:40])
    settings = {"max_steps": 1, "dataset": str(tmp_path / "pictures")}
    with pytest.raises(ValueError, match=r"\(.*7\.png\) cannot be read"):
        script.train(tmp_path / "run", **settings)
    (tmp_path / "pictures" / "7.png").write_bytes(whole)
    assert (script.train(tmp_path / "run", **settings) / "model_index.json").is_file()


def test_the_image_processor_pads_as_the_training_did(tmp_path, script):
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        PIL.Image.new("L", (6, 6), 30 * index).save(tmp_path / "pictures" / f"{index}.png")
    folder = script.train(tmp_path / "run", max_steps=1, padding=1, dataset=str(tmp_path / "pictures"))
    assert json.loads((folder / "energy_model" / "preprocessor_config.json").read_text())["padding"] == 1


def test_a_run_that_replaces_another_leaves_no_pipeline_of_both(tmp_path, script, monkeypatch):
    folder = script.train(tmp_path / "run", max_steps=1)
    monkeypatch.setattr("hf_ebm.training.running.finish_run", lambda *_, **__: 1 / 0)  # it breaks off before it saves
    with pytest.raises(ZeroDivisionError):
        script.train(folder, max_steps=2, overwrite_output_dir=True)
    assert not (folder / "model_index.json").exists() and (folder / "settings.yaml").exists()


def test_new_weights_have_no_facts_of_earlier_ones(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1)
    facts = ("calibration.json", "evaluate.json", "ood.json", "roc.png", "histograms.png", "ood.png", "chains.png")
    for name in facts:
        (folder / name).write_text("{}")
    (folder / "metrics.json").write_text('{"auroc": {"noise": 0.123}}')
    grid = (folder / "samples.png").stat().st_mtime_ns
    script.train(tmp_path / "run", max_steps=2, resume="latest")
    assert not [name for name in (*facts, "metrics.json") if (folder / name).exists()]
    assert (folder / "samples.png").stat().st_mtime_ns > grid and "0.123" not in (folder / "README.md").read_text()


def test_facts_alone_make_a_folder_occupied(tmp_path, script):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a run already \(calibration\.json\); choose"):
        script.train(tmp_path / "run", max_steps=1)
    script.train(tmp_path / "run", max_steps=1, overwrite_output_dir=True)
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_a_checkpoint_that_cannot_be_pushed_is_a_warning(tmp_path, script, capsys):
    class Broken:
        def save_pretrained(self, folder):
            raise RuntimeError("no room")

    push_checkpoint(Broken(), script.settings(tmp_path), tmp_path, 3)
    assert "the checkpoint of step 3 is not on the Hub: no room" in capsys.readouterr().out


def test_processes_wait_for_an_upload(tmp_path):
    accelerator = make_accelerator("no", 1, (), tmp_path)
    assert accelerator.init_handler.timeout.total_seconds() >= 6 * 3600
