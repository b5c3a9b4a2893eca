"""Replica exchange (parallel tempering): each sample runs R chains on a ladder of temperatures, which swap states.

    T_r = T ratio^r,  r = 0 .. R-1        each chain takes MALA's step, of step size s and noise n_r = n ratio^(r/2)
    log_ratio = (1/T_r - 1/T_{r+1}) (E(x_r) - E(x_{r+1}))        for swapping the states of neighbouring chains

Chain 0 is the sample: it targets ``exp(-E / T)`` exactly, and takes over what hot chains find across barriers. After
each update the pairs (0, 1), (2, 3), ... and (1, 2), (3, 4), ... take turns at swapping. Source: Swendsen & Wang 1986;
Geyer 1991; the MALA step inside is ours.

The energy is needed at all replicas: after the first call ``prev_sample`` has B R rows, sample by sample, and after
the last one B again; everything else in the output is about chain 0, shape (B, ...), all along.
"""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import langevin_step
from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.schedulers.metropolis import ChainState, accept, given_state, log_uniform
from hf_ebm.schedulers.scheduling_mala import proposal_log_ratio
from hf_ebm.utils.validation import check_count, is_number


def swap_rows(energy: Tensor, temperatures: Tensor, first: int, log_u: Tensor) -> tuple[Tensor, Tensor]:
    """Whose state each chain has after the swaps, and which pairs swapped.

    Args:
        energy: Energies, shape (B, R).
        temperatures: T_r, shape (R,).
        first: 0 or 1: the pairs (first, first + 1), (first + 2, first + 3), ... may swap.
        log_u: Log of uniform numbers, one per pair of neighbours, shape (B, R - 1).

    Returns:
        A row of (B R, ...) for each chain, its own or its neighbour's, shape (B R,); 1 for each pair of neighbours that
        swapped and 0 for the others, shape (B, R - 1).
    """
    beta, chain = 1.0 / temperatures, torch.arange(len(temperatures), device=energy.device)
    log_ratio = (beta[:-1] - beta[1:]) * (energy[:, :-1] - energy[:, 1:])
    swap = ((log_u < log_ratio) & (chain[:-1] % 2 == first)).long()  # (B, R - 1)
    up, down = torch.nn.functional.pad(swap, (0, 1)), torch.nn.functional.pad(swap, (1, 0))
    first_row = len(temperatures) * torch.arange(len(energy), device=energy.device)[:, None]
    return (first_row + chain + up - down).flatten(), swap


class ReplicaExchangeScheduler(EnergySampler):
    """MALA on a ladder of temperatures whose chains swap states.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0, of all chains.
        noise_std: n > 0, of chain 0; None = `step_size`, the chain of ``exp(-E)``.
        num_replicas: R >= 2; the energy is computed for R times as many samples.
        temperature_ratio: > 1, between neighbouring chains.
    """

    state: ChainState | None
    noise: Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 30,
        step_size: float = 0.5,
        noise_std: float | None = None,
        num_replicas: int = 4,
        temperature_ratio: float = 2.0,
    ) -> None:
        check_count("num_replicas", num_replicas, 2)
        if not is_number(temperature_ratio) or not 1.0 < temperature_ratio < float("inf"):
            raise ValueError(f"temperature_ratio must be > 1 and finite, got {temperature_ratio!r}.")
        self.setup(num_train_timesteps, step_size, noise_std)

    def num_evaluations(self, num_inference_steps: int) -> int:
        """One gradient at the start and one at each proposal, as MALA."""
        return num_inference_steps + 1

    def reset(self) -> None:
        """Forget the chains and their waiting proposals."""
        super().reset()
        self.state = None

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """Decide about the proposals `sample`, (B R, ...) after the start, swap, and make the next ones."""
        given = given_state(sample, energy, grad)
        index, num_replicas = self.advance(), self.config.num_replicas
        if self.state is None:
            rows = torch.arange(sample.shape[0], device=sample.device).repeat_interleave(num_replicas)
            given = ChainState(given.sample[rows], given.energy[rows], given.grad[rows])
        by_chain = (given.energy.shape[0] // num_replicas, num_replicas)  # (B, R)
        ladder = self.config.temperature_ratio ** torch.arange(num_replicas, device=sample.device)
        noise_std = self.noise_std * ladder.sqrt().repeat(by_chain[0]).to(sample.dtype)
        noise_std = noise_std.reshape(-1, *[1] * (sample.dim() - 1))  # (B R, 1, ...)
        temperatures = self.temperature * ladder
        state, acceptance_rate, swap_rate = given, None, None
        if self.state is not None:
            state = self.state
            log_ratio = (state.energy - given.energy) / temperatures.repeat(by_chain[0])
            log_ratio = log_ratio + proposal_log_ratio(self.noise, state.grad, given.grad, self.step_size, noise_std)
            log_u = log_uniform(by_chain, sample.device, generator).flatten()
            accepted = accept(log_ratio, given.energy, log_u)
            state, acceptance_rate = state.select(accepted, given), accepted[::num_replicas].float().mean()

            log_u = log_uniform((by_chain[0], num_replicas - 1), sample.device, generator)
            # the first swaps are those of update 1, the pairs (0, 1), (2, 3), ...
            first = (index - 1) % 2
            rows, swapped = swap_rows(state.energy.reshape(by_chain), temperatures, first, log_u)
            in_turn = swapped[:, first::2]
            swap_rate = in_turn.float().mean() if in_turn.shape[1] else None  # two chains swap every other time
            state = ChainState(state.sample[rows], state.energy[rows], state.grad[rows])
        self.state = state
        current_sample = prev_sample = state.sample[::num_replicas]
        if index < len(self.timesteps) - 1:
            shape = (*by_chain, *sample.shape[1:])
            noise = randn_tensor(shape, generator=generator, device=sample.device, dtype=sample.dtype)
            self.noise = noise.flatten(0, 1)
            prev_sample = langevin_step(state.sample, state.grad, self.step_size, noise_std, self.noise)
        stride = len(sample) // len(current_sample)
        return EnergySamplerOutput(
            prev_sample,
            current_sample,
            given.energy[::num_replicas],
            grad[::stride],
            acceptance_rate,
            swap_rate,
        )
