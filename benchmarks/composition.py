"""Compositions of two ring energies in 2-D, sampled by MALA: each panel shows the density and samples.

    python benchmarks/composition.py docs/composition.png

Panels: each ring, their product ("and"), their mixture ("or"), and one but not the other, within bounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_ebm import ComposedEnergyModel, MALAScheduler
from hf_ebm.evaluation.plots import new_figure
from hf_ebm.langevin import run_chain
from hf_ebm.models.energy import EnergyModel, EnergyOutput

LIMIT = 2.2  # the panels show [-LIMIT, LIMIT]^2
NUM_SAMPLES, NUM_STEPS, STEP_SIZE = 500, 1000, 0.15


class RingConfig(PreTrainedConfig):
    """Centre on the x axis, radius and width of a ring."""

    model_type = "benchmark_ring"
    centre: float = 0.0
    radius: float = 1.0
    width: float = 0.1


class Ring(EnergyModel):
    """``E(x) = (|x - centre| - radius)^2 / (2 width^2)``, x of shape (B, 2)."""

    config_class = RingConfig
    sample_shape = (2,)

    def __init__(self, config: RingConfig) -> None:
        super().__init__(config)
        self.centre = nn.Parameter(torch.tensor([config.centre, 0.0]))

    def forward(self, pixel_values: Tensor, timestep: Any = None, **_: Any) -> EnergyOutput:
        """The energy, shape (B,)."""
        config = self.config
        distance = (pixel_values - self.centre).norm(dim=1)
        return EnergyOutput(energy=(distance - config.radius).square() / (2 * config.width**2))


def sample(energy: Any, seed: int = 0) -> Tensor:
    """Ends of MALA chains that start uniformly in the square, shape (NUM_SAMPLES, 2)."""
    generator = torch.Generator().manual_seed(seed)
    start = (2 * torch.rand(NUM_SAMPLES, 2, generator=generator) - 1) * LIMIT
    scheduler = MALAScheduler(NUM_STEPS, STEP_SIZE)
    return run_chain(scheduler, lambda x: energy(x).energy, start, NUM_STEPS, generator).sample


def main(path: Path) -> None:
    """Draw the figure."""
    left, right = Ring(RingConfig(centre=-0.6)), Ring(RingConfig(centre=0.6))
    panels = {
        "a": left,
        "b": right,
        "a and b": ComposedEnergyModel([left, right]),
        "a or b": ComposedEnergyModel([left, right], operation="or"),
        "a and not b": ComposedEnergyModel([left, right], weights=[1.0, -0.02], bounds=(-LIMIT, LIMIT)),
    }
    figure = new_figure(3.0 * len(panels), 3.3)
    axes = figure.subplots(1, len(panels))
    line = torch.linspace(-LIMIT, LIMIT, 300)
    grid = torch.cartesian_prod(line, line).flip(1)  # rows are y
    for axis, (name, energy) in zip(axes, panels.items(), strict=True):
        with torch.no_grad():
            density = (-energy(grid).energy).reshape(300, 300)
        shown = (density - density.max()).exp().numpy()
        axis.imshow(shown, origin="lower", extent=(-LIMIT, LIMIT, -LIMIT, LIMIT), cmap="magma")
        axis.plot(*sample(energy).numpy().T, ".", color="#7fd4ff", markersize=1.5)
        axis.set(title=name, xticks=[], yticks=[], xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "composition.png"))
