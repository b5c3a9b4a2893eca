"""Annealed Langevin dynamics: the noise falls along the chain, and the temperature with it.

    x <- x - s^2/2 grad E(x) + n_k * noise,        n_k = n * start^(1 - k / (K - 1)),  k = 0 .. K-1

The step size stays, so update k samples towards ``exp(-E / T_k)``, ``T_k = (n_k/s)^2``, which falls geometrically from
``start^2 T`` to ``T = (n/s)^2``, and the drift is as stable as the plain chain's. Early updates cross between modes,
late ones settle in them; modes are not visited exactly by their weights. Source: simulated annealing, Kirkpatrick et
al. 1983; Song & Ermon 2019 anneal the noise of the data and the step size instead. Ours: one energy and one step size,
one update per temperature, the last at n.
"""

from __future__ import annotations

from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import langevin_step
from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.utils.validation import check_positive


def annealed_noise_std(noise_std: float, noise_scale_start: float, index: int, num_steps: int) -> float:
    """n_k of update k = `index`, from ``noise_scale_start * noise_std`` to `noise_std`; a single update has the latter.

    Args:
        noise_std: n, the last update's.
        noise_scale_start: The first one's, in units of n.
        index: k = 0 .. K-1.
        num_steps: K.
    """
    return noise_std * noise_scale_start ** (1.0 - index / (num_steps - 1)) if num_steps > 1 else noise_std


class AnnealedLangevinScheduler(EnergySampler):
    """Langevin dynamics whose noise falls geometrically.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0, of every update.
        noise_std: n > 0, the last update's; None = `step_size`, the chain that ends at ``exp(-E)``.
        noise_scale_start: The first update's noise in units of n, >= 1; 1 is the plain chain.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 30,
        step_size: float = 0.5,
        noise_std: float | None = None,
        noise_scale_start: float = 10.0,
    ) -> None:
        check_positive("noise_scale_start", noise_scale_start)
        if noise_scale_start < 1.0:
            raise ValueError(f"noise_scale_start must be >= 1, so that the noise falls, got {noise_scale_start!r}.")
        self.setup(num_train_timesteps, step_size, noise_std)

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """One Langevin update with this update's noise."""
        noise_std = annealed_noise_std(
            self.noise_std, self.config.noise_scale_start, self.advance(), self.num_inference_steps
        )
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        prev_sample = langevin_step(sample, grad, self.step_size, noise_std, noise)
        return EnergySamplerOutput(prev_sample, prev_sample, energy, grad)
