"""The samplers of an energy, one table: a new one joins by a row, and is run against targets with known moments."""

import json
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch.testing import assert_close

from hf_ebm import (
    AnnealedLangevinScheduler,
    HMCScheduler,
    LangevinScheduler,
    MALAScheduler,
    MLPEnergyConfig,
    MLPEnergyModel,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
)
from hf_ebm.langevin import energy_and_grad, energy_grad, langevin_chain
from hf_ebm.schedulers.metropolis import accept, log_uniform
from hf_ebm.schedulers.scheduling_mala import proposal_log_ratio
from hf_ebm.schedulers.scheduling_preconditioned_langevin import preconditioner
from hf_ebm.schedulers.scheduling_replica_exchange import swap_rows

Z = 4.5  # standard errors a right estimate may be off: once in 150,000


@dataclass(frozen=True)
class Row:
    """A sampler: its class, settings for the targets below, and how far its moments may be off by its own bias."""

    scheduler: type
    settings: dict = field(default_factory=dict)
    bias: float = 0.0  # allowed error of a moment, in units of the target's (co)variance; 0 = exact
    num_steps: int = 60

    @property
    def exact(self):
        """Whether it accepts or rejects, which makes it exact and needs one more gradient."""
        return self.bias == 0.0


SAMPLERS = {
    "langevin": Row(LangevinScheduler, {"step_size": 0.25}, bias=0.06, num_steps=250),
    "annealed": Row(AnnealedLangevinScheduler, {"step_size": 0.25, "noise_scale_start": 1.2}, bias=0.1, num_steps=250),
    "preconditioned": Row(PreconditionedLangevinScheduler, {"step_size": 0.25}, bias=0.15, num_steps=250),
    "mala": Row(MALAScheduler, {"step_size": 0.7}, num_steps=100),
    "hmc": Row(HMCScheduler, {"step_size": 0.45, "num_leapfrog_steps": 3}, num_steps=60),
    "replica-exchange": Row(ReplicaExchangeScheduler, {"step_size": 0.7, "num_replicas": 3}, num_steps=80),
}
CONTRACT = {"lr-decay": Row(LangevinScheduler, {"step_size_decay": 0.3, "noise_decay": 0.2}, bias=1.0), **SAMPLERS}
each = pytest.mark.parametrize("row", CONTRACT.values(), ids=CONTRACT)
each_metropolis = pytest.mark.parametrize("name", ["mala", "hmc", "replica-exchange"])


def run(scheduler, energy_fn, x, num_steps, generator):
    """The loop every caller writes; returns the chain's end and the outputs."""
    scheduler.set_timesteps(num_steps)
    outputs = []
    for t in scheduler.timesteps:
        energy, grad = energy_and_grad(energy_fn, x)
        outputs.append(scheduler.step(grad, t, x, energy=energy, generator=generator))
        x = outputs[-1].prev_sample
    return x, outputs


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def quadratic(precision, mean=0.0):
    """``E(x) = (x - mean)^T precision (x - mean) / 2``: the Gaussian N(mean, precision^-1)."""
    return lambda x: 0.5 * (((x - mean) @ precision) * (x - mean)).sum(dim=1)


def check_mean(values, expected, bias=0.0):
    """The mean of independent values is `expected`, to their own standard error and the bias."""
    error = abs(values.double().mean().item() - expected)
    allowed = Z * values.double().std().item() / len(values) ** 0.5 + bias
    assert error <= allowed, f"off by {error:.5f}, allowed {allowed:.5f}"


def check_moments(x, mean, covariance, bias=0.0):
    for i in range(x.shape[1]):
        check_mean(x[:, i], mean[i].item(), bias * covariance[i, i].item() ** 0.5)
        for j in range(i + 1):
            product = (x[:, i] - mean[i]) * (x[:, j] - mean[j])
            scale = (covariance[i, i] * covariance[j, j]).item() ** 0.5
            check_mean(product, covariance[i, j].item(), bias * scale)


