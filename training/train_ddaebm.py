"""Train a DDAEBM (Geng et al., ICML 2024).

    accelerate launch training/train_ddaebm.py --config training/configs/ddaebm_digits.yaml key=value ...
    accelerate launch -m hf_ebm.training.train_ddaebm            # the same, from an installed package

With no arguments it trains the digits. The run folder ``output_dir`` becomes a pipeline folder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_ebm.data.loading import Classes
from hf_ebm.diffusion import SPACINGS, DiffusionCoefficients, per_sample, vp_times
from hf_ebm.losses.conditional import classification_term, drop_labels
from hf_ebm.losses.ddaebm import (
    adversarial_term,
    energy_gradient,
    energy_loss,
    energy_magnitude_term,
    gradient_penalty_from_gradient,
    kl_term,
    latent_term,
    lsun_step_weight,
    reconstruction_nll_term,
    reconstruction_term,
)
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline
from hf_ebm.schedulers.scheduling_ddaebm import BETA_SCHEDULES, DDAEBMScheduler
from hf_ebm.training.config import RunSettings
from hf_ebm.training.launch import run_script
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update

DEFAULT_CONFIG = "ddaebm_digits.yaml"
POSTERIOR_T1 = "posterior_t1"


@dataclasses.dataclass(frozen=True)
class DDAEBMSettings(RunSettings):
    """All settings of a run; `Settings that are published` of each data set are in ``training/configs``."""

    output_dir: str = "outputs/ddaebm"

    # diffusion
    num_timesteps: int = 4
    beta_min: float = 0.1
    beta_max: float = 20.0
    spacing: str = "uniform"  # or "dense_start", "quadratic"
    timestep_weights: tuple[float, ...] | None = None  # how often each t is drawn, relative; None: all alike
    noise_at_t0: bool = False  # True: fakes of t = 0 get the noise that the real x_0 has

    # objective
    r1_weight: float | tuple[float, ...] = 0.02  # one number, or one per timestep
    r1_interval: int = 1  # lazy R1: the penalty every k-th step, k times as heavy
    r1_include_transition: bool = True
    coupled_noise: bool = False  # True: fakes share their pair's posterior noise, reconstruct its mean (less variance)
    energy_magnitude_weight: float = 0.0  # times mean E_real^2 + mean E_fake^2
    adversarial_weight: float = 1.0  # 0, with latent_weight 0: the forward KL only, an ablation
    latent_weight: float = 0.1
    kl_weight: float = 1.0
    recon_weight: float = 1.0
    reconstruction_latent: str = "posterior"  # or "prior", as the published image code
    reconstruction_loss: str = "squared_error"  # or "gaussian_nll", or "lsun_nll" (weighted per step)
    reconstruction_min_variance: float | str = 1e-4  # of the two likelihoods; "posterior_t1": the posterior's at t = 1

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the setting, before any work."""
        super().__post_init__()
        self.check_at_least(1, "r1_interval", "num_timesteps")
        self.check_not_negative("energy_magnitude_weight", "adversarial_weight", "latent_weight")
        self.check_not_negative("kl_weight", "recon_weight")
        self.check_min_variance()
        self.check_choice("reconstruction_latent", ("posterior", "prior"))
        self.check_choice("reconstruction_loss", ("squared_error", "gaussian_nll", "lsun_nll"))
        self.check_choice("spacing", SPACINGS)
        weights = self.r1_weight if isinstance(self.r1_weight, tuple) else (self.r1_weight,)
        if not all(0 <= weight < math.inf for weight in weights) or len(weights) not in (1, self.num_timesteps):
            raise ValueError(f"r1_weight must be one number >= 0, or num_timesteps of them, got {self.r1_weight}.")
        weights = self.timestep_weights or (1.0,) * self.num_timesteps
        if len(weights) != self.num_timesteps or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(
                f"timestep_weights must be num_timesteps = {self.num_timesteps} numbers >= 0, got "
                f"{self.timestep_weights}."
            )
        DiffusionCoefficients.vp(self.num_timesteps, self.beta_min, self.beta_max, self.spacing)  # which checks them

    def check_min_variance(self) -> None:
        """Raise a `ValueError` if `reconstruction_min_variance` is neither a variance nor a name of one."""
        if not isinstance(self.reconstruction_min_variance, str):
            self.check_positive("reconstruction_min_variance")
            return
        if self.reconstruction_min_variance != POSTERIOR_T1:
            raise ValueError(
                f"reconstruction_min_variance must be a positive number or {POSTERIOR_T1!r} (the posterior variance of "
                f"t = 1), got {self.reconstruction_min_variance!r}."
            )
        if self.num_timesteps < 2:
            raise ValueError(
                f"reconstruction_min_variance={POSTERIOR_T1} needs num_timesteps >= 2, got {self.num_timesteps}; use a "
                "number."
            )


