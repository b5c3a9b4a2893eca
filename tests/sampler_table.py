"""A table of the samplers of an energy: a new one is added as a row, and all shared tests run on it."""

from dataclasses import dataclass, field

import pytest

from hf_ebm import (
    AnnealedLangevinScheduler,
    HMCScheduler,
    LangevinScheduler,
    MALAScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
)
from hf_ebm.langevin import energy_and_grad


@dataclass(frozen=True)
class Row:
    """A sampler: its class, settings for `known_moments`, and how far its moments may be off by its own bias."""

    scheduler: type
    settings: dict = field(default_factory=dict)
    bias: float = 0.0  # allowed error of a moment, in units of the target's (co)variance; 0 = exact
    num_steps: int = 60

    @property
    def exact(self):
        """Whether it accepts or rejects, which makes it exact and needs one more gradient."""
        return self.bias == 0.0


SAMPLERS = {
    "langevin": Row(LangevinScheduler, {"step_size": 0.25}, bias=0.06, num_steps=250),
    "annealed": Row(AnnealedLangevinScheduler, {"step_size": 0.25, "noise_scale_start": 1.2}, bias=0.1, num_steps=250),
    "preconditioned": Row(PreconditionedLangevinScheduler, {"step_size": 0.25}, bias=0.15, num_steps=250),
    "mala": Row(MALAScheduler, {"step_size": 0.7}, num_steps=100),
    "hmc": Row(HMCScheduler, {"step_size": 0.45, "num_leapfrog_steps": 3}, num_steps=60),
    "replica-exchange": Row(ReplicaExchangeScheduler, {"step_size": 0.7, "num_replicas": 3}, num_steps=80),
}
CONTRACT = {"lr-decay": Row(LangevinScheduler, {"step_size_decay": 0.3, "noise_decay": 0.2}, bias=1.0), **SAMPLERS}
each = pytest.mark.parametrize("row", CONTRACT.values(), ids=CONTRACT)
each_metropolis = pytest.mark.parametrize("name", ["mala", "hmc", "replica-exchange"])


def run(scheduler, energy_fn, x, num_steps, generator):
    """The loop every caller writes; returns the chain's end and the outputs."""
    scheduler.set_timesteps(num_steps)
    outputs = []
    for t in scheduler.timesteps:
        energy, grad = energy_and_grad(energy_fn, x)
        outputs.append(scheduler.step(grad, t, x, energy=energy, generator=generator))
        x = outputs[-1].prev_sample
    return x, outputs