# --- targets with known moments -------------------------------------------------------------------------------------

MEAN_3D = torch.tensor([0.5, -1.0, 0.0])
COVARIANCE_3D = torch.tensor([[1.0, 0.5, -0.2], [0.5, 0.8, 0.1], [-0.2, 0.1, 0.6]])
BEND, WIDTH = 0.4, 0.7
MODES, WEIGHTS, MODE_STD = torch.tensor([[1.2, 0.6], [-1.2, -0.6]]), torch.tensor([0.7, 0.3]), 0.8


def banana(x):
    """x_1 ~ N(0, 1), ``x_2 | x_1 ~ N(b (x_1^2 - 1), c^2)``: mean 0, uncorrelated, ``Var x_2 = 2 b^2 + c^2``."""
    return 0.5 * x[:, 0] ** 2 + 0.5 * ((x[:, 1] - BEND * (x[:, 0] ** 2 - 1)) / WIDTH) ** 2


def two_modes(x):
    """``-log sum_i w_i N(x; m_i, std^2)`` up to a constant."""
    distance = ((x[:, None] - MODES.to(x)) ** 2).sum(dim=2)
    return -torch.logsumexp(WEIGHTS.to(x).log() - 0.5 * distance / MODE_STD**2, dim=1)


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
class TestMoments:
    """Each sampler on each target. The energy is the target's times the temperature, whose chain samples the target."""

    count = 8_000

    def sample(self, row, energy_fn, start, temperature):
        s = row.settings["step_size"] / temperature**0.5  # the same proposal at every temperature
        scheduler = row.scheduler(**{**row.settings, "step_size": s, "noise_std": s * temperature**0.5})
        assert math.isclose(scheduler.temperature, temperature)
        return run(scheduler, lambda x: temperature * energy_fn(x), start, row.num_steps, seeded(1))[0]

    @pytest.mark.parametrize("temperature", [1.0, 0.25])
    def test_correlated_gaussian(self, row, temperature):
        energy_fn = quadratic(COVARIANCE_3D.inverse(), MEAN_3D)
        x = self.sample(row, energy_fn, torch.randn(self.count, 3) * 2, temperature)
        check_moments(x, MEAN_3D, COVARIANCE_3D, row.bias)

    def test_banana(self, row):
        x = self.sample(row, banana, torch.randn(self.count, 2), temperature=0.5)
        covariance = torch.tensor([1.0, 2 * BEND**2 + WIDTH**2]).diag()
        check_moments(x, torch.zeros(2), covariance, row.bias)
        # the bend itself, E x_1^2 x_2 = 2 b; two is about the standard deviation of x_1^2 x_2
        check_mean(x[:, 0] ** 2 * x[:, 1], 2 * BEND, 2 * row.bias)

    def test_two_modes(self, row):
        x = self.sample(row, two_modes, torch.randn(self.count, 2), temperature=2.0)
        mean = WEIGHTS @ MODES
        covariance = MODE_STD**2 * torch.eye(2) + (MODES.T * WEIGHTS) @ MODES - torch.outer(mean, mean)
        check_moments(x, mean, covariance, row.bias)


