"""The run folder: it starts with the settings, fills with samples and checkpoints, and ends as a pipeline folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from hf_ebm.counting import counted
from hf_ebm.hub import CARD, SETTINGS, SUMMARY, hardware_name, read_json
from hf_ebm.pull import INDEX
from hf_ebm.push import FACTS_ABOUT_WEIGHTS, push_folder, where_it_is
from hf_ebm.scoring.modes import density_metrics, sample_metrics
from hf_ebm.scoring.near_data import near_data_metrics
from hf_ebm.scoring.plots import plot_2d
from hf_ebm.toy_data import TOY_NAMES, sample_toy
from hf_ebm.training.checkpoints import is_in, later_checkpoints, list_checkpoints
from hf_ebm.training.loop import save_grid
from hf_ebm.training.run_settings import RunSettings
from hf_ebm.training.settings import dump_settings
from hf_ebm.whole_files import whole_file

CHECKPOINT_BRANCH = "checkpoints"  # of the repository that a run pushes to
LEFT_BY_A_RUN = (
    "checkpoints",
    "samples",
    "logs",
    "wandb",
    "metrics.jsonl",
    "train_summary.json",
    "README.md",
    "model_index.json",  # without it, old weights are no pipeline beside new settings
    *FACTS_ABOUT_WEIGHTS,
)


@contextlib.contextmanager
def only_run(output_dir: Path) -> Iterator[None]:
    """Inside, no other run on this machine writes to `output_dir`; a killed one no longer does.

    Raises:
        ValueError: If one does.
    """
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


def start_run(accelerator: Accelerator, settings: Any, output_dir: Path, checkpoint: Path | None) -> None:
    """Make the folder and write ``settings.yaml``; called by all processes.

    Args:
        accelerator: Of the run.
        settings: Of the run.
        output_dir: The folder.
        checkpoint: What the run goes on from; None: it begins.

    Raises:
        ValueError: If the folder holds another run, or the run's own later checkpoints, which would be lost.
    """
    resumed = checkpoint is not None and is_in(checkpoint, output_dir / "checkpoints")
    paths = [output_dir / name for name in LEFT_BY_A_RUN]
    # an empty metrics.jsonl is of a run that made no step
    occupied = [path.name for path in paths if path.is_dir() or (path.is_file() and path.stat().st_size > 0)]
    accelerator.wait_for_everyone()  # all have looked before one writes
    if occupied and not resumed and not settings.overwrite_output_dir:
        goes_on = "go on with resume=latest, " if list_checkpoints(output_dir / "checkpoints") else ""
        raise ValueError(
            f"output_dir {output_dir} holds a run already ({', '.join(occupied)}); {goes_on}choose another output_dir, "
            "or replace it with overwrite_output_dir=true."
        )
    later = later_checkpoints(checkpoint) if checkpoint is not None and resumed else []
    if later and not settings.overwrite_output_dir:
        raise ValueError(
            f"resume={checkpoint} leaves {counted(len(later), 'later checkpoint')} ({later[-1].name} the last) "
            "behind; go on from there with resume=latest, from here in another output_dir, or remove what is later "
            "with overwrite_output_dir=true."
        )
    if accelerator.is_main_process:
        for name in occupied if not resumed else ():
            path = output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        output_dir.mkdir(parents=True, exist_ok=True)
        dump_settings(settings, output_dir / SETTINGS)
    if settings.trackers:
        flat = {
            key: value if isinstance(value, int | float | str) else str(value) for key, value in vars(settings).items()
        }
        own_options: dict[str, Any] = {"wandb": {"dir": str(output_dir)}}  # tensorboard takes the accelerator's folder
        accelerator.init_trackers("hf-ebm", config=flat, init_kwargs=own_options)
    accelerator.wait_for_everyone()


@torch.no_grad()
def save_samples(pipeline: Any, folder: Path, step: int, settings: RunSettings) -> Path:
    """A picture of samples of `pipeline`, always from the same noise: a grid of images, or 2-D points and density.

    The points of an embedded 2-D data set are shown beside.
    """
    pipeline.set_progress_bar_config(disable=True)
    path, dataset = sample_path(folder, step), settings.dataset
    device = pipeline.generator_model.device
    generator = torch.Generator(device).manual_seed(0)
    if len(pipeline.sample_shape) == 1:
        points = pipeline(batch_size=10_000, generator=generator, output_type="pt").images
        if points.shape[1] == 2:
            data = sample_toy(dataset, 10_000, torch.Generator().manual_seed(0)) if dataset in TOY_NAMES else None
            plot_2d(points, pipeline.energy_model, data, path)
        return path
    save_square_grid(pipeline(batch_size=settings.num_grid_samples, generator=generator).images, path)
    return path


def log_samples(accelerator: Accelerator, path: Path, step: int) -> None:
    """Show the picture of the samples of a step, if one was made, in the run's trackers."""
    if not accelerator.trackers or not path.is_file():
        return
    with PIL.Image.open(path, formats=["PNG"]) as picture:
        pixels = np.asarray(picture.convert("RGB"))[None]
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # wandb takes no other
        tracker.log_images({"samples": pixels}, step, **layout)


