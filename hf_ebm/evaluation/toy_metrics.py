"""Metrics of samples and densities on the 2-D data sets.

For the 25 Gaussians: how well samples and density match the modes. For the pinwheel and the swiss roll,
which have no separate modes: the shares of samples, data and density that are near each other. A
point is near a set if it lies within r of one of 10,000 of the set's points, where r is such that
99 % of other data points are near the data. (After precision and recall of Sajjadi et al. 2018 and
Kynkäänniemi et al. 2019, with one radius for all points and the data's own coordinates as features.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.data.toy import TOY_MODE_SPACING, TOY_MODE_STD, sample_toy
from hf_ebm.evaluation.plots import density_on_grid

GRID_LIMIT = 2.2  # the modes reach 1.41; what the density does outside them counts, too
GRID_RESOLUTION = 512
PEAK_THRESHOLD = 0.05  # a peak is a connected region above this share of the highest density


def mode_centres() -> Tensor:
    """Centres of the 25 modes, shape (25, 2)."""
    line = torch.arange(-2.0, 3.0) * TOY_MODE_SPACING
    return torch.cartesian_prod(line, line)


def sample_metrics(samples: Tensor) -> dict[str, float]:
    """Share of the samples (N, 2) within 4 sigma of a mode, number of modes hit, smallest over largest mode.

    A mode is hit if at least a tenth of its fair share, N / 250, lies within 4 sigma of it.
    """
    distance, nearest = torch.cdist(samples.float(), mode_centres()).min(dim=1)
    inside = distance < 4.0 * TOY_MODE_STD
    counts = torch.bincount(nearest[inside], minlength=25)
    return {
        "within_4_sigma": inside.float().mean().item(),
        "num_modes": int((counts >= len(samples) / 250).sum()),
        "balance": (counts.min() / counts.max().clamp(min=1)).item(),
    }


def grid_points() -> np.ndarray:
    """The points of the grid on which densities are evaluated, shape (GRID_RESOLUTION, GRID_RESOLUTION, 2)."""
    line = np.linspace(-GRID_LIMIT, GRID_LIMIT, GRID_RESOLUTION)
    return np.stack(np.meshgrid(line, line), axis=-1)


def density_metrics(energy_model: Any) -> dict[str, float]:
    """Peaks of ``exp(-E(x, 0))`` on a grid, and how much of it lies at the modes.

    Returns:
        ``num_peaks`` (connected regions above 5 % of the maximum), ``modes_with_a_peak`` and ``mass_at_modes`` (share
        of the density within 4 sigma of a mode, sigma with the noise of the cleanest state, 0.0206).
    """
    from scipy import ndimage

    density = density_on_grid(energy_model, GRID_LIMIT, GRID_RESOLUTION)
    regions, num_peaks = ndimage.label(density > PEAK_THRESHOLD * density.max())
    points = grid_points().reshape(-1, 1, 2)
    distance = np.linalg.norm(points - mode_centres().numpy()[None], axis=-1).reshape(*density.shape, 25)
    near = distance < 4.0 * np.hypot(TOY_MODE_STD, 0.0105)
    at_modes = sum(bool((regions[near[..., mode]] > 0).any()) for mode in range(25))
    return {
        "num_peaks": int(num_peaks),
        "modes_with_a_peak": at_modes,
        "mass_at_modes": float(density[near.any(axis=-1)].sum()),
    }


NUM_POINTS = 10_000
SHARE_WITHIN_REACH = 0.99


def near_data_metrics(samples: Tensor, energy_model: Any, name: str) -> dict[str, float]:
    """Shares of the samples and of ``exp(-E(x, 0))`` that are near the data, and of the data near a sample.

    Of the set `name`, one of `hf_ebm.data.toy.TOY_NAMES`, and `samples` (N, 2): as many as `NUM_POINTS`, to compare
    shares with the data's own, which is 0.99. ``mass_near_data`` is the share of the density over [-2.2, 2.2]^2.
    """
    from scipy.spatial import cKDTree

    generator = torch.Generator().manual_seed(0)
    data, others = (sample_toy(name, NUM_POINTS, generator).numpy() for _ in range(2))
    tree = cKDTree(data)
    reach = float(np.quantile(tree.query(others)[0], SHARE_WITHIN_REACH))
    generated = samples.float().cpu().numpy()
    density = density_on_grid(energy_model, GRID_LIMIT, GRID_RESOLUTION)
    return {
        "reach": reach,
        "samples_near_data": float((tree.query(generated)[0] <= reach).mean()),
        "data_near_samples": float((cKDTree(generated).query(others)[0] <= reach).mean()),
        "mass_near_data": float(density[tree.query(grid_points())[0] <= reach].sum()),
    }
