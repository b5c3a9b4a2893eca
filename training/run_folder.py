"""The run folder: what runs write in it, what may be overwritten, and the pipeline folder it becomes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import PIL.Image
import psutil
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from hf_ebm.data.toy import TOY_NAMES, sample_toy
from hf_ebm.evaluation.plots import plot_2d, save_grid
from hf_ebm.evaluation.toy_metrics import density_metrics, near_data_metrics, sample_metrics
from hf_ebm.hub.download import CODE_FILE, INDEX
from hf_ebm.hub.model_card import CARD, GENERATED, SETTINGS, SUMMARY, hardware_name, read_json
from hf_ebm.hub.upload import FACTS_ABOUT_WEIGHTS, RECORDS, PushError, of_component, push_folder, where_it_is
from hf_ebm.training.checkpointing import (
    NAME,
    TEMPORARY,
    is_in,
    later_checkpoints,
    list_checkpoints,
    remove_checkpoint,
    remove_temporary,
)
from hf_ebm.training.config import RunSettings, dump_settings, read_yaml
from hf_ebm.utils.files import whole_file
from hf_ebm.utils.validation import counted

METRICS = "metrics.jsonl"
TEMPORARY_PIPELINE = ".tmp_pipeline"
FOLDERS = ("checkpoints", "samples", "logs", "wandb")
COMPONENTS = (
    "energy_model",
    "generator_model",
    "inference_model",
    "scheduler",
    "latent_scheduler",
    "image_processor",
)
FILES = (*(name for name in RECORDS if name != SETTINGS), CODE_FILE)  # the index first: see `remove_run`
MAX_CLASS_ROWS, MIN_CLASS_COLUMNS = 20, 4  # of the sample grid of a class-conditional model
SETTINGS_OF_A_RUN = frozenset({"output_dir", "dataset", "max_steps", "batch_size"})  # what its settings.yaml has
SAMPLES = re.compile(r"^step_\d+\.png$")
TENSORBOARD_FILES = re.compile(r"^(events\.out\.tfevents\..+|hparams\.yml)$")
WANDB_FILES = re.compile(r"^((offline-)?run-\d{8}_\d{6}-\w+|latest-run|debug(-internal)?\.log)$")
TEMPORARY_FILES = re.compile(  # of `whole_file`
    r"^\.(settings|metrics|train_summary|README|validation)\.(?P<writer>\d+)\.tmp\.(yaml|jsonl|json|md|png)$"
)
COMPONENT_CODE = re.compile(r"^hf_ebm\..+\.py$")


@contextlib.contextmanager
def only_run(output_dir: Path) -> Iterator[None]:
    """Context in which no other run on this machine writes to `output_dir`; a `ValueError` if one does already."""
    name = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else "user"  # whose file another user could not open
    lock = FileLock(Path(gettempdir(), f"hf-ebm-run-{user}-{name}.lock"))  # nothing is left in the folder
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"output_dir {output_dir} is being written by another run; wait for its end or stop it (pgrep -fa "
            "train_ lists the processes), or choose another output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_run(folder: Path) -> bool:
    """Whether a folder holds the ``settings.yaml`` of a run."""
    try:
        return read_yaml(folder / SETTINGS).keys() >= SETTINGS_OF_A_RUN
    except (OSError, ValueError):
        return False


def check_run_folder(settings: Any, output_dir: Path, checkpoint: Path | None) -> None:
    """Raise a `ValueError` if a run cannot have its folder.

    It cannot if the folder holds another run, or files of others that a run would write, or if the run's own later
    checkpoints, the `checkpoint` that it resumes from (None: it starts) or the data set would be lost.
    """
    if checkpoint is not None and is_in(checkpoint, output_dir / "checkpoints"):
        later = later_checkpoints(checkpoint)
        if later and not settings.overwrite_output_dir:
            raise ValueError(
                f"resume={checkpoint} leaves {counted(len(later), 'later checkpoint')} ({later[-1].name} the last) "
                "behind; resume from there with resume=latest, from here in another output_dir, or remove what is "
                "later with overwrite_output_dir=true."
            )
        check_survivors(settings, output_dir, checkpoint, later)
        return
    occupied = [name for name in (*FOLDERS, *FILES, *COMPONENTS) if is_occupied(output_dir / name)]
    if not is_run(output_dir):
        occupied += [SETTINGS] if os.path.lexists(output_dir / SETTINGS) else []
        if occupied:
            raise ValueError(
                f"output_dir {output_dir} is not the folder of a run (it has no {SETTINGS} of one), and a run would "
                f"write over what it holds ({', '.join(occupied)}); choose another output_dir."
            )
    elif occupied and not settings.overwrite_output_dir:
        resume = "resume with resume=latest, " if list_checkpoints(output_dir / "checkpoints") else ""
        raise ValueError(
            f"output_dir {output_dir} holds a run already ({', '.join(occupied)}); {resume}choose another output_dir, "
            "or replace it with overwrite_output_dir=true."
        )
    else:
        check_survivors(settings, output_dir, checkpoint, files_of_run(output_dir))


def check_survivors(settings: Any, output_dir: Path, checkpoint: Path | None, removed: list[Path]) -> None:
    """Raise a `ValueError` if the checkpoint or the data set of a run are among what it removes from its folder."""
    gone = [path.resolve() for path in removed]
    for name, path in (("resume", checkpoint), ("dataset", Path(settings.dataset))):
        if path is None or not path.exists() or not path.resolve().is_relative_to(output_dir.resolve()):
            continue
        if any(path.resolve().is_relative_to(one) or one.is_relative_to(path.resolve()) for one in gone):
            raise ValueError(
                f"{name}={path} is part of the run that overwrite_output_dir=true removes from {output_dir}; choose "
                "another output_dir, or move it."
            )


def is_occupied(path: Path) -> bool:
    """Whether there is something at `path` but for the empty ``metrics.jsonl`` of a run that made no step."""
    return os.path.lexists(path) and not (path.name == METRICS and path.is_file() and path.stat().st_size == 0)


def files_of_run(output_dir: Path) -> list[Path]:
    """What runs have written into their folder, except ``settings.yaml``: files, and folders that are wholly theirs."""
    kept = (CARD,) if is_edited(output_dir / CARD) else ()
    found = [output_dir / name for name in FILES if name not in kept and (output_dir / name).is_file()]
    found += [
        path
        for path in (output_dir / "checkpoints").glob("*")
        if (NAME.match(path.name) or TEMPORARY.match(path.name)) and path.is_dir()
    ]
    found += [path for path in (output_dir / "samples").glob("*") if SAMPLES.match(path.name)]
    found += [path for path in (output_dir / "logs").rglob("*") if TENSORBOARD_FILES.match(path.name)]
    found += [path for path in (output_dir / "wandb").glob("*") if WANDB_FILES.match(path.name)]
    for name in components_of(output_dir):
        found += [path for path in (output_dir / name).glob("*") if is_component_file(path)]
    return found


def is_edited(card: Path) -> bool:
    """Whether a model card is one that its reader has made their own, by removing the line of generated cards."""
    return card.is_file() and GENERATED not in card.read_text(encoding="utf-8", errors="replace")


def components_of(folder: Path) -> list[str]:
    """The folders of a pipeline's components."""
    try:
        index = read_json(folder / INDEX)
    except ValueError:
        index = {}
    listed = [name for name, value in index.items() if isinstance(value, list) and Path(name).name == name]
    return [name for name in dict.fromkeys([*listed, *COMPONENTS]) if (folder / name).is_dir()]


