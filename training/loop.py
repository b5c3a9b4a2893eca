"""What a training loop needs besides its train step: endless batches, the guard on losses, metrics, sample grids."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hf_ebm.training.stopping import TrainingDivergedError, outlive_signals
from hf_ebm.whole_files import whole_file

TRACKERS = ("tensorboard", "wandb")
METRICS = "metrics.jsonl"
UNSUPPORTED = {  # variables that `accelerate launch` sets, and what each asks for
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
PROCESS_TIMEOUT = timedelta(hours=6)  # the others wait so long for the first, which draws samples and uploads


@dataclass
class Position:
    """Where in the data the run stands: `batch` batches of `epoch` are done."""

    epoch: int = 0
    batch: int = 0


def advance(schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """One step of a learning-rate schedule; a cosine stays where it ended, while torch's own would rise again."""
    if schedule.last_epoch < getattr(schedule, "T_max", math.inf):
        schedule.step()


def check_launch_environment() -> None:
    """Raise a `ValueError` if `accelerate launch` or the environment asks for what training does not support."""
    for name, option in UNSUPPORTED.items():
        if parse_flag_from_env(name):
            raise ValueError(
                f"{name} must not be set: training does not support {option}, which would split the networks that "
                "the steps, their averages and checkpoints need whole. Start it with plain data parallelism: "
                "accelerate launch --multi_gpu --num_processes N, or choose 'NO' in accelerate config."
            )
    number = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if number != "1":
        raise ValueError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be 1 or unset, got {number!r}: gradient accumulation is not "
            "supported for now. Use a larger batch_size, or more processes."
        )


def make_accelerator(mixed_precision: str, trackers: tuple[str, ...], output_dir: Path) -> Accelerator:
    """An `Accelerator` whose data order can be resumed, with trackers that are there.

    Raises:
        ValueError: If a tracker is unknown or its package is not installed, the environment asks for FSDP, DeepSpeed,
            Megatron-LM, a parallelism config or gradient accumulation, or the device cannot do the precision.
    """
    check_launch_environment()
    for tracker in trackers:
        if tracker not in TRACKERS:
            raise ValueError(f"trackers must be among {TRACKERS}, got {tracker!r}.")
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"trackers names {tracker!r}, which is not installed: pip install {tracker}.")
    # newer torch calls the option forward_sync_buffers, which accelerate cannot pass on yet
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        # Buffers are batch norm's running statistics, which no loss uses, and singular vectors, the same everywhere;
        # broadcasting them at each forward would change them between two forwards and their backward.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
        ],
    )
    if mixed_precision != "no" and not accelerator.native_amp:  # accelerate would train in fp32 without a word
        raise ValueError(
            f"mixed_precision must be 'no' or 'bf16' on {accelerator.device.type!r}, got {mixed_precision!r}, which "
            "needs a GPU."
        )
    return accelerator


def make_loader(dataset: Dataset, batch_size: int, seed: int, num_workers: int, num_processes: int = 1) -> DataLoader:
    """A shuffling loader of full batches, its order given by `seed` alone.

    Args:
        dataset: The samples.
        batch_size: Samples per batch and process.
        seed: Of the order.
        num_workers: Processes that load samples.
        num_processes: Processes that train, each on batches of its own.

    Raises:
        ValueError: If the data set has fewer samples than one batch for each process.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size < batch_size * num_processes:
        of_all = f" in each of {num_processes} processes, {batch_size * num_processes} in all" * (num_processes > 1)
        raise ValueError(f"batch_size must be at most the data set's {size} samples, got {batch_size}{of_all}.")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
    )


def endless_batches(loader: Any, position: Position) -> Iterator[Tensor]:
    """Yield batches indefinitely from `position`, advancing it; a resumed run gets the same ones.

    Raises:
        ValueError: If the loader has no batch.
    """
    if len(loader) == 0:
        raise ValueError(
            "the data loader has no batch, so there is nothing to train on; use a smaller batch_size, fewer processes "
            "or more data."
        )
    while True:
        loader.set_epoch(position.epoch)
        done = position.batch
        for (batch,) in skip_first_batches(loader, done) if done else loader:
            position.batch += 1
            yield batch
        position.epoch, position.batch = position.epoch + 1, 0


def random_flip(x: Tensor) -> Tensor:
    """Each image mirrored left-right with probability 1/2, shape (B, C, H, W)."""
    flip = torch.rand(x.shape[0], device=x.device) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def check_terms(terms: dict[str, float], limit: float, limits: dict[str, float] | None = None) -> None:
    """Stop the run if a loss term is not finite or larger than `limit`, or than its own of `limits`.

    Raises:
        TrainingDivergedError: It names the term and its value.
    """
    for name, value in terms.items():
        allowed = (limits or {}).get(name, limit)
        if not math.isfinite(value) or abs(value) > allowed:
            what = "is not finite" if not math.isfinite(value) else f"passed its limit of {allowed:g}"
            raise TrainingDivergedError(f"loss term {name!r} {what} (value {value})")


def check_weights(models: Iterable[nn.Module]) -> None:
    """Stop the run if a weight is not finite: an update of finite losses can have gradients that are not.

    Raises:
        TrainingDivergedError: It names the network and the weight.
    """
    for model in models:
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainingDivergedError(f"after the step {name!r} of {type(model).__name__} is not finite")


def gather_terms(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms' means over all processes as numbers: one small reduction and one transfer for all of them."""
    stacked = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, reduction="mean").tolist(), strict=True))


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on `device` if it is a GPU, else in RAM (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux; getrusage's figure starts at what the parent process held
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MetricsFile:
    """``metrics.jsonl``: one JSON object per logged step; resuming cuts off what came after the checkpoint."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept = []
        if resume_step and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line a killed run was writing
                if record["step"] > resume_step:
                    break
                kept.append(line + "\n")
        with whole_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def save_grid(images: list[PIL.Image.Image], path: Path, num_columns: int, scale: int = 1) -> None:
    """Images as one picture of `num_columns` columns, each enlarged `scale` times without smoothing, framed."""
    from diffusers.utils import make_image_grid

    rows = len(images) // num_columns
    size = (images[0].width * scale, images[0].height * scale)
    border = max(1, size[0] // 16)
    shown = [
        PIL.ImageOps.expand(image.resize(size, PIL.Image.Resampling.NEAREST).convert("RGB"), border, "white")
        for image in images[: rows * num_columns]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(shown, rows=rows, cols=num_columns).save(path)
