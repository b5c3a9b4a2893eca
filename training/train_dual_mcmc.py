"""Train by Dual-MCMC Teaching (Cui & Han, NeurIPS 2023).

    accelerate launch training/train_dual_mcmc.py --config training/configs/dual_mcmc_digits.yaml key=value ...
    accelerate launch -m hf_ebm.training.train_dual_mcmc            # the same, from an installed package

With no arguments it trains the digits. The run folder ``output_dir`` becomes a pipeline folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import update_bn

from hf_ebm.data.loading import Classes
from hf_ebm.langevin import ChainDivergedError, energy_grad, langevin_chain
from hf_ebm.losses.conditional import classification_term, drop_labels
from hf_ebm.losses.ddaebm import energy_magnitude_term
from hf_ebm.losses.dual_mcmc import (
    energy_loss,
    generator_loss,
    inference_loss,
    noised_samples,
    posterior_energy,
    squared_error,
)
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.latent_generator import frozen_running_statistics
from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.schedulers.energy_sampler import check_size
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.training.config import RunSettings
from hf_ebm.training.launch import TrainingDivergedError, run_script
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update

DEFAULT_CONFIG = "dual_mcmc_digits.yaml"


@dataclasses.dataclass(frozen=True)
class DualMCMCSettings(RunSettings):
    """Settings of a run; unless noted, the defaults are the published CIFAR-10 ones."""

    output_dir: str = "outputs/dual-mcmc"

    # the x-chain on the energy, started at the generator's sample
    x_num_steps: int = 30  # 0: the energy teaches nothing, and learns from unrevised samples
    x_step_size: float = 0.5  # CelebA: 0.3
    x_noise_std: float = 0.001
    energy_negatives: str = "second_chain"  # of the updated generator; "first_chain": reuse it; "generator": no chain
    noised_negatives: float = 0.0  # share of them that are chains from noised training samples instead; ours
    noised_negatives_max_std: float = 1.5  # the noise's standard deviation is uniform between 0 and this

    # the z-chain on the generator's posterior
    z_num_steps: int = 10
    z_step_size: float = 0.1
    z_noise_std: float = 0.1
    z_start: str = "inference"  # a sample of q(z | x); "noise": of N(0, I)
    likelihood_std: float = 0.3  # of p(x | z); the squared error carries no 1/2

    # objective
    recon_weight: float = 1.0
    sample_weight: float = 50.0  # CelebA: 70
    latent_weight: float = 0.1
    energy_magnitude_weight: float = 0.0  # times mean E(x)^2 + mean E(x_revised)^2, in units of temperature; ours
    class_scores: bool = False  # with classes: whether the energy depends on the label and has p(y | x)

    # optimisation
    generator_learning_rate: float = 3e-4
    inference_learning_rate: float = 1e-4
    weight_decay: float = 5e-4  # of generator and inference model
    learning_rate_schedule: str = "exponential"  # or "cosine"
    learning_rate_decay: float = 0.998  # per epoch, of the exponential schedule
    ema_decay: float | None = None  # of generator and energy; the published code has none
    energy_gap_limit: float = 1e4  # the run stops where |mean E(x) - mean E(x_revised)| passes it

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the setting, before any work."""
        super().__post_init__()
        self.check_at_least(0, "x_num_steps", "z_num_steps")
        for name in ("x_step_size", "x_noise_std", "z_step_size", "z_noise_std"):
            check_size(name, getattr(self, name))
        self.check_positive("likelihood_std", "noised_negatives_max_std")
        if not 0.0 <= self.noised_negatives <= 1.0:
            raise ValueError(f"noised_negatives must be a share in [0, 1], got {self.noised_negatives}.")
        self.check_not_negative("recon_weight", "sample_weight", "latent_weight", "energy_magnitude_weight")
        self.check_not_negative("weight_decay")
        self.check_positive("learning_rate_decay", "energy_gap_limit", "inference_learning_rate")
        self.check_choice("energy_negatives", ("second_chain", "first_chain", "generator"))
        self.check_choice("z_start", ("inference", "noise"))
        self.check_choice("learning_rate_schedule", ("exponential", "cosine"))

    @property
    def temperature(self) -> float:
        """``(x_noise_std / x_step_size)^2``: the model is ``p(x) ~ exp(-E(x) / temperature)``."""
        return (self.x_noise_std / self.x_step_size) ** 2