def is_component_file(path: Path) -> bool:
    """Whether a file in a component's folder is one that saving the component writes."""
    return path.is_file() and (of_component(path.name) or COMPONENT_CODE.match(path.name) is not None)


def remove_run(output_dir: Path) -> None:
    """Remove what runs have written into their folder; all else stays."""
    found = files_of_run(output_dir)  # the index is the first: without it, what is left is no pipeline
    folders = {folder for path in found for folder in path.relative_to(output_dir).parents if folder.name}
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # it holds something else, or is a link
            (output_dir / folder).rmdir()


def start_run(accelerator: Accelerator, settings: Any, output_dir: Path, checkpoint: Path | None) -> None:
    """Make the folder, remove what `check_run_folder` has allowed, write ``settings.yaml``; called by all processes."""
    accelerator.wait_for_everyone()  # all have checked and loaded before one writes
    if accelerator.is_main_process:
        if checkpoint is not None and is_in(checkpoint, output_dir / "checkpoints"):
            for path in later_checkpoints(checkpoint):
                remove_checkpoint(path)
        else:
            remove_run(output_dir)
        remove_leftovers(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        dump_settings(settings, output_dir / SETTINGS)
    if settings.trackers:
        flat = {
            key: value if isinstance(value, int | float | str) else str(value) for key, value in vars(settings).items()
        }
        own_options: dict[str, Any] = {"wandb": {"dir": str(output_dir)}}  # tensorboard takes the accelerator's folder
        accelerator.init_trackers("hf-ebm", config=flat, init_kwargs=own_options)
    accelerator.wait_for_everyone()


def remove_leftovers(output_dir: Path) -> None:
    """Remove the temporary files of runs that were killed, or whose disk was full, while they wrote them."""
    remove_temporary(output_dir / "checkpoints")
    if (output_dir / TEMPORARY_PIPELINE).is_dir():
        shutil.rmtree(output_dir / TEMPORARY_PIPELINE)
    for path in output_dir.glob(".*.tmp.*"):
        found = TEMPORARY_FILES.match(path.name)
        if found and not psutil.pid_exists(int(found["writer"])):
            path.unlink()


@torch.no_grad()
def save_samples(pipeline: Any, folder: Path, step: int, settings: RunSettings) -> Path:
    """Save samples of `pipeline` from fixed noise: a grid of images, or a plot of 2-D points and density.

    The grid of a class-conditional model has a row for each class. The points of an embedded 2-D data set are shown
    beside.
    """
    pipeline.set_progress_bar_config(disable=True)
    path, dataset = sample_path(folder, step), settings.dataset
    generator = torch.Generator(pipeline._execution_device).manual_seed(0)
    if len(pipeline.sample_shape) == 1:
        points = pipeline(batch_size=10_000, generator=generator, output_type="pt").images
        if points.shape[1] == 2:
            data = sample_toy(dataset, 10_000, torch.Generator().manual_seed(0)) if dataset in TOY_NAMES else None
            plot_2d(points, pipeline.energy_model, data, path)
        return path
    number, num_columns, labels = settings.num_grid_samples, None, {}
    if num_rows := min(len(pipeline.class_names), MAX_CLASS_ROWS):
        num_columns = max(MIN_CLASS_COLUMNS, number // num_rows)
        labels = {"class_labels": [label for label in range(num_rows) for _ in range(num_columns)]}
    save_grid(pipeline(batch_size=number, generator=generator, **labels).images, path, num_columns)
    return path


def log_samples(accelerator: Accelerator, path: Path, step: int) -> None:
    """Log the sample grid of a step, if there is one, to the run's trackers."""
    if not accelerator.trackers or not path.is_file():
        return
    with PIL.Image.open(path, formats=["PNG"]) as grid:
        pixels = np.asarray(grid.convert("RGB"))[None]
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # wandb takes no other
        tracker.log_images({"samples": pixels}, step, **layout)


def sample_path(folder: Path, step: int) -> Path:
    """Path of the sample grid of a step."""
    return folder / f"step_{step:08d}.png"


def finish_run(pipeline: Any, run: Any) -> None:
    """Turn the folder of a `hf_ebm.training.trainer.Run` into a pipeline folder, with samples, a summary and the card.

    The pipeline is written under a temporary name and its files are then moved in place, so that a reader of the folder
    never sees half a file. What was found out about the weights of an earlier end of the run is removed.
    """
    settings, output_dir, step, seconds = run.settings, run.output_dir, run.progress.step, run.total_seconds
    num_processes = run.accelerator.num_processes
    for name in (SUMMARY, *FACTS_ABOUT_WEIGHTS):
        (output_dir / name).unlink(missing_ok=True)
    temporary = output_dir / TEMPORARY_PIPELINE
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for part in sorted(temporary.iterdir(), key=lambda path: path.name == INDEX):  # the index last
        if part.is_dir():
            replace_component(part, output_dir / part.name)
        else:
            part.replace(output_dir / part.name)
    temporary.rmdir()
    grid = run.method.save_samples(pipeline, output_dir / "samples", step, settings)
    if grid.is_file():
        shutil.copyfile(grid, output_dir / "samples.png")
    if settings.dataset in TOY_NAMES:
        generator = torch.Generator(pipeline._execution_device).manual_seed(0)
        points = pipeline(batch_size=10_000, generator=generator, output_type="pt").images.cpu()
        if settings.dataset == "25gaussians":
            metrics = {**sample_metrics(points), **density_metrics(pipeline.energy_model)}
        else:
            metrics = near_data_metrics(points, pipeline.energy_model, settings.dataset)
        (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        print(f"10,000 samples and the energy beside the data (metrics.json): {json.dumps(metrics)}")
    parameters = {
        name: sum(parameter.numel() for parameter in component.parameters())
        for name, component in pipeline.components.items()
        if isinstance(component, torch.nn.Module)
    }
    summary = {
        "steps": step,
        "seconds": round(seconds, 1),
        "steps_per_second": step / seconds,
        "images_per_second": step / seconds * settings.batch_size * num_processes,
        "peak_memory_bytes": run.memory,  # of the first process: on its GPU, or in RAM where there is none
        "num_images": len(run.loader.dataset),
        "sample_shape": list(run.method.sample_shape(run.models, run.model_settings)),
        "num_processes": num_processes,
        "changed_settings": run.progress.changes,  # the values of before, of a run that was resumed with others
        "hardware": hardware_name(num_processes),
        "torch_version": torch.__version__,
        "parameters": parameters,
    }
    if run.validator is not None:
        records = run.metrics.read("validation/")
        chosen = run.best.facts() if run.best is not None else {}
        shown = [one for one in records if one["step"] == chosen.get("step", step)] or records[-1:]
        summary["validation"] = {
            "num_images": len(run.validator.images),
            "feature_extractor": run.validator.extractor.name,
            "chosen": chosen,  # empty: the last step's weights
            "metrics": {name.partition("/")[2]: value for one in shown for name, value in one.items() if "/" in name},
            "step": shown[0]["step"] if shown else None,
        }
    with whole_file(output_dir / SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if run.method.write_card is not None and is_edited(output_dir / CARD):
        print(f"note: {output_dir / CARD} is kept as it was edited.")
    elif run.method.write_card is not None:
        run.method.write_card(output_dir)


def replace_component(part: Path, target: Path) -> None:
    """Move the files of a saved component to its folder `target` in place of those of an earlier one."""
    target.mkdir(exist_ok=True)
    new = sorted(part.iterdir())
    for path in target.iterdir():
        if is_component_file(path) and path.name not in {one.name for one in new}:
            path.unlink()
    for path in new:
        path.replace(target / path.name)
    part.rmdir()


def is_finished(output_dir: Path, step: int, with_card: bool) -> bool:
    """Whether `finish_run` came to its end at `step`: a run that was stopped in it is not."""
    is_whole = (output_dir / INDEX).is_file() and ((output_dir / CARD).is_file() or not with_card)
    return is_whole and read_json(output_dir / SUMMARY).get("steps") == step


def push_run(settings: RunSettings, output_dir: Path) -> None:
    """Push a finished run, in one commit."""
    try:
        commit = push_folder(output_dir, settings.repo_id, private=settings.hub_private)
    except PushError as error:
        again = f"hf-ebm push --model {output_dir} --repo-id {settings.repo_id}"
        again += {None: "", True: " --private", False: " --no-private"}[settings.hub_private]
        raise PushError(f"{error} The run is whole in {output_dir}; `{again}` pushes it.") from error
    print(f"{output_dir}/ is on the Hub: {where_it_is(commit)}")
