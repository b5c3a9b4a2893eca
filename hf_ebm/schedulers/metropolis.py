"""The Metropolis rule: a proposal is taken with probability ``min(1, exp(log_ratio))``, else the state is kept.

With ``log_ratio`` the log of ``p(x') q(x | x') / (p(x) q(x' | x))`` the chain leaves p exactly invariant, whatever the
step size. Source: Metropolis et al. 1953; Hastings 1970.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass(frozen=True)
class ChainState:
    """A state with what was computed at it, so that no gradient is taken twice."""

    sample: Tensor  # x, shape (B, ...)
    energy: Tensor  # E(x), shape (B,)
    grad: Tensor  # grad E(x), shape of `sample`

    def select(self, mask: Tensor, other: ChainState) -> ChainState:
        """`other` where `mask`, shape (B,), is true, this state elsewhere."""
        wide = mask.reshape(-1, *[1] * (self.sample.dim() - 1))
        return ChainState(
            torch.where(wide, other.sample, self.sample),
            torch.where(mask, other.energy, self.energy),
            torch.where(wide, other.grad, self.grad),
        )


def given_state(sample: Tensor, energy: Tensor | None, grad: Tensor) -> ChainState:
    """The arguments of a ``step`` as a `ChainState`; the energy must be there, and the shapes fit."""
    if energy is None:
        raise ValueError(
            "this scheduler accepts or rejects by the energy: pass energy=E(sample), shape (B,), to step "
            "(hf_ebm.langevin.energy_and_grad returns it with the gradient)."
        )
    if energy.shape != sample.shape[:1]:
        raise ValueError(f"energy must have shape ({sample.shape[0]},), one per sample, got {tuple(energy.shape)}.")
    if grad.shape != sample.shape:
        raise ValueError(f"model_output must have sample's shape {tuple(sample.shape)}, got {tuple(grad.shape)}.")
    return ChainState(sample, energy, grad)


def log_uniform(
    shape: tuple[int, ...] | torch.Size,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """``log u``, u uniform on (0, 1), as ``log Phi(z)`` of a normal z: `randn_tensor` takes a generator per sample."""
    return torch.special.log_ndtr(randn_tensor(shape, generator=generator, device=device, dtype=torch.float32))


def accept(log_ratio: Tensor, energy: Tensor, log_u: Tensor) -> Tensor:
    """Which proposals are taken, shape (B,): ``log u < log_ratio``; one whose energy is not finite never is.

    Args:
        log_ratio: Log of the acceptance ratio, shape (B,); NaN (a gradient that overflowed) rejects.
        energy: Energy at the proposal, shape (B,).
        log_u: Log of a uniform number, shape (B,).
    """
    return (log_u < log_ratio) & torch.isfinite(energy)


def half_squared_norm(x: Tensor) -> Tensor:
    """``||x||^2 / 2`` of each sample, minus the log density of a standard normal up to a constant: (B, ...) -> (B,)."""
    return 0.5 * (x**2).flatten(1).sum(dim=1)
