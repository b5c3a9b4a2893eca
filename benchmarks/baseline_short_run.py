"""Baseline: a short-run EBM (Nijkamp et al., NeurIPS 2019) with the energy network of Dual-MCMC Teaching.

    accelerate launch benchmarks/baseline_short_run.py --config benchmarks/configs/short_run_digits.yaml key=value ...

There is only one network. Negatives are K Langevin steps on the energy from uniform noise, new at
each iteration, and the same K steps are the sampler. K steps do not reach the energy's stationary
distribution: the short chain is trained as a generator. Without arguments the script trains the
digits. The run folder is an `EnergyScoringPipeline` with the chain as its `LangevinScheduler`.

Source: Nijkamp, Hill, Zhu & Wu, "Learning non-convergent non-persistent short-run MCMC toward energy-based model".
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from baselines import CONFIGS, check_parts, sample_batches, save_grid_of
from torch import Tensor

from hf_ebm.langevin import energy_grad, langevin_chain, run_chain
from hf_ebm.losses.ddaebm import energy_loss, energy_magnitude_term
from hf_ebm.models.dual_mcmc_presets import dual_mcmc_model_settings
from hf_ebm.models.eval_copy import eval_copy
from hf_ebm.models.resnet_energy import ResNetEnergyConfig, ResNetEnergyModel
from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.training.config import RunSettings
from hf_ebm.training.launch import run_script
from hf_ebm.training.train_dual_mcmc import refresh_singular_values
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update
from hf_ebm.utils.validation import check_known


@dataclasses.dataclass(frozen=True)
class ShortRunSettings(RunSettings):
    """Settings of a run; `generator_learning_rate` and `latent_dim` are not used."""

    output_dir: str = "outputs/short-run"

    # the chain, from uniform noise in [-1, 1]
    num_steps: int = 100
    step_size: float = 1.0
    noise_std: float = 0.01

    # objective
    data_noise_std: float = 0.03  # Gaussian noise on the data, which smooths the energy
    energy_magnitude_weight: float = 0.0  # times mean E(x)^2 + mean E(x_negative)^2

    # optimisation
    energy_gap_limit: float = 1e4  # the run stops when |mean E(x) - mean E(x_negative)| exceeds it

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names an invalid setting."""
        super().__post_init__()
        self.check_at_least(1, "num_steps")
        self.check_at_least(0, "data_noise_std", "energy_magnitude_weight")
        self.check_positive("step_size", "noise_std", "energy_gap_limit")


@dataclasses.dataclass
class TrainState:
    """The energy and its optimizer."""

    accelerator: Accelerator
    energy_model: Any
    optimizer: Any

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return (self.energy_model,)


def train_step(x: Tensor, step: int, state: TrainState, settings: ShortRunSettings) -> dict[str, Tensor]:
    """One iteration: ``mean E(x + noise) - mean E(x_negative)``, the maximum-likelihood gradient of a converged chain.

    Args:
        x: Data, shape (B, C, H, W).
        step: Iterations done before this one; not used.
        state: The energy and its optimizer.
        settings: The run's settings.
    """
    accelerator = state.accelerator
    energy_model = accelerator.unwrap_model(state.energy_model)

    def energy(x: Tensor) -> Tensor:
        with accelerator.autocast():
            return energy_model(x).energy

    # x_negative: K Langevin steps from uniform noise
    start = 2.0 * torch.rand_like(x) - 1.0
    with energy_model.chain():
        x_negative = langevin_chain(
            start, lambda x: energy_grad(energy, x), settings.num_steps, settings.step_size, settings.noise_std
        )

    # energy: mean E(x) - mean E(x_negative)
    x = x + settings.data_noise_std * torch.randn_like(x)
    energy_data, energy_negative = state.energy_model(torch.cat([x, x_negative])).energy.chunk(2)
    loss = energy_loss(energy_data, energy_negative)
    if settings.energy_magnitude_weight:
        loss = loss + settings.energy_magnitude_weight * energy_magnitude_term(energy_data, energy_negative)
    update(accelerator, state.optimizer, loss, state.energy_model.parameters(), settings)

    return {
        "energy_data": energy_data.mean(),
        "energy_negative": energy_negative.mean(),
        "energy_gap": energy_data.mean() - energy_negative.mean(),
    }