@each_metropolis
def test_no_bias_at_a_coarse_step(name):
    """At the step where Langevin's variance is nearly three times too large, those that accept or reject are right."""
    a, s, count = 4.0, 0.8, 15_000
    target, energy_fn = torch.tensor([[1 / a]]), quadratic(torch.tensor([[a]]))
    start = torch.randn(count, 1)
    biased, _ = run(LangevinScheduler(step_size=s), energy_fn, start, 40, seeded(0))
    assert biased.var().item() > 2.7 / a
    scheduler = SAMPLERS[name].scheduler(**{**SAMPLERS[name].settings, "step_size": s})
    exact, outputs = run(scheduler, energy_fn, start, 40, seeded(0))
    check_moments(exact, torch.zeros(1), target)
    rates = [out.acceptance_rate.item() for out in outputs if out.acceptance_rate is not None]
    assert len(rates) == 40 and all(0.1 < rate < 0.95 for rate in rates[5:])


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s, n", [(0.3, 0.3), (0.6, 0.2), (0.9, 0.9)])
def test_langevins_stationary_variance(s, n):
    """``n^2 / (1 - (1 - s^2 a / 2)^2)`` along each eigenvector of the precision, a its eigenvalue."""
    eigenvalues, angle = torch.tensor([0.8, 3.0]), 0.6
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    energy_fn = quadratic(rotation @ eigenvalues.diag() @ rotation.T)
    x, _ = run(LangevinScheduler(step_size=s, noise_std=n), energy_fn, torch.zeros(20_000, 2), 150, seeded(0))
    variance = n**2 / (1 - (1 - s**2 * eigenvalues / 2) ** 2)
    check_moments(x @ rotation, torch.zeros(2), variance.diag())


def gaussian_chain(a, start, step_sizes, noise_stds):
    """Mean and variance after the updates ``x <- r_k x + n_k noise``, ``r_k = 1 - s_k^2 a / 2``, from a fixed start."""
    mean, variance = start, 0.0
    for s, n in zip(step_sizes, noise_stds, strict=True):
        mean, variance = (1 - s**2 * a / 2) * mean, (1 - s**2 * a / 2) ** 2 * variance + n**2
    return mean, variance


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.7), (0.3, 1.0)])
def test_langevins_moments_after_a_few_steps(num_steps, decays):
    a, start, s, n = 1.7, 3.0, 0.6, 0.4
    scheduler = LangevinScheduler(step_size=s, noise_std=n, step_size_decay=decays[0], noise_decay=decays[1])
    x, _ = run(scheduler, quadratic(torch.tensor([[a]])), torch.full((50_000, 1), start), num_steps, seeded(3))
    ks = range(1, num_steps + 1)
    mean, variance = gaussian_chain(a, start, [s * k ** -decays[0] for k in ks], [n * k ** -decays[1] for k in ks])
    check_moments(x, torch.tensor([mean]), torch.tensor([[variance]]))


def test_constant_langevin_is_the_chain_of_langevin_py():
    energy_fn, start = banana, torch.randn(5, 2)
    x, _ = run(LangevinScheduler(step_size=0.3, noise_std=0.1), energy_fn, start, 9, seeded(3))
    expected = langevin_chain(start, lambda x: energy_grad(energy_fn, x), 9, 0.3, 0.1, seeded(3))
    assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_annealed_moments(num_steps):
    """The noise falls from 6 n to n by equal factors."""
    a, start, s, n = 1.7, 3.0, 0.6, 0.4
    scheduler = AnnealedLangevinScheduler(step_size=s, noise_std=n, noise_scale_start=6.0)
    x, _ = run(scheduler, quadratic(torch.tensor([[a]])), torch.full((50_000, 1), start), num_steps, seeded(3))
    noise_stds = torch.logspace(math.log10(6 * n), math.log10(n), num_steps).tolist() if num_steps > 1 else [n]
    mean, variance = gaussian_chain(a, start, [s] * num_steps, noise_stds)
    check_moments(x, torch.tensor([mean]), torch.tensor([[variance]]))


def test_annealing_and_replicas_cross_where_langevin_stays():
    """All chains begin in the lesser of two narrow modes; at a fifth of the temperature Langevin does not leave it."""

    def energy_fn(x):
        left, right = -0.5 * ((x + 1) / 0.3) ** 2 + math.log(0.2), -0.5 * ((x - 1) / 0.3) ** 2 + math.log(0.8)
        return -torch.logaddexp(left, right)[:, 0]

    share = {}
    for cls in (LangevinScheduler, AnnealedLangevinScheduler, ReplicaExchangeScheduler):
        scheduler = cls(step_size=0.25, noise_std=0.25 * 0.2**0.5)
        x, _ = run(scheduler, energy_fn, torch.full((1000, 1), -1.0), 200, seeded(0))
        share[cls] = (x > 0).float().mean().item()
    assert share[LangevinScheduler] < 0.02
    assert share[AnnealedLangevinScheduler] > 0.5
    assert share[ReplicaExchangeScheduler] > 0.25


