"""Settings of the x-chain as the benchmark's command line names them."""

import pytest
import torch

from hf_ebm import LangevinScheduler


@pytest.fixture
def benchmark(import_benchmark):
    return import_benchmark("x_chain_settings")


def test_settings_reach_the_scheduler(benchmark):
    config = LangevinScheduler(step_size=8.0, noise_std=0.01).config
    settings = benchmark.sampling_settings("step_size=2 noise_std=1e-6", config)
    changed = LangevinScheduler.from_config(config, **settings)
    assert (changed.config.step_size, changed.config.noise_std) == (2.0, 1e-6)
    assert benchmark.sampling_settings("as shipped", config) == {}


@pytest.mark.parametrize("title", ["stepsize=2", "num_train_timesteps=3", "step_size"])
def test_what_is_no_number_of_the_scheduler_is_refused(benchmark, title):
    with pytest.raises(ValueError, match=r"--set must name|must be key=value"):
        benchmark.sampling_settings(title, LangevinScheduler().config)


def test_noise_is_as_large_as_asked_and_stays_in_range(benchmark):
    x = torch.zeros(50, 1, 32, 32)
    assert benchmark.with_noise(x, 0.1).std().item() == pytest.approx(0.1, rel=0.02)
    assert benchmark.with_noise(x + 1.0, 0.1).max().item() == 1.0
