"""A training run around a method's train step: data, resume, guard, records, EMA, and the pipeline at the end.

A script gives its parts as plain functions (`Method`); the order of updates is in its train step alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_ebm.data import describe_change, load_training_data
from hf_ebm.hub import write_card
from hf_ebm.pictures import words_of
from hf_ebm.training.averaging import averaged_weights, make_emas
from hf_ebm.training.checkpoints import (
    check_same_models,
    find_checkpoint,
    is_in,
    later_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from hf_ebm.training.cuda_graph import GraphedStep, why_no_cuda_graph
from hf_ebm.training.loop import (
    MetricsFile,
    Position,
    advance,
    check_terms,
    check_weights,
    endless_batches,
    gather_terms,
    make_accelerator,
    make_loader,
    peak_memory,
    random_flip,
)
from hf_ebm.training.run_folder import (
    finish_run,
    is_finished,
    log_samples,
    only_run,
    push_checkpoint,
    push_run,
    save_samples,
    start_run,
)
from hf_ebm.training.run_settings import RunSettings, changed_settings
from hf_ebm.training.stopping import FINISHING, stopping
from hf_ebm.winograd import WinogradConvolutions


@dataclasses.dataclass(frozen=True)
class Method:
    """The parts of a training script.

    Attributes:
        name: Shown on the progress bar; the card's template is ``<name>.md``.
        make_model_settings: ``settings -> model settings``, which a checkpoint remembers.
        build_models: ``model settings -> networks``; the first `num_averaged` get the EMA.
        make_objects: ``(settings, accelerator, models, steps_per_epoch) -> (objects, learning-rate schedules)``; the
            objects have ``models``, the prepared networks.
        train_step: ``(x, step, objects, settings) -> terms``, all updates of one iteration.
        make_pipeline: ``(objects, settings) -> pipeline`` around the networks as they are.
        shown_terms: Terms on the progress bar.
        term_limits: Limits of single terms' size; ``loss_limit`` for the others.
        when_diverged: Which settings to change after a run that diverged, in words.
        num_averaged: How many of the networks get the EMA: generator and energy of our two methods.
        step_kind: ``(step, settings) -> kind``; steps of one kind do the same work, see `hf_ebm.training.cuda_graph`.
        calibrate: What averaged weights need beyond their values (statistics, singular values), ``models -> None``.
        sample_shape: ``(networks, model settings) -> shape of one sample``, which the data are brought to.
        save_samples: ``(pipeline, folder, step, settings) -> picture``, as `run_folder.save_samples`.
        write_card: ``folder -> None``, the model card of the finished run; None: it gets none, and cannot be pushed.
    """

    name: str
    make_model_settings: Callable[[Any], dict[str, Any]]
    build_models: Callable[[dict[str, Any]], tuple[Any, ...]]
    make_objects: Callable[..., tuple[Any, list[Any]]]
    train_step: Callable[..., dict[str, Tensor]]
    make_pipeline: Callable[[Any, Any], Any]
    shown_terms: tuple[str, ...]
    term_limits: Callable[[Any], dict[str, float]] = lambda settings: {}
    when_diverged: str = "a smaller learning rate, or a stronger penalty on the energy"
    num_averaged: int = 2
    step_kind: Callable[[int, Any], Hashable] = lambda step, settings: None
    calibrate: Callable[..., None] = lambda *models: None
    sample_shape: Callable[..., tuple[int, ...]] = lambda models, model_settings: models[0].sample_shape
    save_samples: Callable[..., Path] = save_samples
    write_card: Callable[[Path], Any] | None = write_card


def run_training(method: Method, settings: Any) -> Path:
    """Train, and return the run folder, which is a pipeline folder then.

    Raises:
        ValueError: If a setting, the data or a checkpoint cannot be used; nothing was trained.
        TrainingDivergedError: If a loss or a weight is not finite, or a loss explodes.
    """
    settings.check_hub()
    if method.write_card is None and (settings.push_to_hub or settings.push_every_checkpoint):
        raise ValueError(f"push_to_hub must be false: a {method.name} run has no model card and stays local.")
    output_dir = Path(settings.output_dir)
    accelerator = make_accelerator(
        settings.mixed_precision, settings.gradient_accumulation_steps, settings.trackers, output_dir
    )
    with only_run(output_dir) if accelerator.is_main_process else nullcontext():
        return _run(method, settings, accelerator, output_dir)


def _run(method: Method, settings: Any, accelerator: Accelerator, output_dir: Path) -> Path:
    """See `run_training`."""
    model_settings = method.make_model_settings(settings)
    checkpoint = find_checkpoint(settings.resume, output_dir / "checkpoints") if settings.resume else None
    set_seed(settings.seed)
    models = method.build_models(model_settings)
    for model in models:
        if hasattr(model.config, "padding"):  # an energy of images, whose image processor shall pad as well
            model.config.padding = settings.padding
    if checkpoint is not None:
        check_same_models(checkpoint, model_settings, method.name)
        done = read_state(checkpoint)["step"]
        is_own = is_in(checkpoint, output_dir / "checkpoints")
        with_card = method.write_card is not None
        if is_own and done >= settings.max_steps and is_finished(output_dir, done, with_card):
            accelerator.print(
                f"{output_dir} is finished: its checkpoint has {done} steps and max_steps is {settings.max_steps}; "
                "nothing was changed."
            )
            if settings.push_to_hub and accelerator.is_main_process:
                push_run(settings, output_dir)
            return output_dir
        if done > settings.max_steps:
            raise ValueError(f"max_steps must be at least {done}, the steps of {checkpoint}, got {settings.max_steps}.")
    sample_shape = method.sample_shape(models, model_settings)
    dataset = load_training_data(
        settings.dataset,
        sample_shape,
        split=settings.dataset_split,
        config_name=settings.dataset_config,
        revision=settings.dataset_revision,
        image_column=settings.image_column,
        padding=settings.padding,
        num_samples=settings.num_toy_samples,
        seed=settings.seed,
    )
    if change := describe_change(dataset, sample_shape, settings.padding):
        accelerator.print(f"note: {change}. The models take what their settings say (preset, models, padding).")
    loader = make_loader(dataset, settings.batch_size, settings.seed, settings.num_workers)

    prepare_models(models, settings)
    loader = accelerator.prepare_data_loader(loader)
    steps_per_epoch = max(1, len(loader) // settings.gradient_accumulation_steps)
    objects, schedules = method.make_objects(settings, accelerator, models, steps_per_epoch)
    averaged = models[: method.num_averaged] if settings.ema_decay is not None else ()
    emas = make_emas(averaged, settings.ema_decay, accelerator.device)
    accelerator.register_for_checkpointing(*schedules, *emas)
    start_run(accelerator, settings, output_dir, checkpoint)  # now that every setting has been used once
    beginnings = [copy.deepcopy(schedule.state_dict()) for schedule in schedules]
    set_seed(settings.seed, device_specific=True)  # each process draws noise of its own from here on
    step, position, earlier_seconds, earlier_memory = 0, Position(), 0.0, 0
    changes: list[str] = []
    if checkpoint is not None:
        state = read_state(checkpoint)
        load_checkpoint(accelerator, checkpoint)
        if is_own and accelerator.is_main_process:
            for path in later_checkpoints(checkpoint):  # of the course that is left, as `start_run` was allowed to
                shutil.rmtree(path)
        for ema in emas:  # accelerate loads what it does not know to the CPU
            ema.to(accelerator.device)
        step, position = state["step"], Position(**state["position"])
        earlier_seconds, earlier_memory = state.get("seconds", 0.0), state.get("peak_memory_bytes", 0)
        if state["num_processes"] != accelerator.num_processes:
            accelerator.print(
                f"note: the checkpoint was made by {state['num_processes']} processes, this run has "
                f"{accelerator.num_processes}: it goes on, but not bit for bit."
            )
        changes = state.get("changes", [])
        earlier = state.get("settings", {})
        found = changed_settings(earlier, settings)
        others = [change for change in found if "learning_rate" in change.split()[0]]
        if step < earlier.get("max_steps", 0) != settings.max_steps:  # a finished run is extended, see below
            others.append(f"max_steps {earlier['max_steps']}")
            found.append(others[-1])
        if found:
            changes = [*changes, f"up to step {step}: {', '.join(found)}"]
            accelerator.print(f"note: other settings than before, which were {', '.join(found)}.")
        if others:
            restart_schedules(schedules, beginnings, step)
        elif step >= earlier.get("max_steps", settings.max_steps):
            rate = schedules[0].get_last_lr()[0]
            accelerator.print(
                f"note: the run was finished at step {step} and is extended to max_steps {settings.max_steps}; its "
                f"learning rate goes on at {rate:g}."
            )
    metrics = MetricsFile(output_dir / "metrics.jsonl", step) if accelerator.is_main_process else None

    def checkpoint_now() -> None:
        check_weights(models)  # before the good checkpoints make room for this one
        facts = {
            "position": dataclasses.asdict(position),
            "num_processes": accelerator.num_processes,
            "method": method.name,
            "models": model_settings,
            "settings": dataclasses.asdict(settings),
            "changes": changes,
            "seconds": earlier_seconds + time.perf_counter() - started,
            "peak_memory_bytes": max(earlier_memory, peak_memory(accelerator.device)),
        }
        save_checkpoint(accelerator, output_dir / "checkpoints", step, facts, settings.checkpoints_total_limit)
        if settings.push_every_checkpoint and accelerator.is_main_process:
            with averaged_weights(emas, averaged, method.calibrate):
                push_checkpoint(method.make_pipeline(objects, settings), settings, output_dir, step)
            for model in models:
                model.train()

    progress = tqdm(
        total=settings.max_steps, initial=step, disable=not accelerator.is_main_process, desc=method.name, unit="step"
    )
    batches = endless_batches(loader, position)
    limits = method.term_limits(settings)
    started, start_step = time.perf_counter(), step
    convolutions = training_convolutions(settings, accelerator.device)
    train_step = make_train_step(method, settings, objects)
    say = functools.partial(tqdm.write, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    with stopping(output_dir / "checkpoints", lambda: step, say, method.when_diverged) as interruption:
        with progress, convolutions:
            while step < settings.max_steps:
                try:
                    x = next(batches)
                except ValueError as error:
                    # the others of several processes would wait for this one, and half an accumulated step is not kept
                    if step == start_step or accelerator.num_processes > 1 or not accelerator.sync_gradients:
                        raise
                    checkpoint_now()
                    raise ValueError(
                        f"{words_of(error)} What {step} steps learned is in a checkpoint: repair the file, and go on "
                        "with resume=latest."
                    ) from error
                if settings.horizontal_flip:
                    x = random_flip(x)
                if settings.channels_last:
                    x = x.contiguous(memory_format=torch.channels_last)
                with accelerator.accumulate(*objects.models):
                    losses = train_step(x, step, objects, settings)
                spent, asked = torch.tensor(
                    [time.perf_counter() - started, float(interruption.asked)], device=accelerator.device
                )
                terms = gather_terms(accelerator, {**losses, "seconds": spent, "interrupted": asked})
                # the same on all processes, so that they stop at one step
                stretch_seconds, interrupted = terms.pop("seconds"), terms.pop("interrupted") > 0.0
                check_terms(terms, settings.loss_limit, limits)
                if not accelerator.sync_gradients:
                    continue
                for schedule in schedules:
                    advance(schedule)
                for ema, model in zip(emas, averaged, strict=True):
                    ema.step(model.parameters())
                step += 1
                progress.update(1)

                if step % settings.log_every == 0 or step == settings.max_steps:
                    progress.set_postfix({name: f"{terms[name]:.3g}" for name in method.shown_terms})
                    if metrics is not None:
                        rate = (step - start_step) / (time.perf_counter() - started)
                        record = {
                            **terms,
                            "learning_rate": float(schedules[0].get_last_lr()[0]),
                            "steps_per_second": rate,
                            "epoch": position.epoch,
                        }
                        metrics.write(step, record)
                        accelerator.log(record, step=step)
                if settings.sample_every and step % settings.sample_every == 0 and accelerator.is_main_process:
                    with averaged_weights(emas, averaged, method.calibrate):
                        pipeline = method.make_pipeline(objects, settings)
                        picture = method.save_samples(pipeline, output_dir / "samples", step, settings)
                    log_samples(accelerator, picture, step)
                    for model in models:
                        model.train()
                if interrupted or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
                    checkpoint_now()
                if interrupted:
                    raise KeyboardInterrupt
                if settings.stretch_seconds is not None and stretch_seconds >= settings.stretch_seconds:
                    break
        interruption.answer = FINISHING
        if not settings.checkpoint_every or step % settings.checkpoint_every:
            checkpoint_now()
        with averaged_weights(emas, averaged, method.calibrate):
            if accelerator.is_main_process:
                finish_run(
                    method.make_pipeline(objects, settings),
                    settings,
                    output_dir,
                    step=step,
                    seconds=earlier_seconds + time.perf_counter() - started,
                    memory=max(earlier_memory, peak_memory(accelerator.device)),
                    num_images=len(loader.dataset),
                    num_processes=accelerator.num_processes,
                    changes=changes,
                    save_samples=method.save_samples,
                    write_card=method.write_card,
                )
    card = "" if method.write_card is None else ", README.md (the model card)"
    accelerator.print(f"wrote {output_dir}/: the pipeline, samples.png, metrics.jsonl{card}")
    if step < settings.max_steps:
        accelerator.print(f"the stretch ended at step {step} of {settings.max_steps}; go on with resume=latest")
    accelerator.end_training()
    if settings.push_to_hub and accelerator.is_main_process and step >= settings.max_steps:
        if interruption.asked:
            raise KeyboardInterrupt(f"stopped by the user before the push; hf-ebm push --model {output_dir} pushes it.")
        push_run(settings, output_dir)
    return output_dir


def restart_schedules(schedules: Sequence[Any], beginnings: Sequence[dict[str, Any]], step: int) -> None:
    """Set learning rates as if a run had had its present settings from the beginning.

    Args:
        schedules: As a checkpoint left them.
        beginnings: Their states before it was loaded.
        step: Number of steps done.
    """
    for schedule, beginning in zip(schedules, beginnings, strict=True):
        schedule.load_state_dict(beginning)
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["initial_lr"] = rate
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        with warnings.catch_warnings():  # of a schedule that goes on before its optimizer
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(step):
                advance(schedule)


def prepare_models(models: Sequence[nn.Module], settings: RunSettings) -> None:
    """Training mode and the memory format of `settings`."""
    for model in models:
        model.train()
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_train_step(method: Method, settings: RunSettings, objects: Any) -> Callable[..., dict[str, Tensor]]:
    """The method's train step, launched as `settings` say; where it cannot be a graph, a note says why."""
    if not settings.cuda_graph:
        return method.train_step
    accelerator: Accelerator = objects.accelerator
    if why_not := why_no_cuda_graph(settings, accelerator):
        accelerator.print(f"note: cuda_graph has no effect here: {why_not}.")
        return method.train_step
    return GraphedStep(method.train_step, method.step_kind, objects, accelerator.device)


def training_convolutions(settings: RunSettings, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, convolutions are done as `settings` say."""
    eager = device.type == "cpu" and settings.mixed_precision == "no" and not settings.compile
    return WinogradConvolutions() if settings.winograd and eager else nullcontext()


def update(accelerator: Accelerator, optimizer: Any, loss: Tensor, parameters: Any, settings: RunSettings) -> None:
    """One step of `optimizer` down `loss`."""
    accelerator.backward(loss)
    if settings.max_grad_norm is not None and accelerator.sync_gradients:
        # accelerate's own clipping would unscale the gradients of the other optimizers as well, which are not whole yet
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def cosine_schedule(optimizer: Any, settings: RunSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """From the optimizer's learning rate to ``final_learning_rate`` over ``max_steps``."""
    lowest = min(settings.final_learning_rate, optimizer.defaults["lr"])
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.max_steps, eta_min=lowest)
