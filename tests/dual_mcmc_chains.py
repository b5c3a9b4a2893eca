"""Reference implementations of DualMCMCPipeline's chains and energies, and models to run them on."""

import torch

from hf_ebm import (
    AnnealedLangevinScheduler,
    HMCScheduler,
    LangevinScheduler,
    MALAScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
)
from hf_ebm.langevin import energy_grad, langevin_step
from hf_ebm.losses.dual_mcmc import posterior_energy

SAMPLERS = [
    LangevinScheduler,
    MALAScheduler,
    HMCScheduler,
    AnnealedLangevinScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
]
MASK = torch.zeros(8, 8)
MASK[:, 4:] = 1.0  # the right half is to be filled in


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=3):
    """Images in the models' range of values that are exact in [0, 1], too."""
    return torch.randint(0, 129, (count, 1, 8, 8), generator=seeded(7)) / 64 - 1


def unit(x):
    """As a pipeline takes them, in [0, 1]."""
    return (x + 1) / 2


def langevin(scheduler, energy_fn, x, num_steps, g, keep=lambda x: x):
    """The chain, written out."""
    for _ in range(num_steps):
        noise = torch.randn(x.shape, generator=g)
        x = keep(langevin_step(x, energy_grad(energy_fn, x), scheduler.step_size, scheduler.noise_std, noise))
    return x


def x_energy(pipe):
    return lambda x: pipe.energy_model(x).energy


def z_energy(pipe, x):
    return lambda z: posterior_energy(lambda z: pipe.generator_model(z).sample, z, x, 0.3)
