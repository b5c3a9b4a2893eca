"""Unadjusted Langevin dynamics as a scheduler: ``x <- x - s^2/2 grad E(x) + n * noise``.

Step size s and noise n are set apart, as the published EBMs do: n = s samples ``exp(-E)`` as s -> 0, a smaller n
samples ``exp(-E / temperature)``, ``temperature = (n/s)^2``. Both may decay along the chain. With a constant step the
chain is biased, on a quadratic energy ``a x^2 / 2`` to the variance ``n^2 / (1 - (1 - s^2 a / 2)^2)``. Source: Eq. 3,
Cui & Han 2023; Welling & Teh 2011.
"""

from __future__ import annotations

from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import langevin_step
from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.utils.validation import check_not_negative


class LangevinScheduler(EnergySampler):
    """Unadjusted Langevin dynamics.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0.
        noise_std: n > 0; None = `step_size`, the chain of ``exp(-E)``.
        step_size_decay: Exponent gamma >= 0: the k-th update, k = 0, 1, ..., has step size ``s (1 + k)^-gamma``.
        noise_decay: The same for the noise.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 30,
        step_size: float = 0.5,
        noise_std: float | None = None,
        step_size_decay: float = 0.0,
        noise_decay: float = 0.0,
    ) -> None:
        for name, value in (("step_size_decay", step_size_decay), ("noise_decay", noise_decay)):
            check_not_negative(name, value)
        self.setup(num_train_timesteps, step_size, noise_std)

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """One Langevin update."""
        k = 1.0 + self.advance()
        step_size = self.step_size * k**-self.config.step_size_decay
        noise_std = self.noise_std * k**-self.config.noise_decay
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        prev_sample = langevin_step(sample, grad, step_size, noise_std, noise)
        return EnergySamplerOutput(prev_sample, prev_sample, energy, grad)
