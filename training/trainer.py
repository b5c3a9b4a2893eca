"""The training run that all methods share: data, loop, averaged weights, records, sample grids, the final pipeline.

A training script describes its method as a `Method`: plain functions that build the networks, optimizers and pipeline,
and one train step with all updates of an iteration. `run_training` takes it from the settings to a finished pipeline
folder. The loop logs losses, saves samples and checkpoints, and stops when a loss or a weight is not finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
    set_seed,
)
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hf_ebm.data.image_files import words_of
from hf_ebm.data.loading import Classes, classes_of, cluster, describe_change, load_training_data
from hf_ebm.evaluation.sample_metrics import seeded
from hf_ebm.hub.model_card import write_card
from hf_ebm.training.checkpointing import (
    Position,
    Progress,
    advance,
    check_same_models,
    check_same_states,
    find_checkpoint,
    is_in,
    load_best,
    read_state,
    restore_random_states,
    resume_run,
    save_checkpoint,
    warm_up,
)
from hf_ebm.training.config import RunSettings
from hf_ebm.training.cuda_graph import GraphedStep, why_no_cuda_graph
from hf_ebm.training.launch import FINISHING, Interruption, TrainingDivergedError, outlive_signals, stopping
from hf_ebm.training.run_folder import (
    check_run_folder,
    finish_run,
    is_finished,
    log_samples,
    only_run,
    push_run,
    save_samples,
    start_run,
)
from hf_ebm.training.stability import STABILITY, EnergyGapWatch, check_samples
from hf_ebm.training.validation import (
    PREFIX,
    Best,
    Validator,
    check_metric,
    hold_out,
    plot_validation,
    shares_training_rows,
)
from hf_ebm.utils.files import check_writable, whole_file


def make_emas(models: Sequence[nn.Module], decay: float, device: torch.device) -> list[EMAModel]:
    """An average of each model's weights, on `device`."""
    emas = [EMAModel(model.parameters(), decay=decay, foreach=True) for model in models]
    for ema in emas:
        ema.to(device)
    return emas


TRACKERS = ("tensorboard", "wandb")
UNSUPPORTED = {  # variables that `accelerate launch` sets, and what each asks for
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
MAX_VALIDATION_SHARE = 0.05  # of the run's time; above it a message says how to spend less
PROCESS_TIMEOUT = timedelta(hours=6)  # the others wait so long for the first, which saves samples and checkpoints


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
    """An `Accelerator` whose data order can be resumed; a `ValueError` if it cannot have what the settings ask for."""
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
    """A shuffling loader of full batches of `batch_size` per process, in an order that only `seed` decides."""
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


def endless_batches(loader: Any, position: Position) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of samples, or of samples and labels, indefinitely from `position`, advancing it.

    A resumed run gets the same ones.
    """
    if len(loader) == 0:
        raise ValueError(
            "the data loader has no batch, so there is nothing to train on; use a smaller batch_size, fewer processes "
            "or more data."
        )
    while True:
        loader.set_epoch(position.epoch)
        done = position.batch
        for batch in skip_first_batches(loader, done) if done else loader:
            position.batch += 1
            yield tuple(batch)
        position.epoch, position.batch = position.epoch + 1, 0


def random_flip(x: Tensor) -> Tensor:
    """Each image mirrored left-right with probability 1/2, shape (B, C, H, W)."""
    flip = torch.rand(x.shape[0], device=x.device) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def check_terms(terms: dict[str, float], limit: float, limits: dict[str, float] | None = None) -> None:
    """Raise a `TrainingDivergedError` if a loss term is not finite or exceeds `limit`, or its own of `limits`."""
    for name, value in terms.items():
        allowed = (limits or {}).get(name, limit)
        if not math.isfinite(value) or abs(value) > allowed:
            what = "is not finite" if not math.isfinite(value) else f"passed its limit of {allowed:g}"
            raise TrainingDivergedError(f"loss term {name!r} {what} (value {value})")


def check_weights(models: Iterable[nn.Module]) -> None:
    """Raise a `TrainingDivergedError` if a weight is not finite, which an update of finite losses can cause."""
    for model in models:
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainingDivergedError(f"after the step {name!r} of {type(model).__name__} is not finite")


def gather_terms(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms' means over all processes as numbers: one small reduction and one transfer for all of them."""
    stacked = torch.stack([term.detach().float() for term in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, reduction="mean").tolist(), strict=True))


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far, on a GPU `device` or in RAM (without /proc: holds now)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return psutil.Process().memory_info().rss


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

    def read(self, prefix: str) -> list[dict[str, float]]:
        """The lines with a value whose name begins with `prefix`."""
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if any(name.startswith(prefix) for name in line)]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