def make_model_settings(settings: ShortRunSettings) -> dict[str, Any]:
    """Arguments of the energy, from a Dual-MCMC preset for images."""
    check_parts(settings.models, ("data", "energy"))
    parts = dual_mcmc_model_settings(settings.preset, overrides=settings.models)
    if parts["network"] != "resnet":
        raise ValueError(f"preset must be one for images, got {settings.preset!r}.")
    check_known("ResNetEnergyConfig", parts["energy"], ResNetEnergyConfig().to_dict())
    return {"energy": parts["energy"]}


def build_models(settings: dict[str, Any]) -> tuple[ResNetEnergyModel]:
    """The energy, freshly initialised (torch's seed)."""
    return (ResNetEnergyModel(ResNetEnergyConfig(**settings["energy"])),)


def make_train_state(
    settings: ShortRunSettings, accelerator: Accelerator, models: tuple[Any], steps_per_epoch: int
) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """The optimizer and its learning-rate schedule for the energy, prepared by `accelerator`."""
    (energy_model,) = models
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(
        energy_model.parameters(), lr=settings.energy_learning_rate, betas=settings.adam_betas, fused=fused
    )
    schedules = [cosine_schedule(optimizer, settings)]
    if settings.compile:
        energy_model.compile()
    return TrainState(accelerator, *accelerator.prepare(energy_model, optimizer)), schedules


def make_pipeline(models: tuple[Any], settings: ShortRunSettings) -> EnergyScoringPipeline:
    """A pipeline with the current energy and the chain that samples it."""
    scheduler = LangevinScheduler(settings.num_steps, settings.step_size, settings.noise_std)
    return EnergyScoringPipeline(models[0], scheduler)


def sample_images(
    pipeline: EnergyScoringPipeline, number: int, generator: torch.Generator, num_inference_steps: int | None = None
) -> Tensor:
    """Run `number` chains from uniform noise, shape (number, C, H, W); None: as many steps as in training."""
    energy_model, scheduler = eval_copy(pipeline.energy_model), copy.deepcopy(pipeline.scheduler)
    shape = (number, *energy_model.sample_shape)
    start = 2.0 * torch.rand(shape, generator=generator, device=generator.device) - 1.0
    num_steps = num_inference_steps or scheduler.config.num_train_timesteps
    return run_chain(scheduler, lambda x: energy_model(x).energy, start, num_steps, generator).sample


def save_samples(pipeline: EnergyScoringPipeline, folder: Path, step: int, settings: ShortRunSettings) -> Path:
    """Save an image grid of samples from fixed noise."""

    def sample(number: int, generator: torch.Generator) -> Tensor:
        return sample_images(pipeline, number, generator)

    return save_grid_of(sample, folder, step, settings.num_grid_samples, pipeline.device)


METHOD = Method(
    name="short_run",
    make_model_settings=make_model_settings,
    build_models=build_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("energy_data", "energy_negative"),
    term_limits=lambda settings: {"energy_gap": settings.energy_gap_limit},
    when_diverged="a smaller step_size and noise_std, or smaller learning rates",
    num_averaged=1,
    refresh_statistics=refresh_singular_values,
    save_samples=save_samples,
    write_card=None,
)


def train(settings: ShortRunSettings) -> Path:
    """Train and return the run folder; see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


def sample_run(
    folder: Path, number: int, batch_size: int, seed: int, device: str, num_inference_steps: int | None = None
) -> Iterator[Tensor]:
    """`number` images of a run folder in batches, in [-1, 1], shape (B, C, H, W), on the CPU.

    Args:
        folder: The run folder.
        number: Number of images.
        batch_size: Images per batch.
        seed: Seed of all random numbers.
        device: Where the energy runs.
        num_inference_steps: Steps of the chain; None = as many as in training.
    """
    pipeline = EnergyScoringPipeline.from_pretrained(folder).to(device)

    def sample(number: int, generator: torch.Generator) -> Tensor:
        return sample_images(pipeline, number, generator, num_inference_steps)

    return sample_batches(sample, number, batch_size, seed, device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", ShortRunSettings, str(CONFIGS / "short_run_digits.yaml"), train, arguments)


if __name__ == "__main__":
    main()
