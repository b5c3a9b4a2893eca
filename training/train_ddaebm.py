"""Train a DDAEBM (Geng et al., ICML 2024).

    accelerate launch training/train_ddaebm.py --config training/configs/ddaebm_digits.yaml key=value ...
    accelerate launch -m hf_ebm.training.train_ddaebm            # the same, from an installed package

With no arguments it trains the digits. The run folder ``output_dir`` becomes a pipeline folder.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm

from hf_ebm.data import load_training_data
from hf_ebm.diffusion import SPACINGS, DiffusionCoefficients, per_sample, vp_times
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
from hf_ebm.training.checkpoints import check_same_models, find_checkpoint, read_state, save_checkpoint
from hf_ebm.training.loop import (
    MetricsFile,
    Position,
    check_terms,
    endless_batches,
    gather_terms,
    make_accelerator,
    make_loader,
    random_flip,
)
from hf_ebm.training.run_folder import finish_run, save_samples, start_run
from hf_ebm.training.settings import load_settings

DEFAULT_CONFIG = "ddaebm_digits.yaml"


@dataclasses.dataclass(frozen=True)
class DDAEBMSettings:
    """All settings of a run; `Settings that are published` of each data set are in ``training/configs``."""

    output_dir: str = "outputs/ddaebm"
    overwrite_output_dir: bool = False  # True: a run that is there already is replaced

    # data
    dataset: str = "digits"  # "digits", "25gaussians", "pinwheel", "swissroll", a Hub id, or a local folder
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str = "train"
    image_column: str | None = None  # None: the only image column
    padding: int = 0  # black pixels on each side: 2 makes 28x28 images 32x32
    horizontal_flip: bool = False
    num_toy_samples: int = 100_000
    num_workers: int = 0

    # models
    preset: str = "digits"  # hf_ebm.models.presets
    models: dict[str, dict] = dataclasses.field(default_factory=dict)  # changes to it: unet, generator, ...
    latent_dim: int | None = None  # None: the preset's

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
    latent_weight: float = 0.1
    kl_weight: float = 1.0
    recon_weight: float = 1.0
    reconstruction_latent: str = "posterior"  # or "prior", as the published image code
    reconstruction_loss: str = "squared_error"  # or "gaussian_nll", or "lsun_nll" (weighted per step)
    reconstruction_min_variance: float = 1e-4  # of the Gaussian in the two likelihoods

    # optimisation
    max_steps: int = 2000
    batch_size: int = 64  # per process
    gradient_accumulation_steps: int = 1
    energy_learning_rate: float = 1e-4
    generator_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5  # end of the cosine decay
    adam_betas: tuple[float, ...] = (0.0, 0.9)
    max_grad_norm: float | None = None
    ema_decay: float | None = 0.999  # of generator and energy; None: no EMA
    loss_limit: float = 1e7  # a larger loss term stops the run

    # machine
    seed: int = 0
    mixed_precision: str = "no"  # "no" (fp32), "bf16", "fp16"
    compile: bool = False  # torch.compile generator, inference model and, with one process, the energy
    channels_last: bool = False

    # records
    log_every: int = 10
    sample_every: int = 500  # a grid in samples/; 0: never
    num_grid_samples: int = 64
    checkpoint_every: int = 500  # 0: at the end only
    checkpoints_total_limit: int | None = 2
    resume: str | None = None  # "latest" or a checkpoint folder
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb"

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the setting, before any work."""
        positive = ("max_steps", "batch_size", "gradient_accumulation_steps", "r1_interval", "log_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        choices = {
            "reconstruction_latent": ("posterior", "prior"),
            "reconstruction_loss": ("squared_error", "gaussian_nll", "lsun_nll"),
            "mixed_precision": ("no", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        weights = self.r1_weight if isinstance(self.r1_weight, tuple) else (self.r1_weight,)
        if min(weights) < 0 or len(weights) not in (1, self.num_timesteps):
            raise ValueError(f"r1_weight must be one number >= 0, or num_timesteps of them, got {self.r1_weight}.")
        weights = self.timestep_weights or (1.0,) * self.num_timesteps
        if len(weights) != self.num_timesteps or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(f"timestep_weights must be num_timesteps numbers >= 0, got {self.timestep_weights}.")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1) or null, got {self.ema_decay}.")
        if self.spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {SPACINGS}, got {self.spacing!r}.")
        if len(self.adam_betas) != 2:
            raise ValueError(f"adam_betas must be two numbers, got {self.adam_betas}.")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError(f"checkpoints_total_limit must be >= 1 or null, got {self.checkpoints_total_limit}.")


@dataclasses.dataclass
class Objects:
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


def train_step(x: Tensor, step: int, objects: Objects, settings: DDAEBMSettings) -> dict[str, Tensor]:
    """One iteration: the energy, then generator and inference model together; returns the terms of the losses.

    Each sum and mean is as in `hf_ebm.losses.ddaebm`. Generator and inference model do not change while the energy
    does, so their forward pass is made once for both updates, and the generator's two passes (prior and posterior z)
    are one of twice the batch.

    Args:
        x: Clean samples, shape (B, ...).
        step: Iterations done before this one; lazy R1 counts by it.
        objects: Models, optimizers and coefficients.
        settings: The run's settings.
    """
    q, accelerator = objects.coefficients, objects.accelerator
    batch_size = x.shape[0]

    # a pair of the diffusion: x_t ~ q(x_t | x), x_next ~ q(x_next | x_t)
    t = torch.multinomial(objects.timestep_weights, batch_size, replacement=True)
    x_t = q.q_sample(x, t, torch.randn_like(x))
    x_next = q.q_step(x_t, t, torch.randn_like(x))
    noise, target = torch.randn_like(x), x_t
    if settings.coupled_noise:
        noise, target = q.posterior_noise(x_t, x, x_next, t), q.posterior_mean(x, x_next, t)

    # z_psi ~ q_psi(z | x_t, x_next), z ~ N(0, I); x0_pred = G(x_next, t, z); x_fake ~ q(x_t | x_next, x0_pred)
    mean, logvar = objects.inference_model(x_t, x_next, t, return_dict=False)
    z = torch.randn_like(mean)
    if settings.reconstruction_latent == "posterior":
        z_psi = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        both = objects.generator_model(
            torch.cat([x_next, x_next]), torch.cat([t, t]), torch.cat([z, z_psi]), return_dict=False
        )[0]
        x0_pred, x0_psi = both.float().chunk(2)
    else:
        x0_pred = x0_psi = objects.generator_model(x_next, t, z, return_dict=False)[0].float()
    x_fake = q.posterior_sample(x0_pred, x_next, t, noise, settings.noise_at_t0)

    # energy: mean E(x_t, t) - mean E(x_fake, t) + r1/2 mean ||grad [-E(x_t, t) + log q(x_next | x_t)]||^2
    penalised = step % settings.r1_interval == 0
    x_real = x_t.detach().requires_grad_(penalised)
    if penalised:  # two calls: the double backward shall go through the real half alone, and torch.compile has none
        energy_forward = objects.energy_model.forward if settings.compile else objects.energy_model
        energy_real = energy_forward(x_real, t).energy
        energy_fake = objects.energy_model(x_fake.detach(), t).energy
    else:
        energies = objects.energy_model(torch.cat([x_real, x_fake.detach()]), torch.cat([t, t])).energy
        energy_real, energy_fake = energies.chunk(2)
    loss = energy_loss(energy_real, energy_fake)
    if settings.energy_magnitude_weight:
        loss = loss + settings.energy_magnitude_weight * energy_magnitude_term(energy_real, energy_fake)
    penalty = torch.zeros((), device=x.device)
    if penalised:
        grad_log_q = q.log_q_step_grad(x_next, x_t, t) if settings.r1_include_transition else None
        weight = settings.r1_interval * objects.r1_weight[t]
        penalty = gradient_penalty_from_gradient(energy_gradient(energy_real, x_real), weight, grad_log_q)
    update(accelerator, objects.energy_optimizer, loss + penalty, objects.energy_model.parameters(), settings)

    # generator and inference model: reverse KL + entropy bound + forward KL, through the updated, frozen energy
    energy_model = accelerator.unwrap_model(objects.energy_model).requires_grad_(False)
    with accelerator.autocast():
        energy_fake_new = energy_model(x_fake, t).energy
    adversarial = adversarial_term(energy_fake_new, q.log_q_step(x_next, x_fake, t))
    latent = latent_term(z, *objects.inference_model(x_fake, x_next, t, return_dict=False))
    kl = kl_term(mean, logvar)
    reconstruction = reconstruct(target, q.posterior_mean(x0_psi, x_next, t), t, objects, settings)
    loss = adversarial + settings.latent_weight * latent
    loss = loss + settings.kl_weight * kl + settings.recon_weight * reconstruction
    parameters = [*objects.generator_model.parameters(), *objects.inference_model.parameters()]
    update(accelerator, objects.generator_optimizer, loss, parameters, settings)
    energy_model.requires_grad_(True)

    return {
        "energy_real": energy_real.mean(),
        "energy_fake": energy_fake.mean(),
        "gradient_penalty": penalty,
        "adversarial": adversarial,
        "latent": latent,
        "kl": kl,
        "reconstruction": reconstruction,
    }


def reconstruct(x_t: Tensor, predicted: Tensor, t: Tensor, objects: Objects, settings: DDAEBMSettings) -> Tensor:
    """``-log p(x_t | x_next, z)`` up to the constants of the chosen reconstruction loss."""
    if settings.reconstruction_loss == "squared_error":
        return reconstruction_term(x_t, predicted)
    log_variance = per_sample(objects.coefficients.posterior_log_variance, t, x_t)
    log_variance = log_variance.clamp(min=math.log(settings.reconstruction_min_variance))
    weight = lsun_step_weight(t, objects.times) if settings.reconstruction_loss == "lsun_nll" else 1.0
    return reconstruction_nll_term(x_t, predicted, log_variance, weight)


def update(accelerator: Accelerator, optimizer: Any, loss: Tensor, parameters: Any, settings: DDAEBMSettings) -> None:
    """One step of `optimizer` down `loss`."""
    accelerator.backward(loss)
    if settings.max_grad_norm is not None and accelerator.sync_gradients:
        accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def make_model_settings(settings: DDAEBMSettings) -> dict[str, Any]:
    """The arguments of the three networks."""
    chain = {"beta_min": settings.beta_min, "beta_max": settings.beta_max, "spacing": settings.spacing}
    return ddaebm_model_settings(settings.preset, settings.num_timesteps, settings.latent_dim, settings.models, chain)


def make_objects(
    settings: DDAEBMSettings, accelerator: Accelerator, models: tuple[Any, Any, Any]
) -> tuple[Objects, list[torch.optim.lr_scheduler.LRScheduler]]:
    """Optimizers, learning-rate schedules and coefficients for `models`, all prepared by `accelerator`."""
    generator_model, energy_model, inference_model = models
    for model in models:
        model.train()
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"betas": settings.adam_betas, "fused": accelerator.device.type in ("cpu", "cuda")}
    energy_optimizer = torch.optim.Adam(energy_model.parameters(), lr=settings.energy_learning_rate, **options)
    generator_optimizer = torch.optim.Adam(
        [*generator_model.parameters(), *inference_model.parameters()],
        lr=settings.generator_learning_rate,
        **options,
    )
    schedules: list[torch.optim.lr_scheduler.LRScheduler] = [
        torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=settings.max_steps, eta_min=min(settings.final_learning_rate, optimizer.defaults["lr"])
        )
        for optimizer in (energy_optimizer, generator_optimizer)
    ]
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
    objects = Objects(
        accelerator=accelerator,
        generator_model=prepared[0],
        energy_model=prepared[1],
        inference_model=prepared[2],
        energy_optimizer=prepared[3],
        generator_optimizer=prepared[4],
        coefficients=q.to(accelerator.device),
        times=vp_times(settings.num_timesteps, settings.spacing).to(accelerator.device),
        r1_weight=r1_weight,
        timestep_weights=torch.tensor(settings.timestep_weights or [1.0] * q.num_timesteps, device=accelerator.device),
    )
    return objects, schedules


