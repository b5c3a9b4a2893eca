"""HMC, Hamiltonian (hybrid) Monte Carlo: L leapfrog steps with a fresh momentum, taken or not by Metropolis' rule.

    p <- p - s^2/(2n) grad E(x)        half a kick; s^2/(2n) = n/(2T), T = temperature = (n/s)^2
    x <- x + n p
    p <- p - s^2/(2n) grad E(x)        log_ratio = (E(x) - E(x')) / T + (||p||^2 - ||p'||^2) / 2

with ``p ~ N(0, I)`` before the first and p' after the last of the L steps. With L = 1 this is MALA, proposal and ratio.
The chain leaves ``exp(-E / T)`` exactly invariant. L steps travel about n L; in a mode of standard deviation sd those
with n L near a multiple of ``pi sd`` only swing back or across and hardly mix, so keep n L below the widest sd or so.
Source: Duane et al. 1987; Neal 2011; the step given by Langevin's s and n is ours.

One gradient per ``step``, so K updates need K L + 1; calls between decide nothing and report no acceptance.
"""

from __future__ import annotations

from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.schedulers.metropolis import ChainState, accept, given_state, half_squared_norm, log_uniform
from hf_ebm.utils.validation import check_count


class HMCScheduler(EnergySampler):
    """Hamiltonian Monte Carlo.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0.
        noise_std: n > 0, the leapfrog's step; None = `step_size`, the chain of ``exp(-E)``.
        num_leapfrog_steps: L >= 1, gradients per update.
    """

    rejects = True
    state: ChainState | None
    momentum: Tensor
    kinetic: Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 30,
        step_size: float = 0.5,
        noise_std: float | None = None,
        num_leapfrog_steps: int = 5,
    ) -> None:
        check_count("num_leapfrog_steps", num_leapfrog_steps, 1)
        self.setup(num_train_timesteps, step_size, noise_std)

    def num_evaluations(self, num_inference_steps: int) -> int:
        """One gradient at the start and one at each leapfrog step's end."""
        return num_inference_steps * self.config.num_leapfrog_steps + 1

    def reset(self) -> None:
        """Forget the chain and its trajectory."""
        super().reset()
        self.state = None

    def half_kick(self, momentum: Tensor, grad: Tensor) -> Tensor:
        """``p - s^2/(2n) grad E(x)``, shape of `momentum`."""
        return momentum - 0.5 * self.step_size**2 / self.noise_std * grad

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """Continue the trajectory from `sample`; at its end decide about it and begin the next."""
        given = given_state(sample, energy, grad)
        index = self.advance()
        at_end = index % self.config.num_leapfrog_steps == 0  # of a trajectory; the chain's start counts as one
        state, acceptance_rate = given, None
        if self.state is not None:
            state = self.state
            self.momentum = self.half_kick(self.momentum, given.grad)
            if at_end:
                log_ratio = (state.energy - given.energy) / self.temperature
                log_ratio = log_ratio + self.kinetic - half_squared_norm(self.momentum)
                accepted = accept(log_ratio, given.energy, log_uniform(given.energy.shape, sample.device, generator))
                state, acceptance_rate = state.select(accepted, given), accepted.float().mean()
        self.state = state
        prev_sample = state.sample
        if index < len(self.timesteps) - 1:
            here = state if at_end else given
            if at_end:
                shape, device, dtype = sample.shape, sample.device, sample.dtype
                self.momentum = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
                self.kinetic = half_squared_norm(self.momentum)
            self.momentum = self.half_kick(self.momentum, here.grad)
            prev_sample = here.sample + self.noise_std * self.momentum
        return EnergySamplerOutput(prev_sample, state.sample, energy, grad, acceptance_rate)
