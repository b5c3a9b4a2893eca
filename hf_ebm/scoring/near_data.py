"""How well samples and density of a 2-D set without separate modes, the pinwheel or the swiss roll, follow the data.

Near is what lies within the reach r of one of 10,000 points of data; r is such that 99 % of other points of data are.
(After precision and recall of Sajjadi et al. 2018 and Kynkäänniemi et al. 2019, with one radius for
all points and the data's own coordinates as features.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_ebm.scoring.modes import GRID_LIMIT, GRID_RESOLUTION, grid_points
from hf_ebm.scoring.plots import density_on_grid
from hf_ebm.toy_data import sample_toy

NUM_POINTS = 10_000
SHARE_WITHIN_REACH = 0.99


def near_data_metrics(samples: Tensor, energy_model: Any, name: str) -> dict[str, float]:
    """What of the samples and of ``exp(-E(x, 0))`` is near the data, and what of the data is near a sample.

    Args:
        samples: Shape (N, 2); as many as `NUM_POINTS` to compare shares with the data's own, which is 0.99.
        energy_model: ``energy_model(x, t) -> output with .energy``.
        name: Of the set, one of `hf_ebm.toy_data.TOY_NAMES`.

    Returns:
        ``reach`` r; ``samples_near_data`` and ``data_near_samples``, shares of points; ``mass_near_data``, the share of
        the density on a grid over [-2.2, 2.2]^2.
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
