"""The curvature of quadratic energies and of a run's checkpoints, against the limit of the step."""

import dataclasses
import json
import sys

import pytest
import torch
from small_runs import Script
from torch.testing import assert_close

from hf_ebm.training.config import dump_settings


@pytest.fixture
def benchmark(import_benchmark):
    return import_benchmark("chain_stability")


def test_the_largest_curvature_of_a_quadratic_energy(benchmark):
    """E(x) = c/2 sum_i a_i x_i^2, c another one for each sample; a negative curvature counts by its size."""
    a, scale = torch.tensor([0.3, -2.0, 0.7, 0.1]), torch.tensor([1.0, 0.25])[:, None]
    random = torch.Generator().manual_seed(0)
    found = benchmark.largest_curvature(lambda x: scale * a * x, torch.randn(2, 4), 0.02, 30, random)
    assert_close(found, torch.tensor([2.0, 0.5]), rtol=1e-3, atol=0)


def test_the_quietest_direction_of_images(benchmark):
    random = torch.Generator().manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(12, 12, generator=random)).Q
    images = (torch.randn(50_000, 12, generator=random) * torch.linspace(0.02, 1.0, 12)) @ mixed + 3.0
    assert abs(benchmark.quietest_std(images.view(-1, 3, 2, 2)) / 0.02 - 1) < 0.02


def test_a_line_for_each_checkpoint(benchmark, tmp_path, monkeypatch, capsys):
    Script("dual_mcmc").train(tmp_path / "run", x_step_size=0.5)
    capsys.readouterr()
    command = ["chain_stability.py", "--run", str(tmp_path / "run"), "--num-images", "500"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    data, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert data == {"x_noise_std": 0.001, "quietest_std_of_the_data": 0.0}  # the digits have pixels that are always 0
    assert [line["step"] for line in lines] == [2, 4] and all(line["limit"] == 16.0 for line in lines)
    assert all(0 < line["curvature"] < line["largest_curvature"] for line in lines)
    assert all(line["energy_after_the_chain"] < line["energy_before_the_chain"] for line in lines)


def test_fewer_images_than_values(benchmark, tmp_path):
    with pytest.raises(ValueError, match=r"more than the 64 values of one, got 64\."):
        benchmark.load_images(dataclasses.asdict(Script("dual_mcmc").settings(tmp_path)), (1, 8, 8), 64)


def test_a_run_without_checkpoints(benchmark, tmp_path, monkeypatch, capsys):
    dump_settings(Script("dual_mcmc").settings(tmp_path), tmp_path / "settings.yaml")
    monkeypatch.setattr(sys, "argv", ["chain_stability.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "has no checkpoints" in capsys.readouterr().err
