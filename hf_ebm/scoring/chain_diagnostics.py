"""How well a set of chains has mixed: the effective sample size and R-hat, computed by arviz.

The effective sample size is the number of independent draws that would give the mean with the chains' precision; R-hat
compares the spread between chains with that within them, 1 when all have seen the same distribution. Source: Vehtari et
al. 2021, the rank-normalised forms, whose rule of thumb is R-hat < 1.01.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_ebm.extras import how_to_install


def effective_sample_size(chains: Tensor) -> Tensor:
    """Effective number of independent draws among all ``num_chains * num_draws``, by dimension, shape (D,), float64.

    Args:
        chains: Draws in the order of the chain, shape (num_chains, num_draws, D), at least 4 draws.

    Raises:
        ValueError: If the shape or a value cannot be used, or arviz is not installed.
    """
    return _by_dimension(_arviz().ess, chains)


def r_hat(chains: Tensor) -> Tensor:
    """R-hat of each dimension, shape (D,), float64: above about 1.01 the chains have not mixed.

    Args:
        chains: Draws in the order of the chain, shape (num_chains, num_draws, D), at least 2 chains and 4 draws.

    Raises:
        ValueError: If the shape or a value cannot be used, or arviz is not installed.
    """
    if chains.dim() == 3 and chains.shape[0] < 2:
        raise ValueError(f"chains must hold at least 2 chains to compare, got {chains.shape[0]}.")
    return _by_dimension(_arviz().rhat, chains)


def _by_dimension(statistic: Any, chains: Tensor) -> Tensor:
    """`statistic` of each dimension's (num_chains, num_draws) array."""
    if chains.dim() != 3 or chains.shape[0] < 1 or chains.shape[1] < 4 or chains.shape[2] < 1:
        raise ValueError(
            "chains must have the shape (num_chains, num_draws, D) with at least 4 draws, got "
            f"{tuple(chains.shape)}; flatten images first."
        )
    if not torch.isfinite(chains).all():
        raise ValueError("chains holds values that are not finite: a chain diverged; use a smaller step_size.")
    arrays = chains.detach().double().cpu().numpy()
    return torch.tensor([float(statistic(arrays[:, :, d])) for d in range(arrays.shape[2])], dtype=torch.float64)


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise ValueError(f"chain diagnostics need arviz: {how_to_install('diagnostics')}.") from error
    return arviz
