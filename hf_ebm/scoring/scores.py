"""OOD scores of a sample, larger = more out-of-distribution, computed from statistics that any energy model gives.

A score is one statistic of `hf_ebm.scoring.statistics`, or several standardised by the mean m and standard deviation s
that they have on in-distribution data (`Moments`):

    energy          E(x, 0)
    gradient_norm   ||grad_x E(x, 0)||                                Grathwohl et al., ICLR 2020 (there its negative)
    multiscale      mean_t (E(x_t, t) - m_t) / s_t                    ours
    typicality      |E(x, 0) - m|                                     Nalisnick et al. 2019, for one sample
    complexity      (E(x, 0) - m) / s - (L(x) - m_L) / s_L            after Serra et al., ICLR 2020
    reconstruction  mean squared error of the model's reconstruction
    combined        (E(x, 0) - m) / s + (error - m_e) / s_e           ours

Serra et al. subtract the bits L of a lossless compressor from -log2 p; an unnormalised energy has no such unit, so both
are standardised instead. `SCORE_WORDS` describes the scores in model cards and in the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Statistics = Mapping[str, Tensor]  # of N samples by name, each (N,) or (N, T)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a statistic on in-distribution data, one number each, or one per noise level."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, values: Tensor, name: str = "statistic") -> Moments:
        """Compute them for the statistic `name`, shape (N,) or (N, T).

        Raises:
            ValueError: If there are fewer than two samples, a value is not finite, or all are equal.
        """
        values = values.double().reshape(len(values), -1)
        if len(values) < 2:
            raise ValueError(f"statistics need at least 2 in-distribution samples, got {len(values)}.")
        std = values.std(dim=0)
        if not torch.isfinite(values).all() or not (std > 0).all():
            raise ValueError(f"in-distribution samples must give finite values of {name} that are not all equal.")
        return cls(values.mean(dim=0).tolist(), std.tolist())

    def standardise(self, values: Tensor) -> Tensor:
        """``(values - mean) / std``, shape (N,) or (N, T)."""
        mean, std = (torch.tensor(v, dtype=torch.float64).squeeze() for v in (self.mean, self.std))
        return (values.double() - mean) / std


def energy_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """``E(x, 0)``, shape (N,)."""
    return statistics["energy"].double()


def gradient_norm_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """``||grad_x E(x, 0)||``, shape (N,)."""
    return statistics["gradient_norm"].double()


def reconstruction_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """Mean squared error per pixel of the revised reconstruction, shape (N,)."""
    return statistics["reconstruction_error"].double()


def multiscale_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """Mean over t of the standardised ``E(x_t, t)``, shape (N,)."""
    return moments["energies"].standardise(statistics["energies"]).mean(dim=1)


def typicality_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """Distance of the energy from its in-distribution mean, shape (N,): too low is atypical as well."""
    return (statistics["energy"].double() - moments["energy"].mean[0]).abs()


def complexity_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """Standardised energy minus standardised compressed size, shape (N,)."""
    sizes = moments["compressed_size"].standardise(statistics["compressed_size"])
    return moments["energy"].standardise(statistics["energy"]) - sizes


def combined_score(statistics: Statistics, moments: Mapping[str, Moments]) -> Tensor:
    """Standardised energy plus standardised reconstruction error, shape (N,)."""
    errors = moments["reconstruction_error"].standardise(statistics["reconstruction_error"])
    return moments["energy"].standardise(statistics["energy"]) + errors


@dataclass(frozen=True)
class Score:
    """A score and its components.

    Attributes:
        function: ``(statistics, moments) -> scores``, shape (N,), float64.
        statistics: Names of the statistics it is computed from.
        needs_fitting: Whether it can be computed only after a calibration.
    """

    function: Callable[[Statistics, Mapping[str, Moments]], Tensor]
    statistics: tuple[str, ...]
    needs_fitting: bool = False


SCORES: dict[str, Score] = {
    "energy": Score(energy_score, ("energy",)),
    "gradient_norm": Score(gradient_norm_score, ("gradient_norm",)),
    "multiscale": Score(multiscale_score, ("energies",), needs_fitting=True),
    "typicality": Score(typicality_score, ("energy",), needs_fitting=True),
    "complexity": Score(complexity_score, ("energy", "compressed_size"), needs_fitting=True),
    "reconstruction": Score(reconstruction_score, ("reconstruction_error",)),
    "combined": Score(combined_score, ("energy", "reconstruction_error"), needs_fitting=True),
}


SCORE_WORDS = {
    "energy": "energy of the image",
    "gradient_norm": "gradient norm of the energy at the image",
    "multiscale": "energies at all noise levels, standardised",
    "typicality": "distance from the typical energy, two-sided",
    "complexity": "energy corrected for the compressed size",
    "reconstruction": "reconstruction error",
    "combined": "energy and reconstruction error, standardised and summed",
}