@dataclasses.dataclass(frozen=True)
class Method:
    """The parts of a training script.

    Attributes:
        name: Shown on the progress bar; the card's template is ``<name>.md``.
        make_model_settings: ``settings -> model settings``, which a checkpoint remembers. With `takes_labels` it has
            a second argument, the `hf_ebm.data.loading.Classes`, which is given in a run with classes.
        build_models: ``model settings -> networks``; the first `num_averaged` get the EMA.
        make_train_state: ``(settings, accelerator, models, steps_per_epoch) -> (state, learning-rate schedules)``; the
            state has ``models``, the prepared networks.
        train_step: ``(x, step, state, settings) -> terms``, all updates of one iteration. With `takes_labels` it has
            a fifth argument, the labels (B,), which is given in a run with classes.
        make_pipeline: ``(networks, settings) -> pipeline`` around the networks that `build_models` returned. Their
            forward passes keep the run's mixed precision, so pipelines compute in it; saved weights are float32.
        shown_terms: Terms on the progress bar.
        energy_terms: Terms with the mean energies of real and of generated samples, whose gap is watched; none: nor is
            anything else of `hf_ebm.training.stability`.
        term_limits: Limits of single terms' size; ``loss_limit`` for the others.
        when_diverged: Advice on which settings to change after a run that diverged.
        num_averaged: How many of the networks get the EMA: generator and energy of our two methods.
        step_kind: ``(step, settings) -> kind``; steps of one kind do the same work, see `hf_ebm.training.cuda_graph`.
        refresh_statistics: ``models -> None``: recompute what averaged weights need beyond their values, such as batch
            norm's running statistics and spectral norm's singular values.
        sample_shape: ``(networks, model settings) -> shape of one sample``, which the data are brought to.
        save_samples: ``(pipeline, folder, step, settings) -> path``, as `run_folder.save_samples`.
        write_card: ``folder -> None``, the model card of the finished run; None: it gets none, and cannot be pushed.
        takes_labels: Whether it trains class-conditional networks.
    """

    name: str
    make_model_settings: Callable[..., dict[str, Any]]
    build_models: Callable[[dict[str, Any]], tuple[Any, ...]]
    make_train_state: Callable[..., tuple[Any, list[Any]]]
    train_step: Callable[..., dict[str, Tensor]]
    make_pipeline: Callable[[Any, Any], Any]
    shown_terms: tuple[str, ...]
    energy_terms: tuple[str, ...] = ()
    term_limits: Callable[[Any], dict[str, float]] = lambda settings: {}
    when_diverged: str = "a smaller learning rate, or a stronger penalty on the energy"
    num_averaged: int = 2
    step_kind: Callable[[int, Any], Hashable] = lambda step, settings: None
    refresh_statistics: Callable[..., None] = lambda *models: None
    sample_shape: Callable[..., tuple[int, ...]] = lambda models, model_settings: models[0].sample_shape
    save_samples: Callable[..., Path] = save_samples
    write_card: Callable[[Path], Any] | None = write_card
    takes_labels: bool = False


