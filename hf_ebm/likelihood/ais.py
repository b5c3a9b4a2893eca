"""Annealed importance sampling (AIS): stochastic bounds of ``log Z``, ``Z = integral exp(-E(x) / T) dx``.

AIS moves from a Gaussian base, whose Z is 1, to the target through densities with the energies

    E_b = (1 - b) E_base + b E / T,        0 = b_1 < b_2 < ... < b_K = 1            (the geometric path)

At each b_k a walker first gains ``(b_k - b_{k-1}) (E_base - E / T)``, then moves by MALA or HMC, which leave
``exp(-E_{b_k})`` invariant. The sum is its log weight, ``log w``, and ``mean w`` is an unbiased estimate of Z. By
Jensen's inequality,

    log mean w     from exact base samples to the target:      a stochastic lower bound of log Z
    -log mean w'   from exact target samples to the base:      a stochastic upper bound of log Z

where w' are the weights of the walk with the b's reversed, ``E w' = 1/Z``. A stochastic bound holds in expectation of
the logs, and a single run exceeds log Z by c nats with probability at most ``exp(-c)`` (Markov's inequality).
The intervals are percentile bootstraps over walkers: they describe the sampling error of a bound and are not
intervals for log Z. More temperatures and chains tighten both bounds. If the moves do not mix, or a mode of the target
lies far from the base, the lower bound stays low. **The upper bound needs samples of the model itself.** Ends of a
long chain come close. Data are samples of the model only as far as the model fits them; otherwise the upper bound
may err in either direction.

The moves run in coordinates u where the base is standard normal, ``x = mean + L u``, at temperature 1. Their step size
at each b_k is tuned on separate chains and then frozen: a step size adapted by the walkers themselves would break the
invariance, and with it the bounds.

Source: Neal 2001; Grosse et al. 2015 for the reverse bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import run_chain
from hf_ebm.likelihood.base_distributions import GaussianBase, check_data
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.schedulers.scheduling_hmc import HMCScheduler
from hf_ebm.schedulers.scheduling_mala import MALAScheduler
from hf_ebm.utils.torch_utils import no_grad
from hf_ebm.utils.validation import check_count, check_positive

SIGMOID_WIDTH = 4.0  # the sigmoid is taken from -4 to 4
TARGET_ACCEPTANCE = 0.65  # share of the moves taken, for which the steps are set
ADAPTATION_ROUNDS = 2  # at each temperature
MAX_STEP = math.pi / 2  # of L leapfrog steps together: a quarter turn in the base, beyond which they swing back


@dataclass(frozen=True, eq=False)
class AnnealedWalk:
    """The walk between base and target, of u, where the base is ``N(0, I)`` and the target's Z is that of x."""

    energy_fn: Callable[[Tensor], Tensor]  # ``x -> E(x)``, shape (B,)
    base: GaussianBase  # the base
    temperature: float  # T
    scheduler: EnergySampler  # the sampler, whose step is set before each move
    num_steps: int  # updates at each b
    generator: torch.Generator | None  # random number generator
    progress_bar: Callable[[Iterable[int]], Iterable[int]]  # wraps the indices of the inner b's

    def draw_base(self, number: int) -> Tensor:
        """Exact samples of the base, shape (number, ...)."""
        mean = self.base.mean
        return randn_tensor((number, *mean.shape), generator=self.generator, device=mean.device, dtype=mean.dtype)

    def ends(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``E_base(u) = ||u||^2 / 2 + D/2 log 2 pi`` and ``E(x(u)) / T - log |det L|``, each of shape (B,)."""
        energy = self.energy_fn(self.base.from_white(u))
        if energy.shape != u.shape[:1]:
            raise ValueError(
                f"energy_fn must return one number per sample, shape ({len(u)},), got {tuple(energy.shape)}."
            )
        base_energy = half_squared_norm(u) + 0.5 * u[0].numel() * math.log(2.0 * math.pi)
        return base_energy, energy / self.temperature - self.base.log_det

    def move(self, u: Tensor, beta: float, step_size: float) -> tuple[Tensor, Tensor, float]:
        """One chain at ``b = beta``: its end; ``E_base - E / T`` at its start, (B,); the share of moves taken."""
        start: list[Tensor] = []

        def energy_fn(u: Tensor) -> Tensor:
            base_energy, energy = self.ends(u)
            if not start:  # the first gradient is taken at the start, where the weight is due
                start.append((base_energy - energy).detach())
            return (1.0 - beta) * base_energy + beta * energy

        self.scheduler.setup(self.num_steps, step_size, step_size)
        chain = run_chain(self.scheduler, energy_fn, u, self.num_steps, self.generator, with_diagnostics=True)
        assert chain.diagnostics is not None  # they were asked for
        return chain.sample, start[0], chain.diagnostics["acceptance_rate"].mean().item()

    def adapt(self, u: Tensor, betas: Tensor) -> Tensor:
        """Steps at the inner `betas` with which about `TARGET_ACCEPTANCE` of the moves are taken, (K - 2,), float64.

        The walkers `u`, which serve no other purpose, come from the base. In each round at a b ``log step`` changes by
        acceptance minus target, and the L leapfrog steps together stay within `MAX_STEP`.
        """
        step_size, step_sizes = self.scheduler.step_size, []
        max_step = MAX_STEP / getattr(self.scheduler.config, "num_leapfrog_steps", 1)
        for k in self.progress_bar(range(1, len(betas) - 1)):
            for _round in range(ADAPTATION_ROUNDS):
                step_size = min(step_size, max_step)
                u, _, rate = self.move(u, betas[k].item(), step_size)
                step_size = step_size * math.exp(rate - TARGET_ACCEPTANCE)
            step_sizes.append(min(step_size, max_step))
        return torch.tensor(step_sizes, dtype=torch.float64)

    def weigh(self, u: Tensor, betas: Tensor, step_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Walk along `betas`, up or down: log weights, (B,), and acceptance, (K - 2,), on the CPU in float64; its end.

        Args:
            u: Exact samples of the density at ``betas[0]``, shape (B, ...).
            betas: Shape (K,).
            step_sizes: Steps at the inner ones, in their order, shape (K - 2,).
        """
        log_weights, acceptance, gains = torch.zeros(len(u), dtype=torch.float64), [], betas.diff().tolist()
        for k in self.progress_bar(range(1, len(betas) - 1)):
            u, difference, rate = self.move(u, betas[k].item(), step_sizes[k - 1].item())
            log_weights += gains[k - 1] * difference.cpu().double()
            acceptance.append(rate)
        base_energy, energy = self.ends(u)
        log_weights += gains[-1] * (base_energy - energy).cpu().double()
        return log_weights, torch.tensor(acceptance, dtype=torch.float64), u


def path_betas(num_temperatures: int) -> Tensor:
    """``b_1 = 0 .. b_K = 1``, shape (K,), float64, K = `num_temperatures` >= 2; K = 2 is plain importance sampling.

    A logistic curve from -4 to 4, scaled to [0, 1], whose small steps lie at both ends, where log weights vary most
    (Wu et al. 2017).
    """
    check_count("num_temperatures", num_temperatures, 2)
    line = torch.linspace(0.0, 1.0, num_temperatures, dtype=torch.float64)
    curve = torch.sigmoid(SIGMOID_WIDTH * (2.0 * line - 1.0))
    return (curve - curve[0]) / (curve[-1] - curve[0])


ADAPTATION_CHAINS = 128  # the steps are set on so many chains, or on one batch
NUM_RESAMPLES = 1000  # of the bootstrap over walkers


@dataclass(frozen=True, eq=False)
class LogZBracket:
    """Estimates of ``log Z`` from below and from above, in nats, and how far to trust them.

    Attributes of the upper bound are None without samples of the model; those of the reverse walk end in ``_reverse``.
    """

    log_z_lower: float  # log of the mean forward weight; with few effective samples far below log Z
    log_z_lower_interval: tuple[float, float] | None  # its 95 % interval, by the bootstrap over walkers
    log_z_upper: float | None  # minus the log of the mean reverse weight
    log_z_upper_interval: tuple[float, float] | None  # likewise, over distinct samples; None for a single one
    num_reverse_starts: int | None  # distinct samples that the reverse walkers started from
    effective_sample_size: float  # of the forward weights, ``(sum w)^2 / sum w^2``, 1..num_chains
    effective_sample_size_reverse: float | None  # of the weights summed over copies of a sample, 1..num_reverse_starts
    acceptance_rate: Tensor  # share of the moves that were taken at b_2 .. b_{K-1}, shape (num_temperatures - 2,)
    acceptance_rate_reverse: Tensor | None  # the same, in the same order of the b's
    step_size: Tensor  # the frozen steps there, in the base's standard deviations, shape (num_temperatures - 2,)
    num_chains: int  # forward walkers
    num_temperatures: int  # K
    log_weights: Tensor  # of the forward walkers, shape (num_chains,), float64
    ends: Tensor  # where they came to, shape (num_chains, ...): with these weights, samples of the model

    @property
    def gap(self) -> float | None:
        """``log_z_upper - log_z_lower``; below zero only by sampling error or with samples not from the model."""
        return None if self.log_z_upper is None else self.log_z_upper - self.log_z_lower


@no_grad
def estimate_log_z(
    energy_fn: Callable[[Tensor], Tensor],
    base: GaussianBase,
    samples: Tensor | None = None,
    temperature: float = 1.0,
    sample_groups: Tensor | None = None,
    num_chains: int = 512,
    num_temperatures: int = 500,
    scheduler: EnergySampler | None = None,
    num_steps: int = 1,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress_bar: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> LogZBracket:
    """A bracket of ``log Z`` of ``exp(-E(x) / temperature)`` by annealed importance sampling, both ways.

    Costs ``num_steps * L + 1`` gradients (L = 1 for MALA) for each walker and temperature. The density of one denoising
    step, ``E(x_t, t) - log q(x_next | x_t)``, is an `energy_fn` that holds ``x_next`` fixed.

    Args:
        energy_fn: ``x -> E(x)``, shape (B,), differentiable; ``+inf`` where the density is zero, and then the upper
            bound stays too high by minus the log of the base's mass elsewhere.
        base: Where the walk begins, on the device and in the dtype of the energy. The nearer the target the better; if
            in doubt wider, not narrower.
        samples: Samples of the model for the upper bound, shape (N, ...), one reverse walker each; None gives no upper
            bound. What data in their place mean: see the module.
        sample_groups: Integers, shape (N,), equal for samples that are not independent because they are copies of one
            start, or come from copies of it; None = identical samples are one group, all others independent.
        temperature: T > 0; for Dual-MCMC ``(noise_std / step_size)^2`` of its chain on images. In float32, energies of
            size 1 leave errors of ``1e-7 / T`` nats.
        num_chains: Forward walkers >= 2.
        num_temperatures: K >= 2, both ends counted.
        scheduler: A `MALAScheduler` or `HMCScheduler`; its step is where the adaptation begins, its temperature is not
            used. None = MALA.
        num_steps: Updates at each temperature.
        batch_size: Walkers at a time; it bounds memory, and with it changes which random numbers a walker gets.
        generator: Random number generator.
        progress_bar: Wraps the indices of the inner temperatures, once in the adaptation and once per batch.

    Raises:
        ValueError: If an argument cannot be used, or a weight is not a number.
    """
    check_positive("temperature", temperature)
    num_chains = check_count("num_chains", num_chains, 2)
    num_steps = check_count("num_steps", num_steps, 1)
    batch_size = check_count("batch_size", batch_size, 1)
    if scheduler is not None and not isinstance(scheduler, MALAScheduler | HMCScheduler):
        raise ValueError(
            "scheduler must be a MALAScheduler or an HMCScheduler, which leave the density exactly invariant, got "
            f"{type(scheduler).__name__}."
        )
    if samples is not None:
        check_data("samples", samples)
        if samples.shape[1:] != base.mean.shape:
            shape = tuple(base.mean.shape)
            raise ValueError(f"samples must have base.mean's shape {shape} each, got {tuple(samples.shape)}.")
        if sample_groups is None:
            sample_groups = torch.unique(samples.flatten(1), dim=0, return_inverse=True)[1]
        elif sample_groups.shape != samples.shape[:1]:
            raise ValueError(
                f"sample_groups must have one number per sample, shape ({len(samples)},), got "
                f"{tuple(sample_groups.shape)}."
            )

    scheduler = MALAScheduler() if scheduler is None else copy.copy(scheduler)
    walk = AnnealedWalk(energy_fn, base, temperature, scheduler, num_steps, generator, progress_bar)
    betas = path_betas(num_temperatures)
    # 1. the steps, on walkers of their own
    adapting = walk.draw_base(min(ADAPTATION_CHAINS, batch_size))
    step_sizes = walk.adapt(adapting, betas)
    # 2. from the base to the target
    sizes = [min(batch_size, num_chains - first) for first in range(0, num_chains, batch_size)]
    forward = [walk.weigh(walk.draw_base(size), betas, step_sizes) for size in sizes]
    weights, acceptance = gather([walked[:2] for walked in forward], "forward")
    lower = log_mean_exp(weights)
    # 3. from the target to the base
    upper = upper_interval = ess_back = acceptance_back = num_starts = None
    if samples is not None:
        starts = [base.to_white(x.to(base.mean)) for x in samples.split(batch_size)]
        back = [walk.weigh(u, betas.flip(0), step_sizes.flip(0))[:2] for u in starts]
        weights_back, acceptance_back = gather(back, "reverse")
        assert sample_groups is not None
        interval = bootstrap_interval(weights_back, sample_groups)
        upper_interval = None if interval is None else (-interval[1], -interval[0])
        sums, _ = sum_groups(weights_back, sample_groups)
        upper, ess_back, num_starts = -log_mean_exp(weights_back), weights_effective_sample_size(sums), len(sums)
    return LogZBracket(
        log_z_lower=lower,
        log_z_lower_interval=bootstrap_interval(weights),
        log_z_upper=upper,
        log_z_upper_interval=upper_interval,
        num_reverse_starts=num_starts,
        effective_sample_size=weights_effective_sample_size(weights),
        effective_sample_size_reverse=ess_back,
        acceptance_rate=acceptance,
        acceptance_rate_reverse=None if acceptance_back is None else acceptance_back.flip(0),
        step_size=step_sizes,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        log_weights=weights,
        ends=base.from_white(torch.cat([u for _, _, u in forward])),
    )


def sum_groups(log_weights: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log of the summed weights of each group, shape (G,), and the groups' sizes; None = each weight is a group."""
    if groups is None:
        return log_weights, torch.ones_like(log_weights)
    index, sizes = torch.unique(groups.to(log_weights.device), return_inverse=True, return_counts=True)[1:]
    largest = log_weights.max()
    sums = torch.zeros(len(sizes), dtype=log_weights.dtype, device=log_weights.device)
    sums.index_add_(0, index, (log_weights - largest).exp())
    return sums.log() + largest, sizes.to(log_weights)


def log_mean_exp(log_weights: Tensor) -> float:
    """``log mean w`` of log weights of shape (N,)."""
    return (torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))).item()


def bootstrap_interval(log_weights: Tensor, groups: Tensor | None = None, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of ``log mean w``; None for fewer than two groups, which have no spread.

    `groups` are integers, shape (N,), equal for weights that are not independent; None = all are independent.
    """
    sums, sizes = (values.cpu().double() for values in sum_groups(log_weights, groups))
    if len(sums) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(sums), (NUM_RESAMPLES, len(sums)), generator=generator)
    means = torch.logsumexp(sums[chosen], dim=1) - sizes[chosen].sum(dim=1).log()
    ordered = means.sort().values
    edge = round(0.025 * NUM_RESAMPLES)
    return ordered[edge].item(), ordered[-1 - edge].item()


def weights_effective_sample_size(log_weights: Tensor) -> float:
    """``(sum w)^2 / sum w^2``: N for equal weights, 1 if one outweighs all others (Kong 1992)."""
    return (2.0 * torch.logsumexp(log_weights, dim=0) - torch.logsumexp(2.0 * log_weights, dim=0)).exp().item()


def gather(walks: list[tuple[Tensor, Tensor]], direction: str) -> tuple[Tensor, Tensor]:
    """Log weights of all batches, shape (N,), and their mean acceptance, shape (K - 2,)."""
    log_weights = torch.cat([weights for weights, _ in walks])
    bad = int((torch.isnan(log_weights) | (log_weights == math.inf)).sum())
    if bad or (log_weights == -math.inf).all():
        number = f"{bad} of {len(log_weights)}" if bad else "all"
        raise ValueError(
            f"{number} {direction} weights cannot be used: the energy is infinite or NaN along the walk; check "
            "energy_fn, the samples, and that the base overlaps the target."
        )
    return log_weights, torch.stack([len(weights) * rate for weights, rate in walks]).sum(dim=0) / len(log_weights)
