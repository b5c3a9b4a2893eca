"""Baseline: a denoising diffusion GAN (Xiao, Kreis & Vahdat, ICLR 2022) with the generator and the diffusion of DDAEBM.

    accelerate launch benchmarks/baseline_ddgan.py --config benchmarks/configs/ddgan_digits.yaml key=value ...

The discriminator ``D(x_t, x_next, t)`` is DDAEBM's inference network with one output, whose mean is
the logit. An energy ``0.5 ||x - U(x, t)||^2`` cannot replace it: it does not depend on ``x_next``,
and is never negative. On the digits the discriminator has about as many parameters as the energy:
with fewer, samples are much worse after the same time. On Fashion-MNIST, where it works on pixels
and the energy on patches, it is smaller: a larger one is no better, as fewer steps fit. On CIFAR-10
it is smaller as well, and not tuned. Without arguments the script trains the digits. The run folder
is a `DDAEBMPipeline` without an energy; the discriminator is in the checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from baselines import CONFIGS, check_parts, sampler_of
from ddgan_losses import discriminator_loss, generator_loss, r1_penalty
from torch import Tensor

from hf_ebm.diffusion import SPACINGS, DiffusionCoefficients
from hf_ebm.models.pair_inference import PairInferenceModel
from hf_ebm.models.presets import ddaebm_model_settings
from hf_ebm.models.unet_generator import UNetGeneratorModel
from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline
from hf_ebm.schedulers.scheduling_ddaebm import BETA_SCHEDULES, DDAEBMScheduler
from hf_ebm.training.config import RunSettings
from hf_ebm.training.launch import run_script
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update


@dataclasses.dataclass(frozen=True)
class DDGANSettings(RunSettings):
    """Settings of a run; `energy_learning_rate` and `models.discriminator` are the discriminator's."""

    output_dir: str = "outputs/ddgan"

    # diffusion, as in DDAEBM
    num_timesteps: int = 4
    beta_min: float = 0.1
    beta_max: float = 20.0
    spacing: str = "uniform"  # or "dense_start", "quadratic"
    timestep_weights: tuple[float, ...] | None = None  # relative frequency of each t; None: uniform
    noise_at_t0: bool = False  # True: fakes of t = 0 get the noise of the real x_0
    coupled_noise: bool = False  # True: fakes share their pair's posterior noise

    # objective
    r1_weight: float = 0.05
    r1_interval: int = 15  # lazy R1: the penalty every k-th step, with k times the weight

    # optimisation
    adam_betas: tuple[float, ...] = (0.5, 0.9)
    energy_learning_rate: float = 1.25e-4
    generator_learning_rate: float = 1.6e-4

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names an invalid setting."""
        super().__post_init__()
        self.check_at_least(1, "r1_interval", "num_timesteps")
        self.check_at_least(0, "r1_weight")
        self.check_choice("spacing", SPACINGS)
        weights = self.timestep_weights or (1.0,) * self.num_timesteps
        if len(weights) != self.num_timesteps or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"timestep_weights must be num_timesteps numbers >= 0, got {self.timestep_weights}.")


@dataclasses.dataclass
class TrainState:
    """Models, optimizers and coefficients of a train step."""

    accelerator: Accelerator
    generator_model: Any
    discriminator: Any
    generator_optimizer: Any
    discriminator_optimizer: Any
    coefficients: DiffusionCoefficients
    timestep_weights: Tensor  # (T,)

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return self.generator_model, self.discriminator


def train_step(x: Tensor, step: int, state: TrainState, settings: DDGANSettings) -> dict[str, Tensor]:
    """One iteration: the discriminator, then the generator; returns the terms of the losses.

    The generator does not change while the discriminator does, so its forward pass is made once for both updates, as in
    the train step of DDAEBM.

    Args:
        x: Clean images, shape (B, C, H, W).
        step: Iterations done before this one; lazy R1 counts by it.
        state: Models, optimizers and coefficients.
        settings: The run's settings.
    """
    q, accelerator = state.coefficients, state.accelerator

    # a pair of the diffusion: x_t ~ q(x_t | x), x_next ~ q(x_next | x_t)
    t = torch.multinomial(state.timestep_weights, x.shape[0], replacement=True)
    x_t = q.q_sample(x, t, torch.randn_like(x))
    x_next = q.q_step(x_t, t, torch.randn_like(x))
    noise = q.posterior_noise(x_t, x, x_next, t) if settings.coupled_noise else torch.randn_like(x)

    # z ~ N(0, I); x0_pred = G(x_next, t, z); x_fake ~ q(x_t | x_next, x0_pred)
    latent_dim = accelerator.unwrap_model(state.generator_model).config.latent_dim
    z = torch.randn(x.shape[0], latent_dim, device=x.device)
    x0_pred = state.generator_model(x_next, t, z, return_dict=False)[0].float()
    x_fake = q.posterior_sample(x0_pred, x_next, t, noise, settings.noise_at_t0)

    # discriminator: mean softplus(-D(x_t)) + mean softplus(D(x_fake)) + r1/2 mean ||grad_{x_t} D(x_t)||^2
    penalty = torch.zeros((), device=x.device)
    if step % settings.r1_interval == 0:  # two calls: only the real half needs the double backward
        x_real = x_t.detach().requires_grad_(True)
        twice = (
            state.discriminator.forward if settings.compile else state.discriminator
        )  # torch.compile has no double backward
        logit_real = logit(twice, x_real, x_next, t)
        logit_fake = logit(state.discriminator, x_fake.detach(), x_next, t)
        penalty = r1_penalty(logit_real, x_real, settings.r1_interval * settings.r1_weight)
    else:
        pairs = torch.cat([x_t, x_fake.detach()]), torch.cat([x_next, x_next]), torch.cat([t, t])
        logit_real, logit_fake = logit(state.discriminator, *pairs).chunk(2)
    loss = discriminator_loss(logit_real, logit_fake)
    parameters = state.discriminator.parameters()
    update(accelerator, state.discriminator_optimizer, loss + penalty, parameters, settings)

    # generator: mean softplus(-D(x_fake)), through the updated, frozen discriminator
    discriminator = accelerator.unwrap_model(state.discriminator).requires_grad_(False)
    with accelerator.autocast():
        adversarial = generator_loss(logit(discriminator, x_fake, x_next, t))
    update(accelerator, state.generator_optimizer, adversarial, state.generator_model.parameters(), settings)
    discriminator.requires_grad_(True)

    return {
        "logit_real": logit_real.mean(),
        "logit_fake": logit_fake.mean(),
        "discriminator": loss,
        "gradient_penalty": penalty,
        "adversarial": adversarial,
    }


def logit(discriminator: Any, x_t: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
    """``D(x_t, x_next, t)``, shape (B,): the mean of the inference network's one latent."""
    return discriminator(x_t, x_next, t, return_dict=False)[0].squeeze(1)


