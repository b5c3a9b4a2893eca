"""Preconditioned Langevin dynamics (pSGLD): each coordinate has its own step, from the gradients it has seen.

    V <- alpha V + (1 - alpha) grad^2,        G = 1 / (eps + sqrt(V)),        all by coordinate
    x <- x - s^2/2 G grad E(x) + n sqrt(G) * noise

so that coordinates in which the energy is steep move less and flat ones more, at the one temperature ``(n/s)^2``.
Source: Eq. 4 and 5, Li et al., AAAI 2016. Its term Gamma, the derivative of G, is left out, as there in practice: it
widens the chain, by 10 % in the variance on the tests' Gaussian at alpha = 0.99, over the plain chain's bias.

Ours: V is kept per sample, which leaves the chains of a batch independent; it is averaged over the steps so far as
Adam's is (``V / (1 - alpha^(k+1))``, so the first is the first grad^2); eps is a share of the root mean square of
sqrt(V), and G is divided by its mean over the coordinates of the sample. So G does not change when the energy is
scaled, s and n keep the plain chain's meaning, and one coordinate is the plain chain. Coordinates on which the energy
has never depended, such as the known pixels in inpainting, count in neither mean.
"""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin  # noqa: F401 (diffusers looks for it here)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import langevin_step
from hf_ebm.schedulers.energy_sampler import EnergySampler, EnergySamplerOutput, Generators
from hf_ebm.utils.validation import check_positive, is_number


def preconditioner(mean_square: Tensor, eps: float) -> Tensor:
    """``G = 1 / (eps * rms + sqrt(V))`` divided by its mean over the sample's coordinates, shape of `mean_square`.

    The means are over coordinates with V > 0.

    Args:
        mean_square: V >= 0, the averaged squared gradient, shape (B, ...).
        eps: Damping > 0 in units of ``rms = sqrt(mean V)``, the sample's typical gradient. Equation 4 has it in the
            gradient's unit.
    """
    dims = tuple(range(1, mean_square.dim()))
    counted = mean_square > 0
    counted = counted | ~counted.any(dim=dims, keepdim=True)  # a flat energy, V = 0 everywhere, has G = 1
    number = counted.sum(dim=dims, keepdim=True)
    rms = (mean_square.sum(dim=dims, keepdim=True) / number).sqrt()
    scale = rms.clamp_min(torch.finfo(rms.dtype).tiny)
    g = 1.0 / (eps + mean_square.sqrt() / scale)
    return g * number / (g * counted).sum(dim=dims, keepdim=True)


class PreconditionedLangevinScheduler(EnergySampler):
    """Langevin dynamics with RMSprop's preconditioner.

    Args:
        num_train_timesteps: Updates of the chain the model was trained with, >= 0; the default number when sampling.
        step_size: s > 0, a coordinate's where G = 1.
        noise_std: n > 0, likewise; None = `step_size`, the chain of ``exp(-E)``.
        alpha: Memory of V, 0 <= alpha < 1.
        eps: Damping > 0: how even the steps are made, as a share of the typical gradient.
    """

    mean_square: Tensor | None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 30,
        step_size: float = 0.5,
        noise_std: float | None = None,
        alpha: float = 0.99,
        eps: float = 0.1,
    ) -> None:
        if not is_number(alpha) or not 0.0 <= alpha < 1.0:
            raise ValueError(f"alpha must be in [0, 1), got {alpha!r}.")
        check_positive("eps", eps)
        self.setup(num_train_timesteps, step_size, noise_std)

    def reset(self) -> None:
        """Forget the chain and the gradients it has seen."""
        super().reset()
        self.mean_square = None

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """One Langevin update with the preconditioner that includes this gradient."""
        alpha, index = self.config.alpha, self.advance()
        square = (1.0 - alpha) * grad**2
        self.mean_square = square if self.mean_square is None else alpha * self.mean_square + square
        root_g = preconditioner(self.mean_square / (1.0 - alpha ** (index + 1)), self.config.eps).sqrt()
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        prev_sample = langevin_step(sample, grad, self.step_size * root_g, self.noise_std * root_g, noise)
        return EnergySamplerOutput(prev_sample, prev_sample, energy, grad)