def prepare_models(models: Sequence[nn.Module], settings: RunSettings) -> None:
    """Training mode and the memory format of `settings`."""
    for model in models:
        model.train()
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_train_step(method: Method, settings: RunSettings, state: Any) -> Callable[..., dict[str, Tensor]]:
    """The method's train step, launched as in `settings`; a message explains why it cannot be a graph."""
    if not settings.cuda_graph:
        return method.train_step
    accelerator: Accelerator = state.accelerator
    if why_not := why_no_cuda_graph(settings, accelerator):
        accelerator.print(f"note: cuda_graph has no effect here: {why_not}.")
        return method.train_step
    return GraphedStep(method.train_step, method.step_kind, state, accelerator.device)


def update(accelerator: Accelerator, optimizer: Any, loss: Tensor, parameters: Any, settings: RunSettings) -> None:
    """One step of `optimizer` down `loss`."""
    accelerator.backward(loss)
    if settings.max_grad_norm is not None:
        # accelerate's own clipping would unscale the gradients of the other optimizers as well
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def cosine_schedule(optimizer: Any, settings: RunSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """From the optimizer's learning rate to ``final_learning_rate`` over the steps after the warm-up."""
    lowest = min(settings.final_learning_rate, optimizer.defaults["lr"])
    num_steps = settings.max_steps - settings.lr_warmup_steps
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=lowest)


