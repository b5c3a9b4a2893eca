"""A method as `hf_ebm.training.run` takes it: plain functions of a script, the order of updates in one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_ebm.hub import write_card
from hf_ebm.training.run_folder import save_samples


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
        make_pipeline: ``(networks, settings) -> pipeline`` around the networks that `build_models` returned. Their
            forward passes keep the run's mixed precision, so pipelines compute in it; saved weights are float32.
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
