"""Invalid input of the samplers of an energy."""

import math

import numpy as np
import pytest
import torch
from known_moments import banana, seeded
from sampler_table import SAMPLERS, each, each_metropolis, run

from hf_ebm import (
    AnnealedLangevinScheduler,
    HMCScheduler,
    LangevinScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
)


@each
@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "0.1", True])
@pytest.mark.parametrize("key", ["step_size", "noise_std"])
def test_bad_step(row, key, value):
    with pytest.raises(ValueError, match=key):
        row.scheduler(**{key: value})


@each
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_bad_number_of_steps(row, value):
    with pytest.raises(ValueError, match="num_inference_steps"):
        row.scheduler().set_timesteps(value)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        row.scheduler(num_train_timesteps=-1 if value == 0 else value)  # 0: trained without the chain


@each
@pytest.mark.parametrize("key", ["step_size", "noise_std"])
@pytest.mark.parametrize("value", [1e-170, 1e25])
def test_a_step_whose_square_is_no_number(row, key, value):
    with pytest.raises(ValueError, match=f"{key} must be from 1e-19 to 1e\\+19, got"):
        row.scheduler(**{key: value})


@each
def test_trained_without_a_chain(row):
    scheduler = row.scheduler(num_train_timesteps=0)
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number >= 1"):
        scheduler.set_timesteps()
    scheduler.set_timesteps(2)
    assert scheduler.config.num_train_timesteps == 0 and scheduler.num_inference_steps == 2


@pytest.mark.parametrize(
    "cls, settings",
    [
        (LangevinScheduler, {"step_size_decay": -1.0}),
        (LangevinScheduler, {"noise_decay": math.nan}),
        (LangevinScheduler, {"noise_decay": None}),
        (LangevinScheduler, {"step_size_decay": "0.5"}),
        (PreconditionedLangevinScheduler, {"alpha": "0.9"}),
        (ReplicaExchangeScheduler, {"temperature_ratio": "2"}),
        (HMCScheduler, {"num_leapfrog_steps": 0}),
        (HMCScheduler, {"num_leapfrog_steps": 2.5}),
        (AnnealedLangevinScheduler, {"noise_scale_start": 0.5}),
        (AnnealedLangevinScheduler, {"noise_scale_start": math.inf}),
        (PreconditionedLangevinScheduler, {"alpha": 1.0}),
        (PreconditionedLangevinScheduler, {"alpha": math.nan}),
        (PreconditionedLangevinScheduler, {"eps": 0.0}),
        (ReplicaExchangeScheduler, {"num_replicas": 1}),
        (ReplicaExchangeScheduler, {"temperature_ratio": 1.0}),
    ],
)
def test_bad_settings_of_one_sampler(cls, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=key):
        cls(**settings)


@each
def test_too_many_steps(row):
    scheduler, x = row.scheduler(**row.settings), torch.randn(2, 2)
    x, _ = run(scheduler, banana, x, 2, seeded(0))
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 0, x, energy=x[:, 0])


@each_metropolis
def test_energy_is_needed_and_checked(name):
    scheduler, x = SAMPLERS[name].scheduler(), torch.randn(2, 3)
    with pytest.raises(ValueError, match="energy"):
        scheduler.step(x, 0, x)
    with pytest.raises(ValueError, match="one per sample"):
        scheduler.step(x, 0, x, energy=torch.zeros(3))
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(x[:, :2], 0, x, energy=torch.zeros(2))
    scheduler.step(x, 0, x, energy=torch.zeros(2))  # a refused call is no step of the chain


@each
def test_numpy_settings_are_pythons_in_the_config(row, tmp_path):
    settings = {"num_train_timesteps": np.int64(3), "step_size": np.float32(0.5), "noise_std": np.float64(0.25)}
    scheduler = row.scheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    again = row.scheduler.from_pretrained(tmp_path)
    expected = row.scheduler(num_train_timesteps=3, step_size=0.5, noise_std=0.25)
    assert {name: again.config[name] for name in settings} == {name: expected.config[name] for name in settings}
    assert torch.equal(again.timesteps, expected.timesteps)
    scheduler.set_timesteps(np.int32(5))
    expected.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, expected.timesteps)