def make_model_settings(settings: DDGANSettings) -> dict[str, Any]:
    """Arguments of the two networks, from a DDAEBM preset for images."""
    check_parts(settings.models, ("unet", "generator", "discriminator"))
    changes = dict(settings.models)
    changes["inference"] = changes.pop("discriminator", {})
    parts = ddaebm_model_settings(settings.preset, settings.num_timesteps, settings.latent_dim, changes)
    if parts["network"] != "unet":
        raise ValueError(f"preset must be one for images, got {settings.preset!r}.")
    return {"generator": parts["generator"], "discriminator": {**parts["inference"], "latent_dim": 1}}


def build_models(settings: dict[str, Any]) -> tuple[UNetGeneratorModel, PairInferenceModel]:
    """Generator and discriminator, freshly initialised (torch's seed).

    Raises:
        ValueError: If a network does not know a setting, or the sizes do not fit.
    """
    try:
        return UNetGeneratorModel(**settings["generator"]), PairInferenceModel(**settings["discriminator"])
    except TypeError as error:
        raise ValueError(f"models: {error}; see the networks' arguments in hf_ebm.models.") from error


def make_train_state(
    settings: DDGANSettings, accelerator: Accelerator, models: tuple[Any, Any], steps_per_epoch: int
) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """Optimizers, learning-rate schedules and coefficients for `models`, all prepared by `accelerator`."""
    generator_model, discriminator = models
    options: dict[str, Any] = {"betas": settings.adam_betas, "fused": accelerator.device.type in ("cpu", "cuda")}
    optimizers = [
        torch.optim.Adam(generator_model.parameters(), lr=settings.generator_learning_rate, **options),
        torch.optim.Adam(discriminator.parameters(), lr=settings.energy_learning_rate, **options),
    ]
    schedules = [cosine_schedule(optimizer, settings) for optimizer in optimizers]
    if settings.compile:
        generator_model.compile()
        if accelerator.num_processes == 1:
            discriminator.compile()
    q = DiffusionCoefficients.vp(settings.num_timesteps, settings.beta_min, settings.beta_max, settings.spacing)
    weights = torch.tensor(settings.timestep_weights or [1.0] * q.num_timesteps, device=accelerator.device)
    prepared = accelerator.prepare(generator_model, discriminator, *optimizers)
    return TrainState(accelerator, *prepared, q.to(accelerator.device), weights), schedules


def make_pipeline(models: tuple[Any, Any], settings: DDGANSettings) -> DDAEBMPipeline:
    """A pipeline with the current generator."""
    schedule = {spacing: key for key, spacing in BETA_SCHEDULES.items()}[settings.spacing]
    scheduler = DDAEBMScheduler(settings.num_timesteps, settings.beta_min, settings.beta_max, schedule)
    return DDAEBMPipeline(models[0], scheduler)


METHOD = Method(
    name="ddgan",
    make_model_settings=make_model_settings,
    build_models=build_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("logit_real", "logit_fake", "gradient_penalty"),
    num_averaged=1,
    step_kind=lambda step, settings: step % settings.r1_interval == 0,
    write_card=None,
)


def train(settings: DDGANSettings) -> Path:
    """Train and return the run folder; see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


sample_run = sampler_of(DDAEBMPipeline)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DDGANSettings, str(CONFIGS / "ddgan_digits.yaml"), train, arguments)


if __name__ == "__main__":
    main()