# --- Metropolis -----------------------------------------------------------------------------------------------------


def test_acceptance_ratio_is_that_of_the_proposal_densities():
    """MALA's ratio from q's log density as torch.distributions has it, in double precision."""
    s, n, x = 0.7, 0.3, torch.randn(6, 2, dtype=torch.float64)
    _energy, grad = energy_and_grad(banana, x)
    noise = torch.randn_like(x)
    proposed = x - s**2 / 2 * grad + n * noise
    _energy, grad_proposed = energy_and_grad(banana, proposed)

    def log_q(to, origin, grad):
        return torch.distributions.Normal(origin - s**2 / 2 * grad, n).log_prob(to).sum(dim=1)

    expected = log_q(x, proposed, grad_proposed) - log_q(proposed, x, grad)
    assert_close(proposal_log_ratio(noise, grad, grad_proposed, s, n), expected)


def test_acceptance_probability_of_one_step():
    """From one state, the share of chains that move by update 1 is the mean of min(1, ratio)."""
    s, n, count = 0.9, 0.6, 100_000
    x = torch.tensor([[1.0, -0.5]]).repeat(count, 1)
    end, outputs = run(MALAScheduler(step_size=s, noise_std=n), banana, x, 1, seeded(0))
    proposed = outputs[0].prev_sample
    (energy, grad), (energy_p, grad_p) = energy_and_grad(banana, x), energy_and_grad(banana, proposed)
    forward = ((proposed - x + s**2 / 2 * grad) ** 2).sum(1) / (2 * n**2)
    backward = ((x - proposed + s**2 / 2 * grad_p) ** 2).sum(1) / (2 * n**2)
    ratio = torch.exp((energy - energy_p) * (s / n) ** 2 + forward - backward)
    moved = (end != x).any(dim=1)
    check_mean(moved.float() - ratio.clamp(max=1), 0.0)
    assert_close(moved.float().mean(), outputs[1].acceptance_rate)
    assert 0.2 < moved.float().mean() < 0.9 and torch.equal(end[moved], proposed[moved])


def test_hmc_with_one_leapfrog_step_is_mala():
    x = torch.randn(500, 2, dtype=torch.float64)
    settings = {"step_size": 0.9, "noise_std": 0.6}
    end_mala, mala = run(MALAScheduler(**settings), banana, x, 20, seeded(0))
    end_hmc, hmc = run(HMCScheduler(num_leapfrog_steps=1, **settings), banana, x, 20, seeded(0))
    assert len(mala) == len(hmc) == 21
    for a, b in zip(mala, hmc, strict=True):
        assert_close(a.prev_sample, b.prev_sample)
        assert (a.acceptance_rate is None) == (b.acceptance_rate is None)
        if a.acceptance_rate is not None:
            assert_close(a.acceptance_rate, b.acceptance_rate)
    assert_close(end_mala, end_hmc)
    assert 0.2 < torch.stack([out.acceptance_rate for out in mala[1:]]).mean() < 0.9


def test_hmc_follows_the_leapfrog_map():
    """Three steps against the integrator written out, and its time reversal: with -p it comes back."""
    s, n, x0 = 0.3, 0.15, torch.randn(4, 2, dtype=torch.float64)
    scheduler = HMCScheduler(step_size=s, noise_std=n, num_leapfrog_steps=3)
    _end, outputs = run(scheduler, banana, x0, 1, seeded(0))
    p0 = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))

    def leapfrog(x, p):
        states = []
        for _ in range(3):
            p = p - n / (2 * scheduler.temperature) * energy_grad(banana, x)
            x = x + n * p
            p = p - n / (2 * scheduler.temperature) * energy_grad(banana, x)
            states.append(x)
        return states, p

    states, p = leapfrog(x0, p0)
    for state, out in zip(states, outputs, strict=False):
        assert_close(out.prev_sample, state)
    assert_close(scheduler.momentum, p)
    assert_close(leapfrog(states[-1], -p)[0][-1], x0)


