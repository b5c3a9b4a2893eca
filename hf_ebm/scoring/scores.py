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
    density         distance to 5 in-distribution samples by E(x, t) and ||grad_x E(x, t)|| of all t, and L(x);
                    density_fast without the gradients; density_full also with the reconstruction errors of all t,
                    and the certainty of p(y | x) where the energy has classes: see `hf_ebm.scoring.density`

Costs in passes of the energy (F = forward, B = backward) for T noise levels: energy, typicality, complexity 1 F;
gradient_norm 1 F + 1 B; multiscale T F, and one for the energy itself; density_fast T F; density T F + T B. Scores
with a reconstruction add the passes of `hf_ebm.scoring.statistics`, density_full those of all levels.

Serra et al. subtract the bits L of a lossless compressor from -log2 p; an unnormalised energy has no such unit, so both
are standardised instead. `SCORE_WORDS` describes the scores in model cards and in the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_ebm.scoring.density import NearestNeighbours
from hf_ebm.scoring.statistics import CLASS_STATISTICS, RECONSTRUCTIONS

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


@dataclass(frozen=True)
class Fitted:
    """What scores know of in-distribution data.

    Attributes:
        moments: Of each statistic that a score standardises.
        reference: Statistics of the reference samples of the density scores, each (R,) or (R, T).
    """

    moments: Mapping[str, Moments] = field(default_factory=dict)
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    _neighbours: dict[tuple[str, ...], NearestNeighbours] = field(default_factory=dict, repr=False, compare=False)

    def neighbours(self, names: tuple[str, ...]) -> NearestNeighbours:
        """The reference in the space of the named statistics, of those that it has."""
        if names not in self._neighbours:
            there = [name for name in names if name in self.reference]
            self._neighbours[names] = NearestNeighbours.fit(self.reference, there)
        return self._neighbours[names]


def energy_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """``E(x, 0)``, shape (N,)."""
    return statistics["energy"].double()


def gradient_norm_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """``||grad_x E(x, 0)||``, shape (N,)."""
    return statistics["gradient_norm"].double()


def reconstruction_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Mean squared error per pixel of the revised reconstruction, shape (N,)."""
    return statistics["reconstruction_error"].double()


def multiscale_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Mean over t of the standardised ``E(x_t, t)``, shape (N,)."""
    return fitted.moments["energies"].standardise(statistics["energies"]).mean(dim=1)


def typicality_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Distance of the energy from its in-distribution mean, shape (N,): too low is atypical as well."""
    return (statistics["energy"].double() - fitted.moments["energy"].mean[0]).abs()


def complexity_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Standardised energy minus standardised compressed size, shape (N,)."""
    sizes = fitted.moments["compressed_size"].standardise(statistics["compressed_size"])
    return fitted.moments["energy"].standardise(statistics["energy"]) - sizes


def combined_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Standardised energy plus standardised reconstruction error, shape (N,)."""
    errors = fitted.moments["reconstruction_error"].standardise(statistics["reconstruction_error"])
    return fitted.moments["energy"].standardise(statistics["energy"]) + errors


FAST = ("clean_energies", "compressed_size")
DENSITY = ("clean_energies", "gradient_norms", "compressed_size")
FULL = (*DENSITY, "reconstruction_errors", *CLASS_STATISTICS)
OPTIONAL = ("compressed_size", *CLASS_STATISTICS)  # of images, and of energies with classes


def density_score(names: tuple[str, ...]) -> Callable[[Statistics, Fitted], Tensor]:
    """The mean distance to the nearest reference samples by the named statistics, see `hf_ebm.scoring.density`."""
    return lambda statistics, fitted: fitted.neighbours(names).distance(statistics)


@dataclass(frozen=True)
class Score:
    """A score and its components.

    Attributes:
        function: ``(statistics, fitted) -> scores``, shape (N,), float64.
        statistics: Names of the statistics it is computed from; a density score leaves out the `OPTIONAL` ones that a
            model does not have.
        needs_fitting: Whether it can be computed only after a calibration.
        is_density: Whether it compares with reference samples.
    """

    function: Callable[[Statistics, Fitted], Tensor]
    statistics: tuple[str, ...]
    needs_fitting: bool = False
    is_density: bool = False

    @property
    def needs_reconstruction(self) -> bool:
        """Whether it needs what the model reconstructs with."""
        return not {*RECONSTRUCTIONS}.isdisjoint(self.statistics)


SCORES: dict[str, Score] = {
    "energy": Score(energy_score, ("energy",)),
    "gradient_norm": Score(gradient_norm_score, ("gradient_norm",)),
    "multiscale": Score(multiscale_score, ("energies",), needs_fitting=True),
    "typicality": Score(typicality_score, ("energy",), needs_fitting=True),
    "complexity": Score(complexity_score, ("energy", "compressed_size"), needs_fitting=True),
    "reconstruction": Score(reconstruction_score, ("reconstruction_error",)),
    "combined": Score(combined_score, ("energy", "reconstruction_error"), needs_fitting=True),
    "density_fast": Score(density_score(FAST), FAST, needs_fitting=True, is_density=True),
    "density": Score(density_score(DENSITY), DENSITY, needs_fitting=True, is_density=True),
    "density_full": Score(density_score(FULL), FULL, needs_fitting=True, is_density=True),
}


SCORE_WORDS = {
    "energy": "energy of the image",
    "gradient_norm": "gradient norm of the energy at the image",
    "multiscale": "energies at all noise levels, standardised",
    "typicality": "distance from the typical energy, two-sided",
    "complexity": "energy corrected for the compressed size",
    "reconstruction": "reconstruction error",
    "combined": "energy and reconstruction error, standardised and summed",
    "density_fast": "distance to in-distribution images by energies of all noise levels and compressed size, two-sided",
    "density": "distance to in-distribution images by energies, gradient norms and compressed size, two-sided",
    "density_full": "as density, with the reconstruction errors of all noise levels and the certainty of p(y | x)",
}
