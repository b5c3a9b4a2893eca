"""``estimate_log_z``: its result, random numbers, batches and errors."""

import math

import pytest
import torch
from known_log_z import gaussian, seeded
from torch.testing import assert_close

from hf_ebm import LangevinScheduler, MALAScheduler
from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import GaussianBase


def test_no_samples_no_upper_bound():
    target = gaussian(2, 0.5, count=2)
    bracket = estimate_log_z(target.energy_fn, GaussianBase.diagonal(torch.zeros(2), 1.0), num_temperatures=5)
    missing = {name for name, value in vars(bracket).items() if value is None}
    assert missing == {
        "log_z_upper",
        "log_z_upper_interval",
        "num_reverse_starts",
        "effective_sample_size_reverse",
        "acceptance_rate_reverse",
    }
    assert bracket.gap is None and bracket.num_chains == 512


def test_only_the_generator_determines_the_result():
    target, results = gaussian(2, 0.5, count=6), []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        state = torch.random.get_rng_state()
        scheduler = MALAScheduler(step_size=0.4)
        bracket = estimate_log_z(
            target.energy_fn,
            GaussianBase.diagonal(torch.zeros(2), 1.0),
            target.samples,
            num_chains=5,
            num_temperatures=6,
            scheduler=scheduler,
            generator=seeded(seed),
        )
        assert torch.equal(state, torch.random.get_rng_state()) and scheduler.step_size == 0.4
        results.append((bracket.log_z_lower, bracket.log_z_upper, bracket.acceptance_rate.tolist()))
    assert results[0] == results[1] and results[0][:2] != results[2][:2]


def test_batches_and_progress():
    target, sizes, bars = gaussian(2, 0.5, count=7), [], []

    def energy_fn(x):
        sizes.append(len(x))
        return target.energy_fn(x)

    def progress_bar(items):
        bars.append(len(items))
        return iter(items)

    bracket = estimate_log_z(
        energy_fn,
        GaussianBase.diagonal(torch.zeros(2), 1.0),
        target.samples,
        num_chains=10,
        num_temperatures=5,
        batch_size=4,
        progress_bar=progress_bar,
    )
    assert set(sizes) == {4, 3, 2} and bars == [3] * 6  # steps; 4 + 4 + 2 forward; 4 + 3 back
    assert (bracket.num_chains, bracket.num_temperatures) == (10, 5)
    assert_close((10 * bracket.acceptance_rate).round(), 10 * bracket.acceptance_rate, atol=1e-5, rtol=0)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"num_chains": 1},
        {"num_chains": 2.0},
        {"num_temperatures": 1},
        {"num_temperatures": True},
        {"num_steps": 0},
        {"batch_size": 0},
        {"scheduler": LangevinScheduler()},
        {"samples": torch.randn(4, 3)},
        {"samples": torch.randn(1, 2)},
        {"samples": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])},
        {"samples": torch.zeros(4, 2, dtype=torch.long)},
    ],
)
def test_bad_settings(settings):
    (key,) = settings
    base = GaussianBase.diagonal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=key):
        estimate_log_z(lambda x: x.square().sum(dim=1), base, **{"num_chains": 4, "num_temperatures": 3, **settings})


def test_bad_energies():
    base = GaussianBase.diagonal(torch.zeros(2), 1.0)
    few = {"num_chains": 4, "num_temperatures": 3}
    for num_temperatures in (2, 3):
        with pytest.raises(ValueError, match=r"one number per sample, shape \(4,\)"):
            estimate_log_z(lambda x: x.sum(), base, num_chains=4, num_temperatures=num_temperatures, batch_size=4)
    with pytest.raises(ValueError, match="energy of the chain's start is NaN"):
        estimate_log_z(lambda x: x.sum(dim=1) * math.nan, base, **few)
    with pytest.raises(ValueError, match="4 of 4 forward weights"):
        estimate_log_z(lambda x: 0 * x.sum(dim=1) - math.inf, base, **few)
    with pytest.raises(ValueError, match="all forward weights"):
        estimate_log_z(lambda x: 0 * x.sum(dim=1) + math.inf, base, **few)
    with pytest.raises(ValueError, match="1 of 3 reverse weights"):  # a sample where the density is zero
        samples = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.5, 0.5]])
        estimate_log_z(
            lambda x: torch.where(x[:, 0] < 8, x.square().sum(dim=1), math.inf), base, samples, num_temperatures=2
        )
