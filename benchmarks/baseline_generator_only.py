"""Baseline: the generator of Dual-MCMC Teaching with its inference model and z-chain, without an energy.

    python benchmarks/baseline_generator_only.py --config dual_mcmc_digits.yaml output_dir=outputs/generator-only

The first two updates of `train_dual_mcmc.train_step`, without the x-chain. The energy of the run
folder is untrained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ebm.training import train_dual_mcmc
from hf_ebm.training.launch import run_script
from hf_ebm.training.train_dual_mcmc import DualMCMCSettings, TrainState
from hf_ebm.training.trainer import run_training


def train_step(
    x: Tensor, step: int, state: TrainState, settings: DualMCMCSettings, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """One iteration: generator, inference model; returns the terms of the losses."""
    samples = train_dual_mcmc.draw_samples(x, state, settings, labels)
    terms = train_dual_mcmc.generator_update(x, samples, state, settings)
    return {**terms, **train_dual_mcmc.inference_update(samples, state, settings)}


def make_train_state(*arguments: Any) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """The state of Dual-MCMC Teaching without a learning-rate schedule of the energy, which is not trained."""
    state, schedules = train_dual_mcmc.make_train_state(*arguments)
    return state, [one for one in schedules if one.optimizer is not state.energy_optimizer.optimizer]


METHOD = dataclasses.replace(
    train_dual_mcmc.METHOD,
    make_train_state=make_train_state,
    train_step=train_step,
    shown_terms=("reconstruction", "inference"),
    energy_terms=(),
    write_card=None,
)


def train(settings: DualMCMCSettings) -> Path:
    """Train and return the run folder; see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, dataclasses.replace(settings, x_num_steps=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DualMCMCSettings, train_dual_mcmc.DEFAULT_CONFIG, train, arguments)


if __name__ == "__main__":
    main()
