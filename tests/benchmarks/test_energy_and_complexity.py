"""An energy beside the size of a PNG: on data whose answers are known by counting."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_an_energy_that_is_the_size(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    compare = importlib.import_module("energy_and_complexity").compare
    size = torch.tensor([100.0, 200.0, 300.0, 400.0])
    inside = {"energy": size.log(), "compressed_size": size}
    outside = {"energy": torch.tensor([0.0, 9.0]), "compressed_size": torch.tensor([150.0, 250.0])}
    found = compare(inside, outside)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["median_bits"] == {"id": 200.0, "ood": 150.0}  # torch's: the lower of the two in the middle
    assert found["auroc"]["energy"] == pytest.approx(0.5)  # one odd energy below all, one above all
    assert found["auroc"]["a large file is odd"] == pytest.approx(3 / 8)  # 150 is above 1 of 4, 250 above 2
    swapped = compare({**inside, "energy": size[[3, 1, 2, 0]]}, outside)
    assert swapped["rank_correlation"] == pytest.approx(-0.8)  # 1 - 6 * (9 + 9) / (4 * 15)
