"""The contract of every sampler of an energy: timesteps, outputs, generators, shapes, devices, configs."""

import json

import pytest
import torch
from known_moments import banana, seeded
from sampler_table import each, run
from torch.testing import assert_close

from hf_ebm import LangevinScheduler, MLPEnergyConfig, MLPEnergyModel
from hf_ebm.langevin import energy_and_grad


@each
def test_timesteps_and_output(row):
    scheduler = row.scheduler(num_train_timesteps=4, **row.settings)
    assert len(scheduler) == 4 and len(scheduler.timesteps) == scheduler.num_evaluations(4)
    leapfrog_steps = row.settings.get("num_leapfrog_steps", 1)
    x = torch.randn(3, 2)
    end, outputs = run(scheduler, banana, x, 2, seeded(0))
    assert scheduler.num_inference_steps == 2
    assert len(outputs) == scheduler.num_evaluations(2) == 2 * leapfrog_steps + row.exact
    assert end.shape == x.shape and torch.equal(outputs[-1].current_sample, end)
    energy, grad = energy_and_grad(banana, x)
    assert_close(outputs[0].energy, energy)
    assert_close(outputs[0].grad_norm, grad.norm(dim=1))
    assert outputs[0].acceptance_rate is None
    assert all(out.energy.shape == out.grad_norm.shape == (3,) for out in outputs)
    assert all(out.current_sample.shape == x.shape for out in outputs)
    if row.exact:
        assert torch.equal(outputs[0].current_sample, x) and outputs[-1].acceptance_rate.shape == ()
    else:
        assert outputs[-1].acceptance_rate is None
    assert scheduler.scale_model_input(x, 0) is x
    moved = []
    for return_dict in (True, False):
        scheduler.set_timesteps(1)
        random = torch.Generator().manual_seed(0)
        moved.append(scheduler.step(grad, 0, x, energy=energy, generator=random, return_dict=return_dict))
    assert isinstance(moved[1], tuple) and len(moved[1]) == 2
    assert torch.equal(moved[1][0], moved[0].prev_sample) and torch.equal(moved[1][1], moved[0].current_sample)


@each
def test_only_the_generator_determines_the_result(row):
    scheduler, x = row.scheduler(**row.settings), torch.randn(4, 2)
    torch.manual_seed(1)
    first, _ = run(scheduler, banana, x, 3, seeded(5))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again, _ = run(scheduler, banana, x, 3, seeded(5))
    assert torch.equal(first, again) and torch.equal(state, torch.random.get_rng_state())
    other, _ = run(scheduler, banana, x, 3, seeded(6))
    assert not torch.equal(first, other)


@each
def test_a_generator_per_sample_makes_samples_independent(row):
    scheduler, x = row.scheduler(**{**row.settings, "step_size": 0.8}), torch.randn(3, 2)
    batch, _ = run(scheduler, banana, x, 6, [seeded(s) for s in (1, 2, 3)])
    for i in range(3):
        alone, _ = run(scheduler, banana, x[i : i + 1], 6, [seeded(i + 1)])
        assert_close(batch[i : i + 1], alone)


@each
def test_set_timesteps_forgets_the_chain(row):
    scheduler, x = row.scheduler(**row.settings), torch.randn(4, 2)
    fresh, _ = run(scheduler, banana, x, 3, seeded(0))
    scheduler.set_timesteps(3)
    energy, grad = energy_and_grad(banana, x + 9)
    scheduler.step(grad, 0, x + 9, energy=energy)  # another chain, left at its first step
    again, _ = run(scheduler, banana, x, 3, seeded(0))
    assert torch.equal(fresh, again)


@each
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_shapes_and_dtype(row, shape):
    x = torch.randn(3, *shape, dtype=torch.float64)
    end, outputs = run(row.scheduler(**row.settings), lambda x: (x**2).flatten(1).sum(dim=1), x, 2, seeded(0))
    assert end.shape == x.shape and end.dtype == torch.float64
    assert all(out.prev_sample.dtype == torch.float64 for out in outputs)


@each
def test_nothing_waits_for_the_device(row):
    """Meta tensors have no values: any access to one (.item(), int(), if) would fail."""
    scheduler = row.scheduler(**row.settings)
    scheduler.set_timesteps(3, device="meta")
    x = torch.zeros(2, 3, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(torch.empty_like(x), t, x, energy=x[:, 0]).prev_sample
    assert x.shape == (2, 3)


@each
def test_an_energy_model_of_the_package(row):
    model = MLPEnergyModel(MLPEnergyConfig(data_dim=2, num_timesteps=1, hidden_dims=(16,), num_frequencies=4)).eval()
    settings = {**row.settings, "step_size": 0.2}
    with torch.no_grad():
        x, outputs = run(row.scheduler(**settings), lambda x: model(x, 0).energy, torch.randn(64, 2), 20, seeded(0))
    assert torch.isfinite(x).all() and not x.requires_grad
    assert model(x, 0).energy.mean() < outputs[0].energy.mean() + 1.0
    assert all(parameter.grad is None for parameter in model.parameters())


@each
def test_config_round_trip(row, tmp_path):
    scheduler = row.scheduler(num_train_timesteps=7, noise_std=0.1, **row.settings)
    scheduler.save_pretrained(tmp_path)
    again = row.scheduler.from_pretrained(tmp_path)
    own = {key for key in scheduler.config if not key.startswith("_")}
    assert {key: again.config[key] for key in own} == {key: scheduler.config[key] for key in own}
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == row.scheduler.__name__
    start = torch.randn(3, 2)
    assert torch.equal(run(scheduler, banana, start, 2, seeded(0))[0], run(again, banana, start, 2, seeded(0))[0])


@each
@pytest.mark.parametrize("settings", [{}, {"step_size": 0.2}, {"noise_std": 0.3}, {"step_size": 0.2, "noise_std": 0.3}])
def test_swapping_by_from_config_keeps_the_step(row, settings):
    """Values left at their default too, which from_config drops: every sampler has the same ones."""
    langevin = LangevinScheduler(num_train_timesteps=12, **settings)
    swapped = row.scheduler.from_config(langevin.config)
    for scheduler in (swapped, LangevinScheduler.from_config(swapped.config)):
        assert (scheduler.step_size, scheduler.noise_std) == (langevin.step_size, langevin.noise_std)
        assert len(scheduler) == 12
    assert len(row.scheduler()) == len(LangevinScheduler())