def sample_path(folder: Path, step: int) -> Path:
    """Where the picture of the samples of a step stands."""
    return folder / f"step_{step:08d}.png"


def save_square_grid(images: list[PIL.Image.Image], path: Path) -> None:
    """Images as one picture of as many columns as rows, small ones enlarged."""
    save_grid(images, path, num_columns=max(1, int(len(images) ** 0.5)), scale=max(1, 64 // images[0].width))


def finish_run(
    pipeline: Any,
    settings: Any,
    output_dir: Path,
    *,
    step: int,
    seconds: float,
    memory: int,
    num_images: int,
    num_processes: int,
    changes: list[str],
    save_samples: Callable[..., Path],
    write_card: Callable[[Path], Any] | None,
) -> None:
    """Turn the run folder into a pipeline folder: safetensors, configs, a last grid, a summary and the card.

    `save_samples` and `write_card` are the method's, see `hf_ebm.training.method.Method`.

    The pipeline is written under a temporary name and its parts are then moved in place, so that a reader of the folder
    never sees half a component. What was found out about the weights of an earlier end of the run is removed.
    """
    for name in (SUMMARY, *FACTS_ABOUT_WEIGHTS):
        (output_dir / name).unlink(missing_ok=True)
    temporary = output_dir / ".tmp_pipeline"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for part in sorted(temporary.iterdir(), key=lambda path: path.name == "model_index.json"):  # the index last
        target = output_dir / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    temporary.rmdir()
    grid = save_samples(pipeline, output_dir / "samples", step, settings)
    if grid.is_file():
        shutil.copyfile(grid, output_dir / "samples.png")
    if settings.dataset in TOY_NAMES:
        generator = torch.Generator(pipeline.generator_model.device).manual_seed(0)
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
        "peak_memory_bytes": memory,  # of the first process: on its GPU, or in RAM where there is none
        "num_images": num_images,
        "num_processes": num_processes,
        "changed_settings": changes,  # the values of before, of a run that was resumed with others
        "hardware": hardware_name(num_processes),
        "torch_version": torch.__version__,
        "parameters": parameters,
    }
    with whole_file(output_dir / SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if write_card is not None:
        write_card(output_dir)


def is_finished(output_dir: Path, step: int, with_card: bool) -> bool:
    """Whether `finish_run` came to its end at `step`: a run that was stopped in it is not."""
    is_whole = (output_dir / INDEX).is_file() and ((output_dir / CARD).is_file() or not with_card)
    return is_whole and read_json(output_dir / SUMMARY).get("steps") == step


def push_run(settings: RunSettings, output_dir: Path) -> None:
    """Push a finished run, in one commit.

    Raises:
        PushError: If it failed; the run is whole in `output_dir`, and the message has the command to push it again.
    """
    commit = push_folder(output_dir, settings.repo_id, private=settings.hub_private)
    print(f"{output_dir}/ is on the Hub: {where_it_is(commit)}")


def push_checkpoint(pipeline: Any, settings: RunSettings, output_dir: Path, step: int) -> None:
    """Push the pipeline as it is at a checkpoint to the branch `CHECKPOINT_BRANCH`; a failure is a warning only."""
    try:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            pipeline.save_pretrained(folder)
            for name in (SETTINGS, "metrics.jsonl"):
                shutil.copyfile(output_dir / name, folder / name)
            push_folder(
                folder,
                settings.repo_id,
                private=settings.hub_private,
                revision=CHECKPOINT_BRANCH,
                commit_message=f"Checkpoint at step {step}",
            )
    except Exception as error:  # a full disk, a card, the Hub: no reason to lose the training
        reason = error.__cause__ or error
        print(f"warning: training goes on, but the checkpoint of step {step} is not on the Hub: {reason}")
