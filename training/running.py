"""A run under way: the loop around a method's train step, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_ebm.pictures import words_of
from hf_ebm.training.averaging import averaged_weights
from hf_ebm.training.checkpoints import save_checkpoint
from hf_ebm.training.loop import (
    MetricsFile,
    advance,
    check_terms,
    check_weights,
    endless_batches,
    gather_terms,
    peak_memory,
    random_flip,
)
from hf_ebm.training.method import Method
from hf_ebm.training.resuming import Course
from hf_ebm.training.run_folder import finish_run, log_samples, push_checkpoint
from hf_ebm.training.steps import make_train_step
from hf_ebm.training.stopping import Interruption


@dataclasses.dataclass
class Run:
    """A run under way: its parts, where it is, and what it leaves behind.

    Attributes:
        method: Its functions.
        settings: Of the method.
        accelerator: Knows all that a checkpoint holds.
        output_dir: The run's folder.
        model_settings: What a checkpoint remembers of the networks.
        models: The networks, not wrapped.
        objects: The method's, with the wrapped ones.
        schedules: Of the learning rates.
        averaged: The networks of `models` that have an average.
        emas: These averages.
        loader: Of the training data, prepared.
        course: How far it has come; `train` moves it.
    """

    method: Method
    settings: Any
    accelerator: Accelerator
    output_dir: Path
    model_settings: dict[str, Any]
    models: Sequence[nn.Module]
    objects: Any
    schedules: Sequence[Any]
    averaged: Sequence[nn.Module]
    emas: Sequence[EMAModel]
    loader: Any
    course: Course

    def __post_init__(self) -> None:
        """The clock starts, and the records go on."""
        self.started, self.start_step = time.perf_counter(), self.course.step
        path = self.output_dir / "metrics.jsonl"
        self.metrics = MetricsFile(path, self.course.step) if self.accelerator.is_main_process else None

    @property
    def seconds(self) -> float:
        """Since this start."""
        return time.perf_counter() - self.started

    @property
    def total_seconds(self) -> float:
        """Of all starts."""
        return self.course.earlier_seconds + self.seconds

    @property
    def memory(self) -> int:
        """The most bytes that a start has held."""
        return max(self.course.earlier_memory, peak_memory(self.accelerator.device))

    def averages(self) -> averaged_weights:
        """Inside ``with``, the networks hold their averaged weights."""
        return averaged_weights(self.emas, self.averaged, self.method.calibrate)

    def training_mode(self) -> None:
        """After a pipeline has used the networks."""
        for model in self.models:
            model.train()

    def next_batch(self, batches: Iterator[Tensor]) -> Tensor:
        """The next batch as the settings say, shape (B, ...).

        Raises:
            ValueError: If a sample cannot be read; a checkpoint keeps what this start has learned.
        """
        try:
            x = next(batches)
        except ValueError as error:
            # with several processes the others wait for this one, so that no checkpoint can be written
            if self.accelerator.num_processes > 1 or self.course.step == self.start_step:
                raise
            self.checkpoint()
            raise ValueError(
                f"{words_of(error)} What {self.course.step} steps learned is in a checkpoint: repair the file, and go "
                "on with resume=latest."
            ) from error
        if self.settings.horizontal_flip:
            x = random_flip(x)
        return x.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else x

    def log(self, terms: dict[str, float]) -> None:
        """One line of ``metrics.jsonl``, and the trackers' entry."""
        if self.metrics is None:
            return
        course = self.course
        record = {
            **terms,
            "learning_rate": float(self.schedules[0].get_last_lr()[0]),
            "steps_per_second": (course.step - self.start_step) / self.seconds,
            "epoch": course.position.epoch,
        }
        self.metrics.write(course.step, record)
        self.accelerator.log(record, step=course.step)

    def show_samples(self) -> None:
        """A picture of samples of the averaged weights, in the run's folder and the trackers; of the main process."""
        step = self.course.step
        with self.averages():
            pipeline = self.method.make_pipeline(self.models, self.settings)
            picture = self.method.save_samples(pipeline, self.output_dir / "samples", step, self.settings)
        log_samples(self.accelerator, picture, step)
        self.training_mode()

    def checkpoint(self) -> None:
        """A checkpoint of the present step, and its push if the settings ask for it; called by all processes.

        Raises:
            TrainingDivergedError: If a weight is not finite.
        """
        check_weights(self.models)  # before the good checkpoints make room for this one
        settings, course = self.settings, self.course
        facts = {
            "position": dataclasses.asdict(course.position),
            "num_processes": self.accelerator.num_processes,
            "method": self.method.name,
            "models": self.model_settings,
            "settings": dataclasses.asdict(settings),
            "changes": course.changes,
            "seconds": self.total_seconds,
            "peak_memory_bytes": self.memory,
        }
        folder = self.output_dir / "checkpoints"
        save_checkpoint(self.accelerator, folder, course.step, facts, settings.checkpoints_total_limit)
        if settings.push_every_checkpoint and self.accelerator.is_main_process:
            with self.averages():
                push_checkpoint(
                    self.method.make_pipeline(self.models, settings), settings, self.output_dir, course.step
                )
            self.training_mode()

    def finish(self) -> None:
        """The last checkpoint, if it is not there yet, and the pipeline; called by all processes."""
        settings, step = self.settings, self.course.step
        if not settings.checkpoint_every or step % settings.checkpoint_every:
            self.checkpoint()
        with self.averages():
            if self.accelerator.is_main_process:
                finish_run(
                    self.method.make_pipeline(self.models, settings),
                    settings,
                    self.output_dir,
                    step=step,
                    seconds=self.total_seconds,
                    memory=self.memory,
                    num_images=len(self.loader.dataset),
                    num_processes=self.accelerator.num_processes,
                    changes=self.course.changes,
                    save_samples=self.method.save_samples,
                    write_card=self.method.write_card,
                )


