"""The run folder of every training script: it becomes a pipeline, and is not mixed with or lost to another run."""

import errno
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from accelerate.tracking import LoggerType, get_available_trackers
from small_runs import Script, all_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hf_ebm
from hf_ebm.hub.model_card import GENERATED
from hf_ebm.training.config import make_settings
from hf_ebm.training.run_folder import remove_run
from hf_ebm.training.trainer import make_accelerator


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
    """As tensorboard reads them back: the scalars of ``metrics.jsonl``, and the images of ``samples/``."""
    folder = script.train(tmp_path / "run", sample_every=2, log_every=1, trackers="tensorboard")
    read = EventAccumulator(str(folder / "logs" / "hf-ebm")).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = [(one.step, one.value) for one in read.Scalars("learning_rate")]
    of_losses = [line for line in lines if "learning_rate" in line]
    assert written == [(line["step"], pytest.approx(line["learning_rate"])) for line in of_losses]
    assert [one.step for one in read.Scalars("stability/spread")] == [2, 4]
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
    """A stand-in notes what reaches it: the settings, the losses of each step, the images, and the end."""
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
    of_losses = [line for line in lines if "learning_rate" in line]
    assert written == [(line["step"], pytest.approx(line["learning_rate"])) for line in of_losses]
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


def test_the_image_processor_crops_as_the_training_did(tmp_path, script, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 12), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    crop = {"crop_box": [1, 2, 11, 12], "crop_from": [12, 20]}
    run = script.train(tmp_path / "run", dataset=str(folder), max_steps=1, **crop)
    assert "cropped to the box (1, 2, 11, 12) where 12x20" in capsys.readouterr().out
    pipe = getattr(hf_ebm, script.pipeline).from_pretrained(run)
    scorer = hf_ebm.EnergyScoringPipeline.from_pretrained(run)
    for processor in (pipe.image_processor, scorer.image_processor):
        assert (processor.crop_box, processor.crop_from) == (crop["crop_box"], crop["crop_from"])
    saved = json.loads((run / "energy_model" / "preprocessor_config.json").read_text())
    assert saved["crop_box"] == crop["crop_box"]
    with pytest.raises(ValueError, match="crop_box must be null for the embedded data set"):
        script.settings(tmp_path, **crop)


def test_a_run_that_replaces_another_leaves_no_pipeline_of_both(tmp_path, script, monkeypatch):
    folder = script.train(tmp_path / "run", max_steps=1)
    monkeypatch.setattr("hf_ebm.training.trainer.finish_run", lambda *_, **__: 1 / 0)  # it breaks off before it saves
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


def test_records_make_a_folder_occupied(tmp_path, script):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calibration.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"is not the folder of a run .* \(calibration\.json\); choose"):
            script.train(tmp_path / "run", max_steps=1, overwrite_output_dir=overwrite)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["calibration.json"]


FOREIGN = (
    "README.md",
    "logs/a",
    "checkpoints/other.pt",
    "samples/x.png",
    "scheduler/x",
    "settings.yaml",
    "pipeline.py",
)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_a_run_is_left_unchanged(tmp_path, name, overwrite):
    """The refusal does not recommend the setting that would overwrite a run."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine: 1\n")
    with pytest.raises(ValueError, match=r"is not the folder of a run .*; choose another output_dir\.$") as error:
        Script("ddaebm").train(tmp_path, max_steps=1, overwrite_output_dir=overwrite)
    assert name.split("/")[0] in str(error.value) and "overwrite_output_dir" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine: 1\n"


FILES_OF_OTHERS = (
    "notes.txt", "picture.png", "data.json", "checkpoints/best/step_00000002/model.safetensors", "checkpoints/other.pt",
    "checkpoints/step_mine/a", "samples/mine.png", "logs/a", "logs/hf-ebm/b.txt", "wandb/c", "energy_model/notes.txt",
    "generator_model/deeper/config.json", "mine/model_index.json",
)  # fmt: skip


def test_only_what_runs_write_is_replaced(tmp_path, script):
    """Files of others stay in a run's folder, whether it is replaced or its run ends once more."""
    run = script.train(tmp_path / "run", max_steps=1, sample_every=1, checkpoint_every=1, trackers=["tensorboard"])
    of_run = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    others = [run / name for name in FILES_OF_OTHERS]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    script.train(run, max_steps=2, resume="latest")
    assert all(path.read_text() == "mine" for path in others)
    remove_run(run)
    left = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert left == {path.relative_to(run) for path in [*others, run / "settings.yaml"]}
    assert of_run & left == {Path("settings.yaml")}
    script.train(run, max_steps=1, overwrite_output_dir=True)
    assert all(path.read_text() == "mine" for path in others) and not (run / "checkpoints" / "step_00000002").exists()


