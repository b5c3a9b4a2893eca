"""Train an energy of 2-D data by denoising score matching (Vincent 2011).

accelerate launch training/train_dsm.py --config training/configs/dsm_swissroll.yaml key=value ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_ebm.losses.dsm import denoising_score_matching
from hf_ebm.models.dsm_energy import DSMEnergyConfig, DSMEnergyModel
from hf_ebm.pipelines.pipeline_dsm import DSMPipeline
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.training.config import RunSettings
from hf_ebm.training.launch import run_script
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update

DEFAULT_CONFIG = "dsm_swissroll.yaml"


@dataclasses.dataclass(frozen=True)
class DSMSettings(RunSettings):
    """All settings of a run."""

    output_dir: str = "outputs/dsm"
    noise_std: float = 0.3  # sigma of the noise that the energy's gradient predicts
    num_steps: int = 100  # of the Langevin chain that samples
    step_size: float = 0.1

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the setting, before any work."""
        super().__post_init__()
        self.check_positive("noise_std", "step_size")
        self.check_at_least(1, "num_steps")


@dataclasses.dataclass
class TrainState:
    """What a train step updates and uses."""

    accelerator: Accelerator
    energy_model: Any
    optimizer: Any

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return (self.energy_model,)


def train_step(x: Tensor, step: int, state: TrainState, settings: DSMSettings) -> dict[str, Tensor]:
    """Noise the data, and descend the error with which the energy's gradient predicts the noise."""
    noise = torch.randn_like(x)
    loss = denoising_score_matching(lambda x: state.energy_model(x).energy, x, noise, settings.noise_std)
    update(state.accelerator, state.optimizer, loss, state.energy_model.parameters(), settings)
    return {"score_matching": loss}


def make_model_settings(settings: DSMSettings) -> dict[str, Any]:
    """The arguments of the network."""
    return {"energy": {"noise_std": settings.noise_std, **settings.models.get("energy", {})}}


def build_models(model_settings: dict[str, Any]) -> tuple[DSMEnergyModel]:
    """The network."""
    return (DSMEnergyModel(DSMEnergyConfig(**model_settings["energy"])),)


def make_train_state(
    settings: DSMSettings, accelerator: Accelerator, models: tuple[Any], steps_per_epoch: int
) -> tuple[TrainState, list[Any]]:
    """The optimizer and its schedule."""
    optimizer = torch.optim.Adam(models[0].parameters(), settings.energy_learning_rate, betas=settings.adam_betas)
    schedules = [cosine_schedule(optimizer, settings)]
    return TrainState(accelerator, *accelerator.prepare(models[0], optimizer)), schedules


def make_pipeline(models: tuple[Any], settings: DSMSettings) -> DSMPipeline:
    """The pipeline around the network as it is now."""
    return DSMPipeline(models[0], LangevinScheduler(settings.num_steps, settings.step_size))


METHOD = Method(
    name="dsm",
    make_model_settings=make_model_settings,
    build_models=build_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("score_matching",),
    num_averaged=1,
)


def train(settings: DSMSettings) -> Path:
    """Train, and return the run folder: see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DSMSettings, DEFAULT_CONFIG, train, arguments)


if __name__ == "__main__":
    main()