@dataclasses.dataclass
class Run:
    """A run: its parts, its progress and its records."""

    method: Method
    settings: Any
    accelerator: Accelerator
    output_dir: Path
    model_settings: dict[str, Any]  # which a checkpoint remembers
    models: Sequence[nn.Module]  # not wrapped
    state: Any  # the method's, with the wrapped ones
    schedules: Sequence[Any]  # of the learning rates
    averaged: Sequence[nn.Module]  # those of `models` that have an average
    emas: Sequence[EMAModel]  # their averages
    loader: Any
    progress: Progress  # which `train` advances
    validator: Validator | None = None  # in the main process of a run that validates
    best: Best | None = None  # with ``save_best_by``
    validation_seconds: float = 0.0
    batch: Tensor | None = None  # the last training samples, shape (B, ...)
    checked_step: int = 0  # of the last `check_stability`

    def __post_init__(self) -> None:
        """Start the clock and open the records."""
        self.started, self.start_step = time.perf_counter(), self.progress.step
        self.energy_gap = EnergyGapWatch()
        path = self.output_dir / "metrics.jsonl"
        self.metrics = MetricsFile(path, self.progress.step) if self.accelerator.is_main_process else None

    @property
    def seconds(self) -> float:
        """Seconds since this start."""
        return time.perf_counter() - self.started

    @property
    def total_seconds(self) -> float:
        """Seconds of all starts."""
        return self.progress.earlier_seconds + self.seconds

    @property
    def memory(self) -> int:
        """Peak memory of all starts, in bytes."""
        return max(self.progress.earlier_memory, peak_memory(self.accelerator.device))

    @contextlib.contextmanager
    def averaged_pipeline(self) -> Iterator[Any]:
        """The pipeline of the averaged weights, with refreshed statistics; afterwards the networks have their own."""
        pairs = list(zip(self.emas, self.averaged, strict=True))
        buffers = [[buffer.clone() for buffer in model.buffers()] for model in self.averaged]
        for ema, model in pairs:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
        if pairs:
            self.method.refresh_statistics(*self.averaged)
        try:
            pipeline = self.method.make_pipeline(self.models, self.settings)
            if self.settings.crop_box is not None:  # padding, too, is in the energy's config
                shape = self.method.sample_shape(self.models, self.model_settings)
                pipeline.image_processor = self.settings.make_image_processor(shape)
            yield pipeline
        finally:
            for (ema, model), saved in zip(pairs, buffers, strict=True):
                ema.restore(model.parameters())
                for buffer, value in zip(model.buffers(), saved, strict=True):
                    buffer.copy_(value)
            for model in self.models:
                model.train()

    def next_batch(self, batches: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The next batch as the settings say: samples, shape (B, ...), and in a run with classes labels, shape (B,)."""
        try:
            x, *labels = next(batches)
        except ValueError as error:
            # with several processes the others wait for this one, so that no checkpoint can be written
            if self.accelerator.num_processes > 1 or self.progress.step == self.start_step:
                raise
            self.checkpoint()
            raise ValueError(
                f"{words_of(error)} What {self.progress.step} steps learned is in a checkpoint: repair the file, and "
                "resume with resume=latest."
            ) from error
        if self.settings.horizontal_flip:
            x = random_flip(x)
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, *labels

    def log(self, terms: dict[str, float]) -> None:
        """One line of ``metrics.jsonl``, and the trackers' entry."""
        if self.metrics is None:
            return
        progress = self.progress
        record = {
            **terms,
            "learning_rate": float(self.schedules[0].get_last_lr()[0]),
            "steps_per_second": (progress.step - self.start_step) / self.seconds,
            "epoch": progress.position.epoch,
        }
        self.metrics.write(progress.step, record)
        self.accelerator.log(record, step=progress.step)
        if self.method.energy_terms and (
            warning := self.energy_gap(*(terms[name] for name in self.method.energy_terms))
        ):
            self.warn(f"{warning}; {self.method.when_diverged} may stop it")

    def warn(self, text: str) -> None:
        """Print a warning of the present step above the progress bar."""
        tqdm.write(f"warning: step {self.progress.step}: {text}.", file=sys.stderr)

    def check_stability(self, pipeline: Any) -> None:
        """Record the figures of the averaged weights' stability, and print a warning for each out of bounds."""
        step, is_watched = self.progress.step, bool(self.method.energy_terms)
        if not is_watched or self.metrics is None or self.batch is None or len(self.batch) < 2:
            return
        if self.checked_step == step:  # by the sample grid
            return
        self.checked_step = step
        with seeded(self.settings.seed):
            found, warnings = check_samples(pipeline, self.batch, self.settings.seed)
        record = {STABILITY + name: value for name, value in found.items()}
        self.metrics.write(step, record)
        self.accelerator.log(record, step=step)
        for warning in warnings:
            self.warn(warning)

    def show_samples(self) -> None:
        """Save a sample grid of the averaged weights in the run's folder and the trackers, in the main process."""
        step = self.progress.step
        with self.averaged_pipeline() as pipeline:
            grid = self.method.save_samples(pipeline, self.output_dir / "samples", step, self.settings)
            self.check_stability(pipeline)
        log_samples(self.accelerator, grid, step)

    def validate(self) -> None:
        """Record the metrics of the averaged weights, keep these if they are the best, and plot the metrics."""
        started, step = time.perf_counter(), self.progress.step
        assert self.validator is not None and self.metrics is not None
        with self.averaged_pipeline() as pipeline:
            found = self.validator(pipeline)
            self.check_stability(pipeline)
            if self.best is not None:
                self.best.update(found, step, self.models)
        record = {PREFIX + name: value for name, value in found.items()}
        self.metrics.write(step, record)
        self.accelerator.log(record, step=step)
        if importlib.util.find_spec("matplotlib"):
            best_step = 0 if self.best is None else self.best.step
            with whole_file(self.output_dir / "validation.png") as temporary:
                plot_validation(self.metrics.read(PREFIX), best_step, temporary)
        self.validation_seconds += time.perf_counter() - started

    def has_stopped_improving(self) -> bool:
        """Whether early stopping ends the run now, the same in all processes."""
        if self.best is None or self.settings.early_stopping_patience is None:
            return False
        done = self.best.without_improvement >= self.settings.early_stopping_patience
        return broadcast_object_list([done])[0]

    def checkpoint(self) -> None:
        """A checkpoint of the present step; called by all processes."""
        check_weights(self.models)  # before the good checkpoints make room for this one
        settings, progress = self.settings, self.progress
        facts = {
            "position": dataclasses.asdict(progress.position),
            "num_processes": self.accelerator.num_processes,
            "method": self.method.name,
            "models": self.model_settings,
            "settings": dataclasses.asdict(settings),
            "changes": progress.changes,
            "seconds": self.total_seconds,
            "peak_memory_bytes": self.memory,
        }
        best: dict[str, Tensor] = {}
        if self.best is not None:
            facts["best"], best = self.best.facts(), self.best.tensors()
        folder = self.output_dir / "checkpoints"
        save_checkpoint(self.accelerator, folder, progress.step, facts, settings.checkpoints_total_limit, best)

    def finish(self) -> None:
        """Write the last checkpoint, if missing, and the pipeline; called by all processes."""
        settings, step = self.settings, self.progress.step
        if not settings.checkpoint_every or step % settings.checkpoint_every:
            self.checkpoint()
        with self.averaged_pipeline() as pipeline:
            if self.accelerator.is_main_process:
                if self.best is not None and self.best.weights:
                    for model, weights in zip(self.models, self.best.weights, strict=True):
                        model.load_state_dict(weights)
                finish_run(pipeline, self)


def train(run: Run, interruption: Interruption) -> None:
    """Iterate up to ``max_steps``, or until ``max_runtime_seconds`` have passed or an interruption was asked for."""
    method, settings, accelerator, progress = run.method, run.settings, run.accelerator, run.progress
    batches = endless_batches(run.loader, progress.position)
    limits = method.term_limits(settings)
    train_step = make_train_step(method, settings, run.state)
    bar = tqdm(
        total=settings.max_steps,
        initial=progress.step,
        disable=None if accelerator.is_main_process else True,  # None: shown on a terminal
        desc=method.name,
        unit="step",
    )
    with bar:
        while progress.step < settings.max_steps:
            x, *labels = run.next_batch(batches)
            run.batch = x
            losses = train_step(x, progress.step, run.state, settings, *labels)
            spent, asked = torch.tensor([run.seconds, float(interruption.asked)], device=accelerator.device)
            terms = gather_terms(accelerator, {**losses, "seconds": spent, "interrupted": asked})
            # the same on all processes, so that they stop at one step
            seconds, interrupted = terms.pop("seconds"), terms.pop("interrupted") > 0.0
            check_terms(terms, settings.loss_limit, limits)
            for schedule in run.schedules:
                advance(schedule, progress.step + 1, settings.lr_warmup_steps)
            for ema, model in zip(run.emas, run.averaged, strict=True):
                ema.step(model.parameters())
            progress.step += 1
            bar.update(1)

            if progress.step % settings.log_every == 0 or progress.step == settings.max_steps:
                bar.set_postfix({name: f"{terms[name]:.3g}" for name in method.shown_terms})
                run.log(terms)
            if settings.sample_every and progress.step % settings.sample_every == 0 and accelerator.is_main_process:
                run.show_samples()
            is_last = progress.step == settings.max_steps
            validates = settings.validate_every and (progress.step % settings.validate_every == 0 or is_last)
            if validates and accelerator.is_main_process:
                run.validate()
            if interrupted or (settings.checkpoint_every and progress.step % settings.checkpoint_every == 0):
                run.checkpoint()
            if interrupted:
                raise KeyboardInterrupt
            if validates and run.has_stopped_improving():
                break
            if settings.max_runtime_seconds is not None and seconds >= settings.max_runtime_seconds:
                break


def run_training(method: Method, settings: Any) -> Path:
    """Train, and return the run folder, which is a pipeline folder then.

    Raises:
        ValueError: If a setting, the data or a checkpoint cannot be used; nothing was trained.
        TrainingDivergedError: If a loss or a weight is not finite, or a loss explodes.
    """
    settings.check_hub()
    if method.write_card is None and settings.push_to_hub:
        raise ValueError(f"push_to_hub must be false: a {method.name} run has no model card and stays local.")
    output_dir = Path(settings.output_dir)
    accelerator = make_accelerator(settings.mixed_precision, settings.trackers, output_dir)
    with only_run(output_dir) if accelerator.is_main_process else contextlib.nullcontext():
        return _run(method, settings, accelerator, output_dir)


def _run(method: Method, settings: Any, accelerator: Accelerator, output_dir: Path) -> Path:
    """See `run_training`."""
    dataset, classes = None, list[Classes]()
    if settings.class_conditional or settings.pseudo_labels:
        if not method.takes_labels:
            raise ValueError(
                f"class_conditional must be false and pseudo_labels 0: {method.name} trains without labels."
            )
        unconditional = method.make_model_settings(settings)
        with torch.device("meta"):  # for the shape only: without memory and initialisation
            shape = method.sample_shape(method.build_models(unconditional), unconditional)
        dataset, *classes = load_labelled_data(settings, shape)
    model_settings = method.make_model_settings(settings, *classes)
    checkpoint = find_checkpoint(settings.resume, output_dir / "checkpoints") if settings.resume else None
    set_seed(settings.seed)
    models = method.build_models(model_settings)
    has_scores = any(getattr(model, "class_scores", None) is not None for model in models)
    if has_scores and settings.classification_weight == 0:
        accelerator.print(
            "note: with classification_weight=0 the classes' energies have free offsets, so that neither the "
            "marginal energy nor p(y | x) means anything."
        )
    for model in models:
        if hasattr(model.config, "padding"):  # an energy of images, whose image processor pads as well
            model.config.padding = settings.padding
    if checkpoint is not None and has_nothing_to_do(checkpoint, method, model_settings, settings, output_dir):
        accelerator.print(
            f"{output_dir} is finished: {checkpoint.name} is its last checkpoint and max_steps is "
            f"{settings.max_steps}; nothing was changed."
        )
        if settings.push_to_hub and accelerator.is_main_process:
            push_run(settings, output_dir)
        return output_dir
    check_writable("output_dir", output_dir, is_folder=True)
    loader, held_out = open_data(settings, method.sample_shape(models, model_settings), accelerator, dataset)
    validator = None
    if held_out is not None and accelerator.is_main_process:
        validator = Validator.open(held_out, loader.dataset, settings, accelerator.device)
        check_metric(settings.save_best_by, validator.names(method.make_pipeline(models, settings)))

    prepare_models(models, settings)
    state, schedules = method.make_train_state(settings, accelerator, models, len(loader))
    averaged = models[: method.num_averaged] if settings.ema_decay is not None else ()
    emas = make_emas(averaged, settings.ema_decay, accelerator.device)
    accelerator.register_for_checkpointing(*schedules, *emas)
    check_run_folder(settings, output_dir, checkpoint)
    # loaded before anything in the folder is removed
    progress = Progress() if checkpoint is None else resume_run(checkpoint, accelerator, settings, schedules, emas)
    if progress.step < settings.lr_warmup_steps:
        for schedule in schedules:
            warm_up(schedule, progress.step, settings.lr_warmup_steps)
    start_run(accelerator, settings, output_dir, checkpoint)  # now that every setting has been used once
    set_seed(settings.seed, device_specific=True)  # each process draws noise of its own from here on
    if checkpoint is not None:
        restore_random_states(checkpoint, accelerator, settings)
    run = Run(
        method=method,
        settings=settings,
        accelerator=accelerator,
        output_dir=output_dir,
        model_settings=model_settings,
        models=models,
        state=state,
        schedules=schedules,
        averaged=averaged,
        emas=emas,
        loader=loader,
        progress=progress,
        validator=validator,
    )
    if settings.save_best_by is not None:
        run.best = Best.restore(settings.save_best_by, *(load_best(checkpoint) if checkpoint else ({}, {})))
    say = functools.partial(tqdm.write, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    with stopping(output_dir / "checkpoints", lambda: progress.step, say, method.when_diverged) as interruption:
        train(run, interruption)
        interruption.answer = FINISHING
        run.finish()
    card = "" if method.write_card is None else ", README.md (the model card)"
    accelerator.print(f"wrote {output_dir}/: the pipeline, samples.png, metrics.jsonl{card}")
    if run.validation_seconds:
        say_validation(run)
    if run.has_stopped_improving():
        accelerator.print(
            f"stopped early at step {progress.step} of {settings.max_steps}: {settings.early_stopping_patience} "
            f"validations without improvement of {settings.save_best_by}."
        )
    elif progress.step < settings.max_steps:
        accelerator.print(
            f"the run reached max_runtime_seconds at step {progress.step} of {settings.max_steps}; resume with "
            "resume=latest"
        )
    accelerator.end_training()
    if settings.push_to_hub and accelerator.is_main_process and progress.step >= settings.max_steps:
        if interruption.asked:
            raise KeyboardInterrupt(f"stopped by the user before the push; hf-ebm push --model {output_dir} pushes it.")
        push_run(settings, output_dir)
    return output_dir


def say_validation(run: Run) -> None:
    """Print what validation cost, and which weights were kept."""
    share = run.validation_seconds / run.seconds
    text = f"validation took {run.validation_seconds:.1f} s, {100 * share:.1f} % of the run"
    if share > MAX_VALIDATION_SHARE:
        text += "; a larger validate_every, or a smaller num_validation_images, takes less"
    if run.best is not None and run.best.step:
        text += f". The pipeline has the weights of step {run.best.step}: {run.best.metric} {run.best.value:.4g}"
    run.accelerator.print(text)


def load_data(settings: Any, sample_shape: tuple[int, ...]) -> Any:
    """The training data of the settings."""
    return load_training_data(
        settings.dataset,
        sample_shape,
        split=settings.dataset_split,
        config_name=settings.dataset_config,
        revision=settings.dataset_revision,
        image_column=settings.image_column,
        image_processor=settings.make_image_processor(sample_shape),
        num_samples=settings.num_toy_samples,
        seed=settings.seed,
        with_labels=settings.class_conditional,
        label_column=settings.label_column,
    )


def load_labelled_data(settings: Any, sample_shape: tuple[int, ...]) -> tuple[Any, Classes]:
    """The training data with labels, or with pseudo-labels, and their classes."""
    dataset = load_data(settings, sample_shape)
    if settings.pseudo_labels:
        return cluster(dataset, settings.pseudo_labels, settings.seed)
    return dataset, classes_of(dataset)


def open_data(
    settings: Any, sample_shape: tuple[int, ...], accelerator: Accelerator, dataset: Any = None
) -> tuple[Any, Any]:
    """The prepared loader of the training data, and the held-out data, None in a run that does not validate.

    A message reports if images are resized or converted. `dataset` is loaded if it is None.
    """
    dataset = load_data(settings, sample_shape) if dataset is None else dataset
    if change := describe_change(dataset):
        accelerator.print(f"note: {change}. The models take what their settings say (preset, models, padding).")
    if shares_training_rows(dataset, settings):
        accelerator.print(
            f"warning: validation_split {settings.validation_split!r} has rows of the training split "
            f"{settings.dataset_split!r}: the validation's figures are too good."
        )
    dataset, held_out = hold_out(dataset, settings, sample_shape)
    loader = make_loader(
        dataset, settings.batch_size, settings.seed, settings.num_workers, num_processes=accelerator.num_processes
    )
    return accelerator.prepare_data_loader(loader), held_out


def has_nothing_to_do(
    checkpoint: Path, method: Method, model_settings: dict[str, Any], settings: RunSettings, output_dir: Path
) -> bool:
    """Whether a checkpoint is the last of a run that is finished; a `ValueError` if it cannot be resumed."""
    check_same_models(checkpoint, model_settings, method.name)
    check_same_states(checkpoint, settings)
    state = read_state(checkpoint)
    done = state["step"]
    is_own = is_in(checkpoint, output_dir / "checkpoints")
    with_card = method.write_card is not None
    patience = settings.early_stopping_patience or math.inf
    ended = done >= settings.max_steps or state.get("best", {}).get("without_improvement", 0) >= patience
    if is_own and ended and is_finished(output_dir, done, with_card):
        return True
    if done > settings.max_steps:
        raise ValueError(f"max_steps must be at least {done}, the steps of {checkpoint}, got {settings.max_steps}.")
    return False