def test_nothing_of_a_replaced_run_is_left(tmp_path):
    run = Script("ddaebm").train(tmp_path / "run", max_steps=1, sample_every=1, trackers=["tensorboard"])
    (run / "wandb" / "offline-run-20260101_101010-abc123").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("offline-run-20260101_101010-abc123")
    remove_run(run)
    assert [path.name for path in run.iterdir()] == ["settings.yaml"]


def test_a_model_card_that_was_edited_is_kept(tmp_path, script):
    run = script.train(tmp_path / "run", max_steps=1)
    card = (run / "README.md").read_text().replace(GENERATED, "My words.")
    (run / "README.md").write_text(card)
    script.train(run, max_steps=2, resume="latest")
    script.train(run, max_steps=1, overwrite_output_dir=True)
    assert (run / "README.md").read_text() == card


def test_what_a_killed_run_has_left_is_removed(tmp_path, script):
    run = script.train(tmp_path / "run", max_steps=2)
    left = ["checkpoints/tmp_step_00000001/a", "checkpoints/tmp_step_00000002_old/a", ".tmp_pipeline/energy_model/a"]
    left += [".train_summary.999999999.tmp.json", ".README.999999999.tmp.md"]
    others = ["checkpoints/tmp_step_mine/a", f".train_summary.{os.getppid()}.tmp.json", ".notes.999999999.tmp.txt"]
    for name in (*left, *others):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    script.train(run, max_steps=3, resume="latest")
    assert not [name for name in left if (run / name).exists()] and not (run / ".tmp_pipeline").exists()
    assert not (run / "checkpoints" / "tmp_step_00000001").exists()
    assert all((run / name).exists() for name in others)


def one_line(script, tmp_path, capsys, output_dir, **changes):
    """The line and the exit code with which a run of `main` ends."""
    config = script.config_file(tmp_path, **changes)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        script.module.main(["--config", config, f"output_dir={output_dir}"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("hf-ebm", "Traceback"))]
    assert len(said) == 1
    return said[0], end.value.code


def test_a_folder_that_cannot_be_is_one_line(tmp_path, script, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output_dir, said in (
        ("file", r"output_dir must be a folder, and .*file is a file; choose another"),
        ("file/run", r"output_dir .*file/run cannot be written: .*file is a file; .*choose another"),
        ("link", r"output_dir .*link cannot be written: .*link is a link to nothing; .*choose another"),
        ("link/run", r"output_dir .*link/run cannot be written: .*link is a link to nothing; .*choose another"),
    ):
        line, code = one_line(script, tmp_path, capsys, tmp_path / output_dir)
        assert re.match(f"hf-ebm: error: {said}", line) and code == 2
    assert one_line(script, tmp_path, capsys, "") == ("hf-ebm: error: output_dir must name a folder, got ''.", 2)
    monkeypatch.setattr("hf_ebm.utils.files.TemporaryFile", raise_read_only)
    line, code = one_line(script, tmp_path, capsys, tmp_path / "run")
    assert line.endswith(f"run cannot be written: Read-only file system ({tmp_path})") and code == 2
    assert not (tmp_path / "run").exists() and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path, script, capsys, monkeypatch):
    """Files that may grow to a size only: the writers of checkpoints and pipelines fail as on a full disk."""
    import resource

    run, before, checkpoints = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE), []

    def limit_the_second(models):
        checkpoints.append(1)
        if len(checkpoints) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    monkeypatch.setattr("hf_ebm.training.trainer.check_weights", limit_the_second)
    try:
        line, code = one_line(script, tmp_path, capsys, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line.startswith("hf-ebm: error: training stopped at step 4: the checkpoint ") and code == 1
    assert re.search(
        r"cannot be written: .*MB free; the last checkpoint is .*step_00000002: resume with the same", line
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    monkeypatch.setattr("hf_ebm.training.trainer.finish_run", raise_no_space)
    line, code = one_line(script, tmp_path, capsys, run, resume="latest")
    assert (
        "training stopped at step 4: [Errno 28] No space left on device; the last checkpoint is" in line and code == 1
    )
    monkeypatch.setattr("hf_ebm.training.run_folder.dump_settings", raise_no_space)
    assert one_line(script, tmp_path, capsys, run, resume="latest") == (
        "hf-ebm: error: [Errno 28] No space left on device",
        1,
    )
    monkeypatch.undo()
    script.train(tmp_path / "whole")
    script.train(run, resume="latest")
    assert all(torch.equal(value, all_weights(run)[key]) for key, value in all_weights(tmp_path / "whole").items())


def raise_read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def raise_no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_processes_wait_for_the_first(tmp_path):
    accelerator = make_accelerator("no", (), tmp_path)
    assert accelerator.init_handler.timeout.total_seconds() >= 6 * 3600
