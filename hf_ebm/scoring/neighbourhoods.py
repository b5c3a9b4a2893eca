"""Precision, recall, density and coverage: do samples lie among the data, and data among the samples?

A point's ball reaches to its k-th nearest neighbour in its own set. With N real points X, M generated points Y:

    precision   share of Y in at least one ball of X             Kynkaanniemi et al., NeurIPS 2019
    recall      share of X in at least one ball of Y
    density     (1 / kM) #{(x, y): y in the ball of x}            Naeem et al., ICML 2020, Eq. 3; may exceed 1
    coverage    share of X whose ball holds at least one of Y     Naeem et al., ICML 2020, Eq. 4

Balls are open, as in the code of Naeem et al.: a set compared with itself gets 1 in all four. Recall and coverage grow
with M: compare figures of equal N and M only.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_NEIGHBOURS = 5
ROWS_AT_A_TIME = 1024  # rows of the distance matrix in memory


def ball_radii(points: Tensor, num_neighbours: int) -> Tensor:
    """Distance of each point (N, D) to its k-th nearest other point, shape (N,)."""
    radii = []
    for start in range(0, len(points), ROWS_AT_A_TIME):
        distances = torch.cdist(points[start : start + ROWS_AT_A_TIME], points)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf  # itself
        radii.append(distances.kthvalue(num_neighbours, dim=1).values)
    return torch.cat(radii)


def neighbourhood_metrics(real: Tensor, generated: Tensor, num_neighbours: int = NUM_NEIGHBOURS) -> dict[str, float]:
    """``{"precision", "recall", "density", "coverage"}`` of two sets of features.

    Args:
        real: Shape (N, D).
        generated: Shape (M, D).
        num_neighbours: k.

    Raises:
        ValueError: If a set has not more than k points.
    """
    for name, points in (("real", real), ("generated", generated)):
        if len(points) <= num_neighbours:
            raise ValueError(
                f"{name} must hold more than num_neighbours={num_neighbours} images, for its balls, got {len(points)}."
            )
    real, generated = real.double(), generated.double()
    radii_real, radii_generated = ball_radii(real, num_neighbours), ball_radii(generated, num_neighbours)
    balls_around = torch.zeros(len(generated), dtype=torch.long)  # of each generated point, how many real balls hold it
    recalled, covered = [], []
    for start in range(0, len(real), ROWS_AT_A_TIME):
        distances = torch.cdist(real[start : start + ROWS_AT_A_TIME], generated)
        inside = distances < radii_real[start : start + ROWS_AT_A_TIME, None]
        balls_around += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((distances < radii_generated).any(dim=1))
    return {
        "precision": (balls_around > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls_around.double().mean().item() / num_neighbours,
        "coverage": torch.cat(covered).double().mean().item(),
    }
