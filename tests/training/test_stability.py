"""Warnings before a run is lost: each is made to happen, and none comes in a healthy run."""

import json

import pytest
import torch
from small_runs import Script

from hf_ebm import DDAEBMPipeline, DualMCMCPipeline, LangevinScheduler
from hf_ebm.langevin import energy_grad
from hf_ebm.training.stability import EnergyGapWatch, check_samples, largest_curvature, mean_distance
from hf_ebm.training.trainer import Run


def test_drifting_energies_are_warned_of_once_per_doubling():
    watch, random = EnergyGapWatch(), torch.Generator().manual_seed(0)
    healthy = [1.0 + torch.rand((), generator=random).item() for _ in range(300)]
    assert not any(watch(gap, 0.0) for gap in healthy)
    assert not any(watch(0.0, gap) for gap in (20.0, 1.5, 1.5, 1.5))  # a single outlier
    found = [watch(1.2**k, 0.0) for k in range(1, 30)]
    warnings = [text for text in found if text]
    assert 3 <= len(warnings) <= 6 and "drift apart: gap" in warnings[0]


def test_the_curvature_of_a_quadratic():
    values = torch.tensor([0.1, 1.0, 5.0])
    found = largest_curvature(lambda x: x * values, torch.randn(4, 3), num_iterations=30)
    torch.testing.assert_close(found, torch.full((4,), 5.0), rtol=1e-3, atol=0)
    of_kinks = largest_curvature(lambda x: 2.0 * torch.relu(x), torch.ones(2, 3))  # piecewise linear gradient
    torch.testing.assert_close(of_kinks, torch.full((2,), 2.0), rtol=1e-3, atol=0)


def test_mean_distance():
    assert mean_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)


def check(pipeline, data=None):
    return check_samples(pipeline, torch.rand(16, *pipeline.sample_shape) * 2 - 1 if data is None else data)


def test_samples_that_are_all_alike_are_warned_of(tiny_pipeline):
    found, warnings = check(tiny_pipeline, 0.3 * torch.randn(16, *tiny_pipeline.sample_shape))
    assert set(found) == {"spread"} and found["spread"] >= 0.3 and not warnings
    alike = torch.zeros(1, *tiny_pipeline.sample_shape)

    class Collapsed(DDAEBMPipeline):
        def __call__(self, batch_size, **options):
            noise = 0.05 * torch.randn(batch_size, *alike.shape[1:], generator=options["generator"])
            return type("Output", (), {"images": alike + noise})

    pipeline = Collapsed(**{name: part for name, part in tiny_pipeline.components.items() if name != "image_processor"})
    found, warnings = check(pipeline)
    assert found["spread"] < 0.3 and "the samples are alike" in warnings[0]


def test_chains_that_overshoot_are_warned_of(tiny_dual_mcmc_pipeline, monkeypatch):
    pipeline = tiny_dual_mcmc_pipeline
    pipeline.scheduler = LangevinScheduler(num_train_timesteps=2, step_size=1e-3, noise_std=1e-6)
    found, warnings = check(pipeline)
    assert set(found) == {"spread", "chain_energy_change", "curvature"}
    assert not [text for text in warnings if "curvature" in text]
    factor = 2.0 * 4e6 / found["curvature"]  # the limit of this step is 4e6
    monkeypatch.setattr("hf_ebm.training.stability.energy_grad", lambda energy, x: factor * energy_grad(energy, x))
    found, warnings = check(pipeline)
    assert any("the energy's curvature at samples" in text and "above 4 / x_step_size^2" in text for text in warnings)


def test_chains_that_raise_the_energy_are_warned_of(tiny_dual_mcmc_pipeline):
    class Raising(DualMCMCPipeline):
        def __call__(self, batch_size, **options):
            output = super().__call__(batch_size, **options)
            output.energies = output.energies.flip(0)
            return output

    parts = {name: part for name, part in tiny_dual_mcmc_pipeline.components.items() if name != "image_processor"}
    reverse, forward = check(Raising(**parts)), check(DualMCMCPipeline(**parts))
    assert reverse[0]["chain_energy_change"] == -forward[0]["chain_energy_change"] != 0.0
    for found, warnings in (reverse, forward):
        raises = any("chain raises the mean energy" in text for text in warnings)
        assert raises == (found["chain_energy_change"] > 0.0)


def test_a_run_records_and_warns(tmp_path, script: Script, monkeypatch, capsys):
    """A step size far too large for the energy; a gap that explodes."""
    monkeypatch.setattr("hf_ebm.training.stability.MIN_SPREAD", 1e9)
    monkeypatch.setattr("hf_ebm.training.stability.MIN_BEFORE", 1)
    monkeypatch.setattr("hf_ebm.training.stability.NUM_RECENT", 1)
    log, steps = Run.log, []

    def exploding(run, terms):
        steps.append(run.progress.step)
        real, generated = run.method.energy_terms
        log(run, {**terms, real: 10.0 ** len(steps), generated: 0.0})

    monkeypatch.setattr(Run, "log", exploding)
    folder = script.train(tmp_path / "run", sample_every=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_stability = [line for line in lines if "stability/spread" in line]
    assert [line["step"] for line in of_stability] == [2, 4]
    printed = capsys.readouterr().err
    assert "warning: step 2: the samples are alike" in printed
    assert "warning: step 3: the energies of real and generated samples drift apart" in printed
