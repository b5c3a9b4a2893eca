"""A training run from its settings to its pipeline folder: what is prepared, begun or resumed, finished and pushed."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from hf_ebm.data import describe_change, load_training_data
from hf_ebm.training.averaging import make_emas
from hf_ebm.training.checkpoints import find_checkpoint
from hf_ebm.training.loop import make_accelerator, make_loader
from hf_ebm.training.method import Method
from hf_ebm.training.resuming import Course, go_on, has_nothing_to_do, restore_random_states
from hf_ebm.training.run_folder import (
    check_output_dir,
    check_run_folder,
    check_writable,
    only_run,
    push_run,
    start_run,
)
from hf_ebm.training.running import Run, train
from hf_ebm.training.steps import prepare_models
from hf_ebm.training.stopping import FINISHING, stopping


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
    check_output_dir(output_dir)
    accelerator = make_accelerator(settings.mixed_precision, settings.trackers, output_dir)
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
    if checkpoint is not None and has_nothing_to_do(checkpoint, method, model_settings, settings, output_dir):
        accelerator.print(
            f"{output_dir} is finished: {checkpoint.name} is its last checkpoint and max_steps is "
            f"{settings.max_steps}; nothing was changed."
        )
        if settings.push_to_hub and accelerator.is_main_process:
            push_run(settings, output_dir)
        return output_dir
    check_writable(output_dir)
    loader = open_data(settings, method.sample_shape(models, model_settings), accelerator)

    prepare_models(models, settings)
    objects, schedules = method.make_objects(settings, accelerator, models, len(loader))
    averaged = models[: method.num_averaged] if settings.ema_decay is not None else ()
    emas = make_emas(averaged, settings.ema_decay, accelerator.device)
    accelerator.register_for_checkpointing(*schedules, *emas)
    check_run_folder(settings, output_dir, checkpoint)
    # loaded before anything in the folder is removed
    course = Course() if checkpoint is None else go_on(checkpoint, accelerator, settings, schedules, emas)
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
        objects=objects,
        schedules=schedules,
        averaged=averaged,
        emas=emas,
        loader=loader,
        course=course,
    )
    say = functools.partial(tqdm.write, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    with stopping(output_dir / "checkpoints", lambda: course.step, say, method.when_diverged) as interruption:
        train(run, interruption)
        interruption.answer = FINISHING
        run.finish()
    card = "" if method.write_card is None else ", README.md (the model card)"
    accelerator.print(f"wrote {output_dir}/: the pipeline, samples.png, metrics.jsonl{card}")
    if course.step < settings.max_steps:
        accelerator.print(f"the stretch ended at step {course.step} of {settings.max_steps}; go on with resume=latest")
    accelerator.end_training()
    if settings.push_to_hub and accelerator.is_main_process and course.step >= settings.max_steps:
        if interruption.asked:
            raise KeyboardInterrupt(f"stopped by the user before the push; hf-ebm push --model {output_dir} pushes it.")
        push_run(settings, output_dir)
    return output_dir


def open_data(settings: Any, sample_shape: tuple[int, ...], accelerator: Accelerator) -> Any:
    """The prepared loader of the training data; a note says if they are brought to another shape."""
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
    loader = make_loader(
        dataset, settings.batch_size, settings.seed, settings.num_workers, num_processes=accelerator.num_processes
    )
    return accelerator.prepare_data_loader(loader)
