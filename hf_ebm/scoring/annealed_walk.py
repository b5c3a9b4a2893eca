"""The walk of annealed importance sampling, between a Gaussian base and a target, and the temperatures it visits.

`hf_ebm.scoring.annealing` says what is made of it. The moves are MALA or HMC of `hf_ebm.schedulers`, in the coordinates
u where the base is standard normal, ``x = mean + L u``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.chains import run_chain
from hf_ebm.counting import check_count
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.scoring.gaussian_base import GaussianBase

SCHEDULES = ("sigmoid", "linear")
SIGMOID_WIDTH = 4.0  # the sigmoid is taken from -4 to 4
MAX_STEP = math.pi / 2  # of L leapfrog steps together: a quarter turn in the base, beyond which they swing back


@dataclass(frozen=True, eq=False)
class AnnealedWalk:
    """The walk between base and target, of u, where the base is ``N(0, I)`` and the target's Z is that of x.

    Attributes:
        energy_fn: ``x -> E(x)``, shape (B,).
        base: The base.
        temperature: T.
        scheduler: The sampler, whose step is set before each move.
        num_steps: Updates at each b.
        generator: Random number generator.
        progress_bar: Wraps the indices of the inner b's.
    """

    energy_fn: Callable[[Tensor], Tensor]
    base: GaussianBase
    temperature: float
    scheduler: EnergySampler
    num_steps: int
    generator: torch.Generator | None
    progress_bar: Callable[[Iterable[int]], Iterable[int]]

    def draw_base(self, number: int) -> Tensor:
        """Exact samples of the base, shape (number, ...)."""
        mean = self.base.mean
        return randn_tensor((number, *mean.shape), generator=self.generator, device=mean.device, dtype=mean.dtype)

    def ends(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``E_base(u) = ||u||^2 / 2 + D/2 log 2 pi`` and ``E(x(u)) / T - log |det L|``, each of shape (B,).

        Raises:
            ValueError: If the energy does not return one number per sample.
        """
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

    def adapt(self, u: Tensor, betas: Tensor, target_acceptance: float, num_rounds: int) -> Tensor:
        """Steps at the inner `betas` with which about `target_acceptance` of the moves are taken, (K - 2,), float64.

        The walkers `u`, which serve no other purpose, come from the base. In each round at a b ``log step`` changes by
        acceptance minus target, and the L leapfrog steps together stay within `MAX_STEP`.
        """
        step_size, step_sizes = self.scheduler.step_size, []
        max_step = MAX_STEP / getattr(self.scheduler.config, "num_leapfrog_steps", 1)
        for k in self.progress_bar(range(1, len(betas) - 1)):
            for _round in range(num_rounds):
                step_size = min(step_size, max_step)
                u, _, rate = self.move(u, betas[k].item(), step_size)
                step_size = step_size * math.exp(rate - target_acceptance)
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


def path_betas(num_temperatures: int, schedule: str = "sigmoid") -> Tensor:
    """``b_1 = 0 .. b_K = 1``, shape (K,), float64, K = `num_temperatures` >= 2; K = 2 is plain importance sampling.

    ``"sigmoid"``: a logistic curve from -4 to 4, scaled to [0, 1], whose small steps lie at both ends, where log
    weights vary most (Wu et al. 2017). ``"linear"``: equal steps.

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_count("num_temperatures", num_temperatures, 2)
    line = torch.linspace(0.0, 1.0, num_temperatures, dtype=torch.float64)
    if schedule == "linear":
        return line
    if schedule == "sigmoid":
        curve = torch.sigmoid(SIGMOID_WIDTH * (2.0 * line - 1.0))
        return (curve - curve[0]) / (curve[-1] - curve[0])
    raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}.")