def train(run: Run, interruption: Interruption) -> None:
    """Iterate up to ``max_steps``, or the end of the stretch.

    Raises:
        KeyboardInterrupt: After a checkpoint, if somebody asked the run to stop.
        TrainingDivergedError: If a term of the losses is not finite or passes its limit.
    """
    method, settings, accelerator, course = run.method, run.settings, run.accelerator, run.course
    batches = endless_batches(run.loader, course.position)
    limits = method.term_limits(settings)
    train_step = make_train_step(method, settings, run.objects)
    progress = tqdm(
        total=settings.max_steps,
        initial=course.step,
        disable=not accelerator.is_main_process,
        desc=method.name,
        unit="step",
    )
    with progress:
        while course.step < settings.max_steps:
            x = run.next_batch(batches)
            losses = train_step(x, course.step, run.objects, settings)
            spent, asked = torch.tensor([run.seconds, float(interruption.asked)], device=accelerator.device)
            terms = gather_terms(accelerator, {**losses, "seconds": spent, "interrupted": asked})
            # the same on all processes, so that they stop at one step
            stretch_seconds, interrupted = terms.pop("seconds"), terms.pop("interrupted") > 0.0
            check_terms(terms, settings.loss_limit, limits)
            for schedule in run.schedules:
                advance(schedule)
            for ema, model in zip(run.emas, run.averaged, strict=True):
                ema.step(model.parameters())
            course.step += 1
            progress.update(1)

            if course.step % settings.log_every == 0 or course.step == settings.max_steps:
                progress.set_postfix({name: f"{terms[name]:.3g}" for name in method.shown_terms})
                run.log(terms)
            if settings.sample_every and course.step % settings.sample_every == 0 and accelerator.is_main_process:
                run.show_samples()
            if interrupted or (settings.checkpoint_every and course.step % settings.checkpoint_every == 0):
                run.checkpoint()
            if interrupted:
                raise KeyboardInterrupt
            if settings.stretch_seconds is not None and stretch_seconds >= settings.stretch_seconds:
                break