def test_swaps_are_metropolis_on_the_product_of_the_chains():
    """Each pair in turn swaps with probability min(1, p(swapped) / p(as it is)), the others never."""
    temperatures, count = torch.tensor([0.5, 1.0, 2.0, 4.0]), 100_000
    energy = torch.tensor([0.3, 0.1, 2.0, 1.0])
    for first, pairs in ((0, [(0, 1), (2, 3)]), (1, [(1, 2)])):
        log_u = log_uniform((count, 3), torch.device("cpu"), seeded(first))
        rows = swap_rows(energy.repeat(count, 1), temperatures, first, log_u).reshape(count, 4)
        partners = rows - 4 * torch.arange(count)[:, None]
        assert torch.equal(partners.sort(dim=1).values, torch.arange(4).expand(count, 4))
        for i, j in ((0, 1), (1, 2), (2, 3)):
            before = energy[i] / temperatures[i] + energy[j] / temperatures[j]
            after = energy[j] / temperatures[i] + energy[i] / temperatures[j]
            probability = min(1.0, math.exp(before - after)) if (i, j) in pairs else 0.0
            check_mean((partners[:, i] == j).float(), probability)


def test_each_replica_has_its_temperature():
    """Hot chains too: on ``x^2 / 2`` chain r has the variance T_r."""
    scheduler, start = ReplicaExchangeScheduler(step_size=0.8, num_replicas=3), torch.randn(20_000, 1)
    end, outputs = run(scheduler, quadratic(torch.eye(1)), start, 60, seeded(0))
    assert end.shape == (20_000, 1) and outputs[0].prev_sample.shape == (60_000, 1)
    for chain in range(3):  # the first proposal is N((1 - s^2/2) x, n_r^2), n_r = n 2^(r/2)
        proposed = outputs[0].prev_sample[chain::3] - (1 - 0.8**2 / 2) * start
        check_moments(proposed, torch.zeros(1), torch.tensor([[0.8**2 * 2.0**chain]]))
        check_moments(scheduler.state.sample[chain::3], torch.zeros(1), torch.tensor([[2.0**chain]]))


def test_log_uniform():
    log_u = log_uniform((200_000,), torch.device("cpu"), seeded(0))
    check_mean(log_u, -1.0)  # -log u is exponential
    check_mean((log_u < math.log(0.3)).float(), 0.3)


def test_what_is_never_accepted():
    inf, nan = math.inf, math.nan
    log_ratio = torch.tensor([inf, inf, nan, -inf, inf])
    energy = torch.tensor([-inf, nan, 0.0, 0.0, 0.0])
    assert accept(log_ratio, energy, torch.full((5,), -50.0)).tolist() == [False, False, False, False, True]


@each_metropolis
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_wall_of_non_finite_energy_is_not_passed(name, bad):
    """The half-plane x_1 > 0.5 has no finite energy: the chain samples the Gaussian cut off there."""

    def energy_fn(x):
        return torch.where(x[:, 0] > 0.5, x.new_tensor(bad), 0.5 * (x**2).sum(dim=1))

    start = -torch.rand(4_000, 2)
    scheduler = SAMPLERS[name].scheduler(**{**SAMPLERS[name].settings, "step_size": 0.6})
    x, _ = run(scheduler, energy_fn, start, 60, seeded(0))
    assert x[:, 0].max() <= 0.5 and torch.isfinite(x).all()
    normal = torch.distributions.Normal(0.0, 1.0)
    cut = torch.tensor(0.5)
    check_mean(x[:, 0], (-normal.log_prob(cut).exp() / normal.cdf(cut)).item())