@dataclasses.dataclass
class TrainState:
    """What a train step updates and uses."""

    accelerator: Accelerator
    generator_model: Any
    energy_model: Any
    inference_model: Any
    energy_optimizer: Any
    generator_optimizer: Any
    coefficients: DiffusionCoefficients
    times: Tensor
    r1_weight: Tensor  # (T,)
    timestep_weights: Tensor  # (T,)

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return self.energy_model, self.generator_model, self.inference_model


class Samples(NamedTuple):
    """What both updates of an iteration use: pairs of the diffusion, latents, and the generator's samples."""

    t: Tensor  # (B,)
    x_t: Tensor
    x_next: Tensor
    target: Tensor  # what the reconstruction compares with: x_t, or the posterior's mean
    mean: Tensor  # (B, latent_dim), of q_psi(z | x_t, x_next), as logvar
    logvar: Tensor
    z: Tensor  # (B, latent_dim), of the prior
    x_fake: Tensor  # q(x_t | x_next, G(x_next, t, z))
    x0_psi: Tensor  # G(x_next, t, z_psi)
    labels: Tensor | None = None  # y (B,), without dropout, in a run with classes
    y: Tensor | None = None  # the same after label dropout; -1 = dropped


def train_step(
    x: Tensor, step: int, state: TrainState, settings: DDAEBMSettings, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """One iteration: the energy, then generator and inference model together; returns the terms of the losses.

    Generator and inference model do not change while the energy does, so their forward pass is shared by both updates.

    Args:
        x: Clean samples, shape (B, ...).
        step: Iterations done before this one; lazy R1 counts by it.
        state: Models, optimizers and coefficients.
        settings: The run's settings.
        labels: Class of each sample, shape (B,), -1 = none; None in a run without classes.
    """
    samples = draw_samples(x, state, settings, labels)
    terms = energy_update(samples, step, state, settings)
    return {**terms, **generator_update(samples, state, settings)}


def draw_samples(x: Tensor, state: TrainState, settings: DDAEBMSettings, labels: Tensor | None = None) -> Samples:
    """Diffuse clean samples, infer latents and generate; prior and posterior z pass the generator as one batch."""
    q, batch_size = state.coefficients, x.shape[0]

    # a pair of the diffusion: x_t ~ q(x_t | x), x_next ~ q(x_next | x_t)
    t = torch.multinomial(state.timestep_weights, batch_size, replacement=True)
    x_t = q.q_sample(x, t, torch.randn_like(x))
    x_next = q.q_step(x_t, t, torch.randn_like(x))
    noise, target = torch.randn_like(x), x_t
    if settings.coupled_noise:
        noise, target = q.posterior_noise(x_t, x, x_next, t), q.posterior_mean(x, x_next, t)

    # y: the labels, some of them dropped
    y = None if labels is None else drop_labels(labels, settings.label_dropout)

    # z_psi ~ q_psi(z | x_t, x_next), z ~ N(0, I); x0_pred = G(x_next, t, z); x_fake ~ q(x_t | x_next, x0_pred)
    mean, logvar = state.inference_model(x_t, x_next, t, *given(y), return_dict=False)
    z = torch.randn_like(mean)
    if settings.reconstruction_latent == "posterior":
        z_psi = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        both = state.generator_model(
            torch.cat([x_next, x_next]), torch.cat([t, t]), torch.cat([z, z_psi]), *given(y, 2), return_dict=False
        )[0]
        x0_pred, x0_psi = both.float().chunk(2)
    else:
        x0_pred = x0_psi = state.generator_model(x_next, t, z, *given(y), return_dict=False)[0].float()
    x_fake = q.posterior_sample(x0_pred, x_next, t, noise, settings.noise_at_t0)
    return Samples(t, x_t, x_next, target, mean, logvar, z, x_fake, x0_psi, labels, y)


def given(y: Tensor | None, repeats: int = 1) -> tuple[Tensor, ...]:
    """Labels as a network's last argument, for a batch `repeats` times as large; nothing in a run without classes."""
    return () if y is None else (y.repeat(repeats),)


def energy_update(samples: Samples, step: int, state: TrainState, settings: DDAEBMSettings) -> dict[str, Tensor]:
    """Descend ``mean E(x_t, t) - mean E(x_fake, t) + r1/2 mean ||grad [-E(x_t, t) + log q(x_next | x_t)]||^2``.

    With classes E is that of the samples' labels, and the cross entropy of p(y | x_t) is added.
    """
    t, x_t, x_next, x_fake = samples.t, samples.x_t, samples.x_next, samples.x_fake.detach()
    penalised = step % settings.r1_interval == 0
    x_real = x_t.detach().requires_grad_(penalised)
    if penalised:  # two calls: the double backward goes through the real half only, and torch.compile has none
        energy_forward = state.energy_model.forward if settings.compile else state.energy_model
        real = energy_forward(x_real, t, *given(samples.y))
        energy_real, logits = real.energy, getattr(real, "logits", None)
        energy_fake = state.energy_model(x_fake, t, *given(samples.y)).energy
    else:
        both = state.energy_model(torch.cat([x_real, x_fake]), torch.cat([t, t]), *given(samples.y, 2))
        energy_real, energy_fake = both.energy.chunk(2)
        logits = getattr(both, "logits", None)
        logits = None if logits is None else logits.chunk(2)[0]
    loss = energy_loss(energy_real, energy_fake)
    terms = {}
    if samples.labels is not None and logits is not None:
        terms["classification"] = classification_term(logits, samples.labels)
        loss = loss + settings.classification_weight * terms["classification"]
    if settings.energy_magnitude_weight:
        loss = loss + settings.energy_magnitude_weight * energy_magnitude_term(energy_real, energy_fake)
    penalty = torch.zeros((), device=x_t.device)
    if penalised:
        grad_log_q = state.coefficients.log_q_step_grad(x_next, x_t, t) if settings.r1_include_transition else None
        weight = settings.r1_interval * state.r1_weight[t]
        penalty = gradient_penalty_from_gradient(energy_gradient(energy_real, x_real), weight, grad_log_q)
    update(state.accelerator, state.energy_optimizer, loss + penalty, state.energy_model.parameters(), settings)
    means = {"energy_real": energy_real.mean(), "energy_fake": energy_fake.mean()}
    return {**means, "gradient_penalty": penalty, **terms}


def generator_update(samples: Samples, state: TrainState, settings: DDAEBMSettings) -> dict[str, Tensor]:
    """Descend reverse KL + entropy bound + forward KL in generator and inference model, with the energy frozen."""
    q, accelerator = state.coefficients, state.accelerator
    t, x_next, x_fake = samples.t, samples.x_next, samples.x_fake
    energy_model = accelerator.unwrap_model(state.energy_model).requires_grad_(False)
    with accelerator.autocast():
        energy_fake = energy_model(x_fake, t, *given(samples.y)).energy
    adversarial = adversarial_term(energy_fake, q.log_q_step(x_next, x_fake, t))
    latent = latent_term(samples.z, *state.inference_model(x_fake, x_next, t, *given(samples.y), return_dict=False))
    kl = kl_term(samples.mean, samples.logvar)
    reconstruction = reconstruct(samples.target, q.posterior_mean(samples.x0_psi, x_next, t), t, state, settings)
    loss = settings.adversarial_weight * adversarial + settings.latent_weight * latent
    loss = loss + settings.kl_weight * kl + settings.recon_weight * reconstruction
    parameters = [*state.generator_model.parameters(), *state.inference_model.parameters()]
    update(accelerator, state.generator_optimizer, loss, parameters, settings)
    energy_model.requires_grad_(True)
    return {"adversarial": adversarial, "latent": latent, "kl": kl, "reconstruction": reconstruction}


def reconstruct(x_t: Tensor, predicted: Tensor, t: Tensor, state: TrainState, settings: DDAEBMSettings) -> Tensor:
    """``-log p(x_t | x_next, z)`` up to the constants of the chosen reconstruction loss."""
    if settings.reconstruction_loss == "squared_error":
        return reconstruction_term(x_t, predicted)
    log_variance = reconstruction_log_variance(state.coefficients, settings.reconstruction_min_variance)
    log_variance = per_sample(log_variance, t, x_t)
    weight = lsun_step_weight(t, state.times) if settings.reconstruction_loss == "lsun_nll" else 1.0
    return reconstruction_nll_term(x_t, predicted, log_variance, weight)


def reconstruction_log_variance(coefficients: DiffusionCoefficients, min_variance: float | str) -> Tensor:
    """Log variances of the reconstruction's Gaussian, shape (T,): the posterior's, clamped below.

    Args:
        coefficients: The chain.
        min_variance: The lower limit, > 0, or ``"posterior_t1"``: the posterior variance of t = 1, as in the
            published LSUN code (0.212 for ``dense_start``).
    """
    log_variance = coefficients.posterior_log_variance
    lowest = log_variance[1] if isinstance(min_variance, str) else log_variance.new_tensor(min_variance).log()
    return log_variance.maximum(lowest)


def make_model_settings(settings: DDAEBMSettings, classes: Classes | None = None) -> dict[str, Any]:
    """The arguments of the three networks, with these classes or unconditional."""
    chain = {"beta_min": settings.beta_min, "beta_max": settings.beta_max, "spacing": settings.spacing}
    arguments = (settings.preset, settings.num_timesteps, settings.latent_dim, settings.models, chain)
    if classes is None:
        return ddaebm_model_settings(*arguments)
    parts = ddaebm_model_settings(*arguments, len(classes.prior), classes.prior, classes.names)
    if classes.centres is not None:
        parts["energy"]["pseudo_label_centres"] = classes.centres
    if not settings.label_dropout and not classes.unlabelled:
        parts["generator"]["null_class"] = False
    return parts


def make_train_state(
    settings: DDAEBMSettings, accelerator: Accelerator, models: tuple[Any, Any, Any], steps_per_epoch: int
) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """Optimizers, learning-rate schedules and coefficients for `models`, all prepared by `accelerator`."""
    generator_model, energy_model, inference_model = models
    options: dict[str, Any] = {"betas": settings.adam_betas, "fused": accelerator.device.type in ("cpu", "cuda")}
    energy_optimizer = torch.optim.Adam(energy_model.parameters(), lr=settings.energy_learning_rate, **options)
    generator_optimizer = torch.optim.Adam(
        [*generator_model.parameters(), *inference_model.parameters()],
        lr=settings.generator_learning_rate,
        **options,
    )
    schedules = [cosine_schedule(optimizer, settings) for optimizer in (energy_optimizer, generator_optimizer)]
    if settings.compile:
        generator_model.compile()
        inference_model.compile()
        if accelerator.num_processes == 1:
            energy_model.compile()
    weights = settings.r1_weight if isinstance(settings.r1_weight, tuple) else (settings.r1_weight,)
    r1_weight = torch.tensor(weights).expand(settings.num_timesteps).to(accelerator.device)
    q = DiffusionCoefficients.vp(settings.num_timesteps, settings.beta_min, settings.beta_max, settings.spacing)
    prepared = accelerator.prepare(
        generator_model, energy_model, inference_model, energy_optimizer, generator_optimizer
    )
    state = TrainState(
        accelerator=accelerator,
        generator_model=prepared[0],
        energy_model=prepared[1],
        inference_model=prepared[2],
        energy_optimizer=prepared[3],
        generator_optimizer=prepared[4],
        coefficients=q.to(accelerator.device),
        times=vp_times(settings.num_timesteps, settings.spacing).float().to(accelerator.device),
        r1_weight=r1_weight,
        timestep_weights=torch.tensor(settings.timestep_weights or [1.0] * q.num_timesteps, device=accelerator.device),
    )
    return state, schedules


def make_pipeline(models: tuple[Any, Any, Any], settings: DDAEBMSettings) -> DDAEBMPipeline:
    """The pipeline around the networks of `build_ddaebm_models` as they are now."""
    generator_model, energy_model, inference_model = models
    schedule = {spacing: key for key, spacing in BETA_SCHEDULES.items()}[settings.spacing]
    scheduler = DDAEBMScheduler(settings.num_timesteps, settings.beta_min, settings.beta_max, schedule)
    return DDAEBMPipeline(generator_model, scheduler, energy_model, inference_model)


METHOD = Method(
    name="ddaebm",
    make_model_settings=make_model_settings,
    build_models=build_ddaebm_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("energy_real", "energy_fake", "kl"),
    energy_terms=("energy_real", "energy_fake"),
    step_kind=lambda step, settings: step % settings.r1_interval == 0,
    takes_labels=True,
)


def train(settings: DDAEBMSettings) -> Path:
    """Train, and return the run folder: see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DDAEBMSettings, DEFAULT_CONFIG, train, arguments)


if __name__ == "__main__":
    main()