def make_pipeline(objects: Objects, settings: DDAEBMSettings) -> DDAEBMPipeline:
    """The pipeline around the (unwrapped) networks as they are now."""
    schedule = {spacing: key for key, spacing in BETA_SCHEDULES.items()}[settings.spacing]
    scheduler = DDAEBMScheduler(settings.num_timesteps, settings.beta_min, settings.beta_max, schedule)
    unwrap = objects.accelerator.unwrap_model
    return DDAEBMPipeline(
        unwrap(objects.generator_model, keep_fp32_wrapper=False),
        scheduler,
        unwrap(objects.energy_model, keep_fp32_wrapper=False),
        unwrap(objects.inference_model, keep_fp32_wrapper=False),
    )


def train(settings: DDAEBMSettings) -> Path:
    """Train, and return the run folder, which is a pipeline folder then.

    Raises:
        ValueError: If a setting, the data or a checkpoint cannot be used; nothing was trained.
        TrainingDivergedError: If a loss is not finite or explodes.
    """
    output_dir = Path(settings.output_dir)
    accelerator = make_accelerator(
        settings.mixed_precision, settings.gradient_accumulation_steps, settings.trackers, output_dir
    )
    model_settings = make_model_settings(settings)
    checkpoint = find_checkpoint(settings.resume, output_dir / "checkpoints") if settings.resume else None
    if checkpoint is not None:
        check_same_models(checkpoint, model_settings)
    set_seed(settings.seed)
    models = build_ddaebm_models(model_settings)
    dataset = load_training_data(
        settings.dataset,
        models[0].sample_shape,
        split=settings.dataset_split,
        config_name=settings.dataset_config,
        revision=settings.dataset_revision,
        image_column=settings.image_column,
        padding=settings.padding,
        num_samples=settings.num_toy_samples,
        seed=settings.seed,
    )
    loader = make_loader(dataset, settings.batch_size, settings.seed, settings.num_workers)
    start_run(accelerator, settings, output_dir, resumed=checkpoint is not None)

    objects, schedules = make_objects(settings, accelerator, models)
    loader = accelerator.prepare_data_loader(loader)
    averaged = models[:2] if settings.ema_decay is not None else ()
    emas = [EMAModel(model.parameters(), decay=settings.ema_decay, foreach=True) for model in averaged]
    for ema in emas:
        ema.to(accelerator.device)
    accelerator.register_for_checkpointing(*schedules, *emas)
    set_seed(settings.seed, device_specific=True)  # each process draws noise of its own from here on
    step, position = 0, Position()
    if checkpoint is not None:
        state = read_state(checkpoint)
        accelerator.load_state(str(checkpoint))
        step, position = state["step"], Position(**state["position"])
        if state["num_processes"] != accelerator.num_processes:
            accelerator.print(
                f"note: the checkpoint was made by {state['num_processes']} processes, this run has "
                f"{accelerator.num_processes}: it goes on, but not bit for bit."
            )
    metrics = MetricsFile(output_dir / "metrics.jsonl", step) if accelerator.is_main_process else None

    def checkpoint_now() -> None:
        facts = {
            "position": dataclasses.asdict(position),
            "num_processes": accelerator.num_processes,
            "models": model_settings,
        }
        save_checkpoint(accelerator, output_dir / "checkpoints", step, facts, settings.checkpoints_total_limit)

    progress = tqdm(
        total=settings.max_steps, initial=step, disable=not accelerator.is_main_process, desc="ddaebm", unit="step"
    )
    batches = endless_batches(loader, position)
    started, start_step = time.perf_counter(), step
    while step < settings.max_steps:
        x = next(batches)
        if settings.horizontal_flip:
            x = random_flip(x)
        if settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(objects.energy_model, objects.generator_model, objects.inference_model):
            terms = gather_terms(accelerator, train_step(x, step, objects, settings))
        check_terms(terms, step, settings.loss_limit)
        if not accelerator.sync_gradients:
            continue
        for schedule in schedules:
            schedule.step()
        for ema, model in zip(emas, averaged, strict=True):
            ema.step(model.parameters())
        step += 1
        progress.update(1)

        if step % settings.log_every == 0 or step == settings.max_steps:
            progress.set_postfix({name: f"{terms[name]:.3g}" for name in ("energy_real", "energy_fake", "kl")})
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
            with averaged_weights(emas, averaged):
                save_samples(
                    make_pipeline(objects, settings),
                    output_dir / "samples",
                    step,
                    settings.num_grid_samples,
                    settings.dataset,
                )
            for model in models:
                model.train()
        if settings.checkpoint_every and step % settings.checkpoint_every == 0:
            checkpoint_now()
    progress.close()
    if not settings.checkpoint_every or step % settings.checkpoint_every:
        checkpoint_now()

    with averaged_weights(emas, averaged):
        if accelerator.is_main_process:
            finish_run(
                make_pipeline(objects, settings),
                settings,
                output_dir,
                step=step,
                seconds=time.perf_counter() - started,
                num_images=len(loader.dataset),
                num_processes=accelerator.num_processes,
            )
    accelerator.end_training()
    return output_dir


class averaged_weights:  # noqa: N801 (a context manager, read as a verb)
    """Inside ``with``, the models hold their EMA's weights; afterwards their own again."""

    def __init__(self, emas: Sequence[EMAModel], models: Sequence[torch.nn.Module]) -> None:
        self.pairs = list(zip(emas, models, strict=True))

    def __enter__(self) -> None:
        for ema, model in self.pairs:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())

    def __exit__(self, *_: Any) -> None:
        for ema, model in self.pairs:
            ema.restore(model.parameters())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script; a setting that cannot be used ends it with one clear line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        print("Settings and their defaults:")
        for field in dataclasses.fields(DDAEBMSettings):
            default = field.default if field.default is not dataclasses.MISSING else {}
            print(f"  {field.name} = {default!r}")
        return
    try:
        train(load_settings(DDAEBMSettings, DEFAULT_CONFIG, arguments))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
