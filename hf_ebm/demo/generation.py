"""Generate images, with intermediate samples of a few of them and the energies of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.demo.limits import MAX_CHAIN_STEPS, MAX_IMAGES, MAX_SEED, check_whole_number
from hf_ebm.langevin import run_chain
from hf_ebm.models.eval_copy import eval_copy
from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline
from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.schedulers.scheduling_annealed_langevin import AnnealedLangevinScheduler
from hf_ebm.schedulers.scheduling_ddaebm import DDAEBMScheduler
from hf_ebm.schedulers.scheduling_hmc import HMCScheduler
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.schedulers.scheduling_mala import MALAScheduler
from hf_ebm.schedulers.scheduling_preconditioned_langevin import PreconditionedLangevinScheduler
from hf_ebm.schedulers.scheduling_replica_exchange import ReplicaExchangeScheduler
from hf_ebm.scoring.statistics import compute_energies
from hf_ebm.utils.torch_utils import no_grad

NUM_WATCHED = 3  # samples whose states are kept

DENOISING_SAMPLERS: dict[str, Any] = {
    "DDAEBM (its own)": DDAEBMScheduler,
    "DDPM (with all steps the same as its own)": DDPMScheduler,
    "DDIM": DDIMScheduler,
}
CHAIN_SAMPLERS: dict[str, Any] = {
    "Langevin (its own)": LangevinScheduler,
    "Annealed Langevin": AnnealedLangevinScheduler,
    "Preconditioned Langevin": PreconditionedLangevinScheduler,
    "MALA": MALAScheduler,
    "HMC": HMCScheduler,
    "Replica exchange": ReplicaExchangeScheduler,
}


@dataclass(frozen=True)
class Generation:
    """Samples with the sampler's trajectory.

    Attributes:
        images: In [-1, 1], shape (N, C, S, S).
        states: Of the first samples, at each point of the trajectory, ending with `images`, (K, M, C, S, S).
        energies: ``E(x, 0)`` of every sample at these points, low = likely, shape (K, N).
        point_names: Of the K points.
        acceptance_rate: Share of accepted proposals, for samplers with proposals.
    """

    images: Tensor
    states: Tensor
    energies: Tensor
    point_names: list[str]
    acceptance_rate: float | None = None


def samplers_of(model: DemoModel) -> dict[str, Any]:
    """The schedulers that `model` can be sampled with, by the name on the page; the first is its own."""
    return CHAIN_SAMPLERS if model.is_dual_mcmc else DENOISING_SAMPLERS


def step_limits(model: DemoModel, sampler: str) -> tuple[int, int, int]:
    """Smallest, default and largest number of steps of a sampler."""
    number = len(model.pipeline.scheduler)
    if model.is_dual_mcmc:
        return 0, min(number, MAX_CHAIN_STEPS), MAX_CHAIN_STEPS
    return (number if samplers_of(model)[sampler] is DDAEBMScheduler else 1), number, number


def generate(model: DemoModel, num_images: Any, sampler: Any, num_steps: Any, seed: Any) -> Generation:
    """Generate images with the named sampler.

    Raises:
        ValueError: If a number is out of its range, or the sampler is unknown; it names the field.
    """
    num_images = check_whole_number("The number of images", num_images, 1, MAX_IMAGES)
    seed = check_whole_number("The seed", seed, 0, MAX_SEED)
    if sampler not in list(samplers_of(model)):
        raise ValueError(f"The sampler must be one of {list(samplers_of(model))}, got {sampler!r}.")
    low, _, high = step_limits(model, sampler)
    num_steps = check_whole_number("The number of steps", num_steps, low, high)
    scheduler = samplers_of(model)[sampler].from_config(model.pipeline.scheduler.config)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return (generate_by_chain if model.is_dual_mcmc else generate_by_denoising)(
        pipeline, num_images, num_steps, generator
    )


def generate_by_denoising(
    pipeline: DDAEBMPipeline, num_images: int, num_steps: int, generator: torch.Generator
) -> Generation:
    """Sample a DDAEBM; the points of the trajectory are its states after each denoising step."""
    states, energies = [], []

    def watch(_: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> None:
        states.append(tensors["x"][:NUM_WATCHED].float().cpu())
        energies.append(compute_energies(pipeline.energy_model, tensors["x"]))

    samples: Any = pipeline(num_images, num_steps, generator, output_type="pt", callback_on_step_end=watch)
    names = [f"step {step}" for step in range(1, len(states) + 1)]
    return Generation(samples.images.cpu(), torch.stack(states), torch.stack(energies), names)


@no_grad
def generate_by_chain(
    pipeline: DualMCMCPipeline, num_images: int, num_steps: int, generator: torch.Generator
) -> Generation:
    """Sample a model of Dual-MCMC Teaching; the points are the generator's sample and each update of the x-chain.

    The pipeline's call returns energies only; the chain is run here to observe its states as well.
    """
    states: list[Tensor] = []

    energy_model = eval_copy(pipeline.energy_model)

    def energy_fn(x: Tensor) -> Tensor:
        return energy_model(x.to(energy_model.dtype)).energy

    def watched(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def observe(x: Tensor) -> Tensor:
            states.append(x[:NUM_WATCHED].float().cpu())
            return energy(x)

        return observe

    start = pipeline.generate(pipeline.draw_latents(num_images, generator))
    chain = run_chain(
        pipeline.scheduler,
        energy_fn,
        start,
        num_steps,
        generator,
        observe=watched(energy_fn),
        with_diagnostics=True,
    )
    rates = (chain.diagnostics or {}).get("acceptance_rate")
    names = ["start", *(f"step {step}" for step in range(1, len(states)))]
    return Generation(
        images=chain.sample.clamp(-1.0, 1.0).float().cpu(),
        states=torch.stack(states),
        energies=chain.profile.float().cpu() if chain.profile is not None else torch.empty(0, num_images),
        point_names=names,
        acceptance_rate=None if rates is None else float(rates.mean()),
    )