@dataclasses.dataclass
class TrainState:
    """What a train step updates and uses."""

    accelerator: Accelerator
    generator_model: Any
    energy_model: Any
    inference_model: Any
    generator_optimizer: Any
    energy_optimizer: Any
    inference_optimizer: Any

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return self.energy_model, self.generator_model, self.inference_model


class Samples(NamedTuple):
    """What the updates of an iteration share: the two chains' starts and ends."""

    mean: Tensor  # (B, latent_dim), of q(z | x), as logvar
    logvar: Tensor
    z: Tensor  # (B, latent_dim), of the prior
    x_gen: Tensor  # g(z)
    x_revised: Tensor  # the x-chain from x_gen
    z_revised: Tensor  # the z-chain from z_inferred ~ q(z | x)
    labels: Tensor | None = None  # y (B,), without dropout, in a run with classes
    y: Tensor | None = None  # the same after label dropout; -1 = dropped


def train_step(
    x: Tensor, step: int, state: TrainState, settings: DualMCMCSettings, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """One iteration in the published order: generator, inference model, energy; returns the terms of the losses.

    The inference model does not change before its own update, so one forward pass on the data starts the z-chain and
    trains it.

    Args:
        x: Data, shape (B, ...).
        step: Iterations done before this one; not used.
        state: Models and optimizers.
        settings: The run's settings.
        labels: Class of each sample, shape (B,), -1 = none; None in a run without classes.
    """
    samples = draw_samples(x, state, settings, labels)
    terms = generator_update(x, samples, state, settings)
    terms |= inference_update(samples, state, settings)
    return {**energy_update(x, samples, state, settings), **terms}


def draw_samples(x: Tensor, state: TrainState, settings: DualMCMCSettings, labels: Tensor | None = None) -> Samples:
    """Generate and infer, then revise both by their chains; with classes, under the labels, some of them dropped."""
    y = None if labels is None else drop_labels(labels, settings.label_dropout)
    mean, logvar = state.inference_model(x, y, return_dict=False)
    z = torch.randn_like(mean)
    x_gen = state.generator_model(z, y, return_dict=False)[0]
    x_revised = x_chain(x_gen.detach(), state, settings, y)
    noise = torch.randn_like(mean)
    z_start = mean.detach() + (0.5 * logvar.detach()).exp() * noise if settings.z_start == "inference" else noise
    z_revised = z_chain(z_start, x, state, settings, y)
    return Samples(mean, logvar, z, x_gen, x_revised, z_revised, labels, y)


def generator_update(x: Tensor, samples: Samples, state: TrainState, settings: DualMCMCSettings) -> dict[str, Tensor]:
    """Eq. 10: descend ``recon_weight mean ||g(z_revised) - x||^2 + sample_weight mean ||g(z) - x_revised||^2``."""
    recon = state.generator_model(samples.z_revised, samples.y, return_dict=False)[0]
    x_gen, x_revised = samples.x_gen, samples.x_revised
    loss = generator_loss(recon, x, x_gen, x_revised, settings.recon_weight, settings.sample_weight)
    update(state.accelerator, state.generator_optimizer, loss, state.generator_model.parameters(), settings)
    return {
        "reconstruction": squared_error(recon, x).mean(),
        "teaching": squared_error(x_gen, x_revised).mean(),
    }


def inference_update(samples: Samples, state: TrainState, settings: DualMCMCSettings) -> dict[str, Tensor]:
    """Eq. 15: descend ``NLL(z_revised; q(. | x)) + latent_weight NLL(z; q(. | x_revised))``."""
    mean_gen, logvar_gen = state.inference_model(samples.x_revised, samples.y, return_dict=False)
    loss = inference_loss(
        samples.z_revised, samples.mean, samples.logvar, samples.z, mean_gen, logvar_gen, settings.latent_weight
    )
    update(state.accelerator, state.inference_optimizer, loss, state.inference_model.parameters(), settings)
    return {"inference": loss}


def energy_update(x: Tensor, samples: Samples, state: TrainState, settings: DualMCMCSettings) -> dict[str, Tensor]:
    """Eq. 7: descend ``(mean E(x) - mean E(x_revised)) / temperature``, the x-chain run again from the updated g(z).

    With class scores E is that of the samples' labels, and the cross entropy of p(y | x) is added.
    """
    accelerator, negatives, y = state.accelerator, samples.x_revised, samples.y
    if settings.energy_negatives != "first_chain":
        generator_model = accelerator.unwrap_model(state.generator_model)
        with torch.no_grad(), frozen_running_statistics(generator_model), accelerator.autocast():
            negatives = generator_model(samples.z, y, return_dict=False)[0]
        if settings.energy_negatives == "second_chain":
            negatives = x_chain(negatives, state, settings, y)
    if number := round(settings.noised_negatives * len(x)):
        std = settings.noised_negatives_max_std * torch.rand(number, device=x.device)
        starts = noised_samples(x[:number], std, torch.randn_like(x[:number]))
        noised = x_chain(starts, state, settings, None if y is None else y[:number])
        negatives = torch.cat([noised.to(negatives.dtype), negatives[number:]])  # each with the label of its row
    both = state.energy_model(torch.cat([x, negatives.to(x.dtype)]), class_labels=None if y is None else y.repeat(2))
    energy_data, energy_revised = both.energy.chunk(2)
    loss = energy_loss(energy_data, energy_revised, settings.temperature)
    terms = {}
    if samples.labels is not None and both.logits is not None:
        terms["classification"] = classification_term(both.logits.chunk(2)[0], samples.labels)
        loss = loss + settings.classification_weight * terms["classification"]
    if settings.energy_magnitude_weight:
        magnitude = energy_magnitude_term(energy_data, energy_revised)
        loss = loss + settings.energy_magnitude_weight * magnitude / settings.temperature
    update(accelerator, state.energy_optimizer, loss, state.energy_model.parameters(), settings)
    return {
        "energy_data": energy_data.mean(),
        "energy_revised": energy_revised.mean(),
        "energy_gap": energy_data.mean() - energy_revised.mean(),
        **terms,
    }


def x_chain(x: Tensor, state: TrainState, settings: DualMCMCSettings, y: Tensor | None = None) -> Tensor:
    """The x-chain (Eq. 3) on the unwrapped, frozen energy, with classes of the labels `y`, from `x`, shape of `x`."""
    energy_model = state.accelerator.unwrap_model(state.energy_model)

    def energy(x: Tensor) -> Tensor:
        with state.accelerator.autocast():
            return energy_model(x, class_labels=y).energy

    with diverging("x"), energy_model.chain():
        return langevin_chain(
            x.float(),
            lambda x: energy_grad(energy, x),
            settings.x_num_steps,
            settings.x_step_size,
            settings.x_noise_std,
        )


def z_chain(z: Tensor, x: Tensor, state: TrainState, settings: DualMCMCSettings, y: Tensor | None = None) -> Tensor:
    """The z-chain (Eq. 6) on the posterior of the unwrapped generator given `x`, with classes also the labels `y`.

    It starts at `z` and returns its end, shape of `z`.
    """
    generator_model = state.accelerator.unwrap_model(state.generator_model)

    def generate(z: Tensor) -> Tensor:
        with state.accelerator.autocast():
            return generator_model(z, y, return_dict=False)[0]

    with diverging("z"), generator_model.z_chain():
        return langevin_chain(
            z,
            lambda z: energy_grad(lambda z: posterior_energy(generate, z, x, settings.likelihood_std), z),
            settings.z_num_steps,
            settings.z_step_size,
            settings.z_noise_std,
        )


@contextlib.contextmanager
def diverging(name: str) -> Iterator[None]:
    """Inside, a chain that diverges is an error that names the settings of the `name` chain, "x" or "z"."""
    try:
        yield
    except ChainDivergedError as error:
        raise TrainingDivergedError(
            f"the {name}-chain left the finite numbers at its step {error.step} ({name}_step_size, {name}_noise_std)"
        ) from error


def make_model_settings(settings: DualMCMCSettings, classes: Classes | None = None) -> dict[str, Any]:
    """The arguments of the three networks, with these classes or unconditional."""
    generator = {"likelihood_std": settings.likelihood_std, **settings.models.get("generator", {})}
    models = {**settings.models, "generator": generator}
    if classes is None:
        return dual_mcmc_model_settings(settings.preset, settings.latent_dim, models)
    models["energy"] = {"class_scores": settings.class_scores, **models.get("energy", {})}
    number, prior, names = len(classes.prior), classes.prior, classes.names
    temperature = settings.temperature
    parts = dual_mcmc_model_settings(settings.preset, settings.latent_dim, models, number, prior, names, temperature)
    if classes.centres is not None:
        parts["energy"]["pseudo_label_centres"] = classes.centres
    if not settings.label_dropout and not classes.unlabelled:
        parts["generator"]["null_class"] = False
    return parts


def make_train_state(
    settings: DualMCMCSettings, accelerator: Accelerator, models: tuple[Any, Any, Any], steps_per_epoch: int
) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """Optimizers and learning-rate schedules for `models`, all prepared by `accelerator`."""
    generator_model, energy_model, inference_model = models
    options: dict[str, Any] = {"betas": settings.adam_betas, "fused": accelerator.device.type in ("cpu", "cuda")}
    decay = settings.weight_decay
    optimizers = [
        torch.optim.Adam(generator_model.parameters(), settings.generator_learning_rate, weight_decay=decay, **options),
        torch.optim.Adam(energy_model.parameters(), settings.energy_learning_rate, **options),
        torch.optim.Adam(inference_model.parameters(), settings.inference_learning_rate, weight_decay=decay, **options),
    ]
    if settings.compile:
        for model in models:
            model.compile()
    schedules = [make_schedule(optimizer, settings, steps_per_epoch) for optimizer in optimizers]
    prepared = accelerator.prepare(*models, *optimizers)
    return TrainState(accelerator, *prepared), schedules


def make_schedule(
    optimizer: Any, settings: DualMCMCSettings, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """After the warm-up: ``learning_rate_decay`` at the end of each epoch, or a cosine over the run."""
    if settings.learning_rate_schedule == "cosine":
        return cosine_schedule(optimizer, settings)
    return torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch, settings.learning_rate_decay)


@torch.no_grad()
def refresh_statistics(generator_model: Any, energy_model: Any) -> None:
    """Refresh running statistics, with classes under labels as frequent as in the data, and singular values."""
    random, device = torch.Generator(generator_model.device).manual_seed(0), generator_model.device
    shape = (256, generator_model.config.latent_dim)
    latents = [torch.randn(shape, generator=random, device=device) for _ in range(16)]
    prior = torch.tensor(generator_model.config.class_prior or [1.0], device=device)

    def add_labels(_: Any, latents: tuple[Tensor]) -> tuple[Tensor, ...]:
        return *latents, torch.multinomial(prior, len(latents[0]), replacement=True, generator=random)

    hooks = [generator_model.register_forward_pre_hook(add_labels)] if generator_model.config.num_classes else []
    update_bn(latents, generator_model)
    for hook in hooks:
        hook.remove()
    refresh_singular_values(energy_model)


@torch.no_grad()
def refresh_singular_values(energy_model: Any) -> None:
    """The singular values of averaged weights, which spectral norm estimates one power iteration at a time."""
    energy_model.train()
    for _ in range(8):  # each training forward is one power iteration
        energy_model(torch.zeros(1, *energy_model.sample_shape, device=energy_model.device))


def make_pipeline(models: tuple[Any, Any, Any], settings: DualMCMCSettings) -> DualMCMCPipeline:
    """The pipeline around the networks of `build_dual_mcmc_models` as they are now."""
    generator_model, energy_model, inference_model = models
    return DualMCMCPipeline(
        generator_model,
        LangevinScheduler(settings.x_num_steps, settings.x_step_size, settings.x_noise_std),
        energy_model,
        inference_model,
        LangevinScheduler(settings.z_num_steps, settings.z_step_size, settings.z_noise_std),
    )


METHOD = Method(
    name="dual_mcmc",
    make_model_settings=make_model_settings,
    build_models=build_dual_mcmc_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("energy_data", "energy_revised", "reconstruction"),
    energy_terms=("energy_data", "energy_revised"),
    takes_labels=True,
    term_limits=lambda settings: {"energy_gap": settings.energy_gap_limit},
    when_diverged="a smaller x_step_size and x_noise_std (z_step_size and z_noise_std), or smaller learning rates",
    refresh_statistics=refresh_statistics,
)


def train(settings: DualMCMCSettings) -> Path:
    """Train, and return the run folder: see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DualMCMCSettings, DEFAULT_CONFIG, train, arguments)


if __name__ == "__main__":
    main()
