"""Log weights: log of their mean, its interval, also for dependent weights, and sample size."""

import math

import numpy as np
import pytest
import torch
from known_log_z import seeded

from hf_ebm.likelihood.ais import bootstrap_interval, log_mean_exp, sum_groups, weights_effective_sample_size


def test_the_mean_and_the_sample_size_by_hand():
    log_weights = torch.tensor([0.1, -2.0, 1.3, -math.inf], dtype=torch.float64)
    assert log_mean_exp(log_weights) == pytest.approx(log_weights.exp().mean().log().item())
    assert weights_effective_sample_size(torch.tensor([0.0, -800.0])) == pytest.approx(1)
    assert weights_effective_sample_size(torch.full((6,), -5.0)) == pytest.approx(6)
    normal = 0.5 * torch.randn(50_000, dtype=torch.float64, generator=seeded()) - 1_000
    assert weights_effective_sample_size(normal) == pytest.approx(50_000 * math.exp(-0.25), rel=0.03)


def clustered(number, copies, seed):
    """Log weights of `number` starts with `copies` walkers each: what a start and a walker add, and the starts."""
    random = seeded(seed)
    starts = 0.5 * torch.randn(number, 1, dtype=torch.float64, generator=random)
    walks = 0.1 * torch.randn(number, copies, dtype=torch.float64, generator=random)
    groups = torch.arange(number)[:, None].expand(number, copies)
    return (starts + walks).flatten(), groups.flatten()


def test_the_interval_is_a_bootstrap_of_whole_groups():
    log_weights, groups = clustered(30, 4, 0)
    low, high = bootstrap_interval(log_weights, groups)
    chosen = np.random.default_rng(1).integers(0, 30, (4000, 30))  # of the groups, four weights each
    found = np.log(log_weights.exp().numpy().reshape(30, 4)[chosen].mean(axis=(1, 2)))
    expected = np.quantile(found, [0.025, 0.975])
    assert np.abs(np.array([low, high]) - expected).max() < 0.1 * (high - low)
    alone = bootstrap_interval(log_weights)
    assert alone[1] - alone[0] < 0.6 * (high - low)  # as if copies of a start were independent: too narrow


def test_intervals_over_starts_cover_the_truth_and_intervals_over_their_copies_do_not():
    truth, hits = (0.5**2 + 0.1**2) / 2, {True: 0, False: 0}
    for seed in range(100):
        log_weights, groups = clustered(40, 8, seed)
        for by_start in hits:
            low, high = bootstrap_interval(log_weights, groups if by_start else None)
            hits[by_start] += low <= truth <= high
    assert 86 <= hits[True] <= 100 and hits[False] < 70


def test_a_single_start_has_no_interval():
    assert bootstrap_interval(torch.randn(8, dtype=torch.float64), torch.zeros(8, dtype=torch.long)) is None


def test_groups_are_summed_in_the_log():
    log_weights = torch.tensor([1000.0, -math.inf, 1001.0, 999.0], dtype=torch.float64)
    sums, sizes = sum_groups(log_weights, torch.tensor([7, 3, 7, 5]))
    assert sums.tolist() == pytest.approx([-math.inf, 999.0, 1001 + math.log1p(math.exp(-1))])
    assert sizes.tolist() == [1, 1, 2]
