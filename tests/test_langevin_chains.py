"""The loop around a sampler: its observations, its results, and diverging chains."""

import pytest
import torch
from torch.testing import assert_close

from hf_ebm import HMCScheduler, LangevinScheduler, MALAScheduler, ReplicaExchangeScheduler
from hf_ebm.langevin import ChainDivergedError, energy_and_grad, run_chain


def energy(x):
    return 0.5 * (x**2).sum(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", [LangevinScheduler, MALAScheduler, HMCScheduler, ReplicaExchangeScheduler])
def test_the_loop_and_the_states_it_observes(sampler):
    """One observation of the start and of the state after each update, whatever the sampler needs in between."""
    scheduler, x = sampler(num_train_timesteps=6, step_size=1.2), torch.randn(5, 3)
    chain = run_chain(scheduler, energy, x, 6, seeded(), observe=lambda x: x[:, 0])

    scheduler.set_timesteps(6)
    g, states = seeded(), [x]
    for t in scheduler.timesteps:
        e, grad = energy_and_grad(energy, x)
        output = scheduler.step(grad, t, x, energy=e, generator=g)
        x = output.prev_sample
        states.append(output.current_sample)
    assert torch.equal(chain.sample, x)
    per_update = (len(scheduler.timesteps) - 1) // 6 or 1
    after_updates = states[1:] if len(scheduler.timesteps) == 6 else states[1::per_update]
    assert_close(chain.profile, torch.stack([states[0], *after_updates[-6:]])[..., 0])


def test_no_updates_touch_nothing():
    x = torch.randn(4, 2)
    chain = run_chain(None, energy, x, 0, observe=energy, with_diagnostics=True)
    assert chain.sample is x and chain.diagnostics == {}
    assert_close(chain.profile, energy(x)[None])
    assert run_chain(None, energy, x, 0).profile is None


def test_after_step_moves_the_point_of_the_next_gradient():
    seen = []

    def after_step(step, t, x):
        seen.append((step, int(t)))
        return torch.zeros_like(x)

    chain = run_chain(
        LangevinScheduler(3, 0.1), energy, torch.randn(4, 2), 3, with_diagnostics=True, after_step=after_step
    )
    assert seen == [(0, 0), (1, 1), (2, 2)] and chain.sample.abs().max() == 0
    assert (chain.diagnostics["energy"][1:] == 0).all() and (chain.diagnostics["energy"][0] > 0).all()


def test_metropolis_refuses_what_lets_langevin_diverge():
    def steep(x):
        return 1e6 * (x**4).sum(1)

    x = torch.ones(4, 2)
    with pytest.raises(ChainDivergedError, match=r"step [2-9]") as caught:
        run_chain(LangevinScheduler(20, 1.0), steep, x, 20, seeded())
    assert torch.isfinite(caught.value.last_state).all()
    for sampler in (MALAScheduler, HMCScheduler):
        assert torch.equal(run_chain(sampler(20, 1.0), steep, x, 20, seeded()).sample, x)


def test_a_start_that_is_not_finite():
    with pytest.raises(ChainDivergedError, match="step 0"):
        run_chain(LangevinScheduler(2, 0.1), energy, torch.full((1, 2), float("nan")), 2)


@pytest.mark.parametrize("sampler", [LangevinScheduler, MALAScheduler, HMCScheduler, ReplicaExchangeScheduler])
def test_a_nan_energy_is_an_error_and_an_infinite_one_is_not(sampler):
    """MALA and HMC would reject every proposal and hand the start back as if nothing were wrong."""
    with pytest.raises(ValueError, match="energy of the chain's start is NaN"):
        run_chain(sampler(2, 0.1), lambda x: (x * float("nan")).sum(1), torch.ones(3, 2), 2)
    run_chain(sampler(2, 0.1), lambda x: (x * 0.0).sum(1) + float("inf"), torch.ones(3, 2), 2)
