"""MALA, the Metropolis-adjusted Langevin algorithm: the Langevin step as a proposal, taken or not by Metropolis' rule.

    x' = x - s^2/2 grad E(x) + n * noise,        log_ratio = (E(x) - E(x')) / T + log q(x | x') - log q(x' | x)

q(x' | x) is that step's Gaussian, ``T = temperature = (n/s)^2``. The chain samples ``exp(-E / T)`` exactly at every
step size: a coarse one costs acceptance, not bias. Source: Besag 1994; Roberts & Tweedie 1996; the temperature is ours.

One gradient per ``step``: the first call proposes; each later one is given energy and gradient at the proposal, decides
about it and proposes again; the last only decides. So K updates need K + 1 gradients.
"""

from __future__ import annotations

from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import langevin_step
from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.schedulers.metropolis import ChainState, accept, given_state, half_squared_norm, log_uniform


def proposal_log_ratio(
    noise: Tensor, grad: Tensor, grad_proposed: Tensor, step_size: float, noise_std: float | Tensor
) -> Tensor:
    """``log q(x | x') - log q(x' | x)`` of a Langevin step from x to x', shape (B,).

    By the noise there and back: the step from x' returns to x with ``noise' = (x - x' + s^2/2 grad E(x')) / n``, and
    putting in x' makes that ``s^2/(2n) (grad E(x) + grad E(x')) - noise``, where no small difference is taken.

    Args:
        noise: The noise of the step, shape (B, ...).
        grad: Gradient at x, shape (B, ...).
        grad_proposed: Gradient at x', shape (B, ...).
        step_size: s.
        noise_std: n, a number or broadcastable to `noise`.
    """
    noise_back = 0.5 * step_size**2 / noise_std * (grad + grad_proposed) - noise
    return half_squared_norm(noise) - half_squared_norm(noise_back)


class MALAScheduler(EnergySampler):
    """The Metropolis-adjusted Langevin algorithm.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0.
        noise_std: n > 0; None = `step_size`, the chain of ``exp(-E)``.
    """

    rejects = True
    state: ChainState | None
    noise: Tensor

    @register_to_config
    def __init__(self, num_train_timesteps: int = 30, step_size: float = 0.5, noise_std: float | None = None) -> None:
        self.setup(num_train_timesteps, step_size, noise_std)

    def num_evaluations(self, num_inference_steps: int) -> int:
        """One gradient at the start and one at each proposal."""
        return num_inference_steps + 1

    def reset(self) -> None:
        """Forget the chain and its waiting proposal."""
        super().reset()
        self.state = None

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """Decide about the proposal `sample` and make the next one; a proposal without a finite energy is rejected."""
        given = given_state(sample, energy, grad)
        is_last = self.advance() == len(self.timesteps) - 1
        state, acceptance_rate = given, None
        if self.state is not None:
            log_ratio = (self.state.energy - given.energy) / self.temperature
            log_ratio = log_ratio + proposal_log_ratio(
                self.noise, self.state.grad, given.grad, self.step_size, self.noise_std
            )
            accepted = accept(log_ratio, given.energy, log_uniform(given.energy.shape, sample.device, generator))
            state, acceptance_rate = self.state.select(accepted, given), accepted.float().mean()
        self.state = state
        prev_sample = state.sample
        if not is_last:
            self.noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev_sample = langevin_step(state.sample, state.grad, self.step_size, self.noise_std, self.noise)
        return EnergySamplerOutput(prev_sample, state.sample, energy, grad, acceptance_rate)
