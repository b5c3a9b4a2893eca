"""The reach of E(x, 0): what the benchmark measures has a closed form."""

import importlib
import sys
from pathlib import Path

import torch

from hf_ebm.diffusion import DiffusionCoefficients

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_how_much_better_an_image_explains_its_own_noise(monkeypatch):
    """In the mean ``(1 - beta) ||x - x'||^2 / (2 beta)`` nats, with the standard deviation of a normal of that mean."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    energy_reach = importlib.import_module("energy_reach")
    q = DiffusionCoefficients.vp(4)
    x, other = torch.full((20_000, 1, 2, 2), 0.3), torch.full((20_000, 1, 2, 2), -0.2)
    found = energy_reach.explained_better(x, other, q, torch.Generator().manual_seed(0))
    beta = q.betas[1].item()
    expected = (1 - beta) * 4 * 0.5**2 / (2 * beta)
    assert abs(found.mean().item() - expected) < 5 * (2 * expected) ** 0.5 / 20_000**0.5
    assert abs(found.var().item() / (2 * expected) - 1) < 0.05


def test_the_nearest_other_is_not_the_image_itself(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    energy_reach = importlib.import_module("energy_reach")
    x = torch.tensor([0.0, 1.0, 1.5, 9.0])[:, None]
    assert energy_reach.nearest_other(x).flatten().tolist() == [1.0, 1.5, 1.0, 1.5]
