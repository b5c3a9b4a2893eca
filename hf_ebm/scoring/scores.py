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
    encoder         distance to 5 in-distribution images in the features of an image encoder: see
                    `hf_ebm.scoring.encoder`
    density_encoder (density - m_d) / s_d + (encoder - m_f) / s_f, with m and s of the distances between the reference
                    samples

Costs in passes of the energy (F = forward, B = backward) for T noise levels: energy, typicality, complexity 1 F;
gradient_norm 1 F + 1 B; multiscale T F, and one for the energy itself; density_fast T F; density T F + T B. Scores
with a reconstruction add the passes of `hf_ebm.scoring.statistics`, density_full those of all levels, and those with an
encoder a forward pass of it. A calibrated call costs as much: distances to the reference are cheap beside it.

Serra et al. subtract the bits L of a lossless compressor from -log2 p; an unnormalised energy has no such unit, so both
are standardised instead. `SCORE_WORDS` describes the scores in model cards and in the demo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_ebm.scoring.density import NearestNeighbours, check_enough, mean_distance
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
        reference: Statistics of the reference samples of the density scores, each (R,) or (R, T), and the bank of an
            encoder's features, ``encoder_features``, (R', D).
    """

    moments: Mapping[str, Moments] = field(default_factory=dict)
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    _neighbours: dict[tuple[str, ...], NearestNeighbours] = field(default_factory=dict, repr=False, compare=False)

    def neighbours(self, names: tuple[str, ...]) -> NearestNeighbours:
        """The reference in the space of the named statistics, of those that it has."""
        if names not in self._neighbours:
            there = [name for name in names if name in self.reference and name != FEATURES]
            self._neighbours[names] = NearestNeighbours.fit(self.reference, there)
        return self._neighbours[names]

    @functools.cached_property
    def bank(self) -> Tensor:
        """The features of the reference, shape (R', D), float64.

        Raises:
            ValueError: If there are too few, one is not finite, or all are the same.
        """
        bank = self.reference[FEATURES].double()
        check_enough(len(bank))
        if not torch.isfinite(bank).all():
            raise ValueError("reference must give finite features of image_encoder; check its weights and dtype.")
        if bool((bank == bank[:1]).all()):
            raise ValueError(
                "reference must give features that differ between images, got one for all; check "
                "image_encoder's weights."
            )
        return bank

    def distance_moments(self) -> dict[str, Moments]:
        """Moments of ``density`` and ``encoder`` by the distances of the reference samples to each other.

        They are of no calibration sample, so that a sum standardised by them has exact p-values.
        """
        points, bank = self.neighbours(DENSITY).points, self.bank
        some = bank[:: -(-len(bank) // MAX_LEFT_OUT)]
        return {
            "density": Moments.of(mean_distance(points, points, leave_out=1), "density"),
            "encoder": Moments.of(mean_distance(some, bank, leave_out=1), "encoder"),
        }


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


def encoder_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Mean distance to the nearest features of the reference, shape (N,)."""
    return mean_distance(statistics[FEATURES], fitted.bank)


def density_encoder_score(statistics: Statistics, fitted: Fitted) -> Tensor:
    """Standardised ``density`` plus standardised ``encoder``, shape (N,)."""
    density = fitted.moments["density"].standardise(fitted.neighbours(DENSITY).distance(statistics))
    return density + fitted.moments["encoder"].standardise(encoder_score(statistics, fitted))


FEATURES = "encoder_features"
MAX_LEFT_OUT = 2000  # features of the bank whose distances to the others are standardised by
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
        uses_reference: Whether it compares with reference samples.
    """

    function: Callable[[Statistics, Fitted], Tensor]
    statistics: tuple[str, ...]
    needs_fitting: bool = False
    uses_reference: bool = False

    @property
    def needs_reconstruction(self) -> bool:
        """Whether it needs what the model reconstructs with."""
        return not {*RECONSTRUCTIONS}.isdisjoint(self.statistics)

    @property
    def needs_encoder(self) -> bool:
        """Whether it needs an image encoder."""
        return FEATURES in self.statistics


SCORES: dict[str, Score] = {
    "energy": Score(energy_score, ("energy",)),
    "gradient_norm": Score(gradient_norm_score, ("gradient_norm",)),
    "multiscale": Score(multiscale_score, ("energies",), needs_fitting=True),
    "typicality": Score(typicality_score, ("energy",), needs_fitting=True),
    "complexity": Score(complexity_score, ("energy", "compressed_size"), needs_fitting=True),
    "reconstruction": Score(reconstruction_score, ("reconstruction_error",)),
    "combined": Score(combined_score, ("energy", "reconstruction_error"), needs_fitting=True),
    "density_fast": Score(density_score(FAST), FAST, needs_fitting=True, uses_reference=True),
    "density": Score(density_score(DENSITY), DENSITY, needs_fitting=True, uses_reference=True),
    "density_full": Score(density_score(FULL), FULL, needs_fitting=True, uses_reference=True),
    "encoder": Score(encoder_score, (FEATURES,), needs_fitting=True, uses_reference=True),
    "density_encoder": Score(density_encoder_score, (*DENSITY, FEATURES), needs_fitting=True, uses_reference=True),
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
    "encoder": "distance to in-distribution images in an image encoder's features",
    "density_encoder": "density and encoder, standardised and summed",
}