# --- preconditioning ------------------------------------------------------------------------------------------------


def test_preconditioned_path_is_the_papers_recursion():
    """Against the recursion in double precision, written out; it ends far from the plain chain."""
    s, n, alpha, eps = 0.3, 0.1, 0.8, 0.2
    scheduler = PreconditionedLangevinScheduler(step_size=s, noise_std=n, alpha=alpha, eps=eps)
    start = torch.randn(4, 2, dtype=torch.float64)
    end, outputs = run(scheduler, banana, start, 6, seeded(0))
    x, generator, grads = start, seeded(0), []
    for k in range(6):
        grads.append(energy_grad(banana, x))
        weights = torch.tensor([alpha ** (k - i) for i in range(k + 1)], dtype=torch.float64)
        v = torch.einsum("k,kbd->bd", weights / weights.sum(), torch.stack(grads) ** 2)
        g = 1 / (eps * v.mean(dim=1, keepdim=True) ** 0.5 + v**0.5)
        g = g / g.mean(dim=1, keepdim=True)
        x = x - s**2 / 2 * g * grads[-1] + n * g**0.5 * torch.randn(4, 2, dtype=torch.float64, generator=generator)
        assert_close(outputs[k].prev_sample, x)
    plain, _ = run(LangevinScheduler(step_size=s, noise_std=n), banana, start, 6, seeded(0))
    assert (end - plain).abs().max() > 0.05


def test_preconditioner_bounds_scale_and_flat_energy():
    v = torch.rand(5, 3, 4) ** 4
    g = preconditioner(v, 0.1)
    assert_close(g.mean(dim=(1, 2)), torch.ones(5))
    assert (g.amax(dim=(1, 2)) / g.amin(dim=(1, 2))).max() <= 1 + math.sqrt(12) / 0.1
    assert_close(preconditioner(1e6 * v, 0.1), g)
    assert_close(preconditioner(torch.zeros(2, 3), 0.1), torch.ones(2, 3))


def test_preconditioned_on_one_coordinate_is_langevin():
    energy_fn, start = quadratic(torch.tensor([[2.0]])), torch.randn(6, 1)
    a, _ = run(PreconditionedLangevinScheduler(), energy_fn, start, 5, seeded(0))
    b, _ = run(LangevinScheduler(), energy_fn, start, 5, seeded(0))
    assert_close(a, b)


def test_preconditioning_mixes_a_stretched_gaussian_faster():
    """Widths 1 and 0.05: at a step the narrow one allows, the plain chain hardly moves along the wide one."""
    energy_fn = quadratic(torch.tensor([1.0, 400.0]).diag())
    start = torch.tensor([[3.0, 0.0]]).repeat(1000, 1) + 0.05 * torch.randn(1000, 2)
    distance = {}
    for cls in (LangevinScheduler, PreconditionedLangevinScheduler):
        x, _ = run(cls(step_size=0.05), energy_fn, start, 400, seeded(0))
        distance[cls] = abs(x[:, 0].mean().item())
    assert distance[LangevinScheduler] > 1.5
    assert distance[PreconditionedLangevinScheduler] < 0.8 * distance[LangevinScheduler]


# --- the contract ---------------------------------------------------------------------------------------------------


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
    scheduler.set_timesteps(1)
    assert isinstance(scheduler.step(grad, 0, x, energy=energy, return_dict=False), tuple)


@each
def test_the_generator_alone_decides(row):
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
    """Meta tensors hold no numbers: any look at one (.item(), int(), if) would fail."""
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


# --- bad input ------------------------------------------------------------------------------------------------------


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
        row.scheduler(num_train_timesteps=value)


@pytest.mark.parametrize(
    "cls, settings",
    [
        (LangevinScheduler, {"step_size_decay": -1.0}),
        (LangevinScheduler, {"noise_decay": math.nan}),
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
