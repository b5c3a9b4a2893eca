"""Evaluate the likelihood of held-out data under a trained model, in nats and bits per dimension.

The energy's density is ``p(x) = exp(-E(x, 0) / T) / Z`` on a box and 0 outside
(see `hf_ebm.likelihood.base_distributions`); for images the box is ``[-1, 1]`` widened by half a gray level. T is 1
for DDAEBM and ``(noise_std / step_size)^2`` of the x-chain for Dual-MCMC Teaching, unless another value is given. This
is the density of the *energy*; the generator's samples have another.

Both bounds of log Z are stochastic. The lower bound gives the largest likelihood that the data can have. The upper one,
which bounds the likelihood from below, starts from approximate samples and may err in either direction
(see `hf_ebm.likelihood.log_partition`).

A DDAEBM is also a chain of conditional energies:

    p(x_0 .. x_T) = N(x_T; 0, I) prod_t p(x_t | x_{t+1})

    p(x_t | x_next) = exp(-E(x_t, t)) q(x_next | x_t) / Z(x_next, t)

    Z(x_next, t) = integral over x_t of exp(-E(x_t, t)) q(x_next | x_t)

    log p(x_0) >= E_q [ log N(x_T; 0, I) - sum_t ( E(x_t, t) + log Z(x_{t+1}, t) ) ]

The last line is the evidence lower bound over the noise process q, whose transition densities cancel. Each
``log Z(x_next, t)`` is much easier to estimate than log Z of ``E(., t)``, because ``q(x_next | x_t)`` keeps
``x_t`` near ``x_next / sqrt(1 - beta_{t+1})``. The base of its AIS is what ``q(x_t | x_next)`` would be if
the clean data were Gaussian (`denoising_base`). All conditionals have finite integrals on R^D, because
``q(x_{t+1} | .)`` is Gaussian in x_t and the energies are bounded below.

Source: the model of Geng et al., ICML 2024; the bound of diffusion models (Ho et al. 2020). Estimating the
conditional partition functions is ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.likelihood.ais import LogZBracket, estimate_log_z
from hf_ebm.likelihood.base_distributions import Box, GaussianBase
from hf_ebm.likelihood.dequantization import (
    bits_per_dim,
    dequantise_normal,
    dequantise_uniform,
    log_likelihood,
    log_z_on_grid,
)
from hf_ebm.likelihood.log_partition import LikelihoodSettings, bracket_on_box, bracket_record
from hf_ebm.likelihood.warmup import equilibrate
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.scoring.statistics import compute_energies
from hf_ebm.utils.logging import ProgressBar, no_bar
from hf_ebm.utils.torch_utils import execution_device, no_grad


def conditional_energy(
    energy_fn: Callable[[Tensor], Tensor], x_next: Tensor, t: int, coefficients: DiffusionCoefficients
) -> Callable[[Tensor], Tensor]:
    """``x_t -> E(x_t, t) - log q(x_next | x_t)``, (B, ...) -> (B,), for one noisier state, shape (...)."""

    def energy(x_t: Tensor) -> Tensor:
        step = torch.full((len(x_t),), t, device=x_t.device)
        return energy_fn(x_t) - coefficients.log_q_step(x_next.expand_as(x_t), x_t, step)

    return energy


def denoising_base(clean: GaussianBase, x_next: Tensor, t: int, coefficients: DiffusionCoefficients) -> GaussianBase:
    """``q(x_t | x_next)`` for clean data ``N(m, C)``: what remains of x_t's marginal after `x_next` is seen.

        x_t ~ N(m_t, C_t),  m_t = sqrt(abar_t) m,  C_t = abar_t C + (1 - abar_t) I
        gain K = a C_t (a^2 C_t + beta I)^-1,  a = sqrt(1 - beta),  beta = beta_{t+1}
        x_t | x_next ~ N(m_t + K (x_next - a m_t), C_t - a K C_t)

    Args:
        clean: ``N(m, C)``, for example `GaussianBase.fit_full` of training data.
        x_next: One noisier state, shape of ``clean.mean``.
        t: Index of the cleaner state, 0..T-1.
        coefficients: The chain.

    Raises:
        ValueError: If `t` is out of its range or `x_next` has another shape than the data.
    """
    if not 0 <= t < coefficients.num_timesteps:
        raise ValueError(f"t must lie in 0..{coefficients.num_timesteps - 1}, got {t!r}.")
    if x_next.shape != clean.mean.shape:
        raise ValueError(f"x_next must have shape {tuple(clean.mean.shape)}, got {tuple(x_next.shape)}.")
    covariance = clean.covariance.cpu().double()  # MPS has no float64
    eye = torch.eye(len(covariance), dtype=torch.float64)
    abar, beta = coefficients.alphas_cumprod[t].item(), coefficients.betas[t + 1].item()
    a = (1.0 - beta) ** 0.5
    mean_t = abar**0.5 * clean.mean.cpu().double().flatten()
    cov_t = abar * covariance + (1.0 - abar) * eye
    gain = a * torch.linalg.solve(a**2 * cov_t + beta * eye, cov_t).T
    mean = mean_t + gain @ (x_next.cpu().double().flatten() - a * mean_t)
    remaining = cov_t - a * gain @ cov_t
    return GaussianBase.full(mean.to(clean.mean).reshape(clean.mean.shape), 0.5 * (remaining + remaining.T))


@no_grad
def estimate_conditional_log_z(
    energy_fn: Callable[[Tensor], Tensor],
    coefficients: DiffusionCoefficients,
    x_next: Tensor,
    t: int,
    clean: GaussianBase,
    samples: Sequence[Tensor] | None = None,
    **settings: Any,
) -> list[LogZBracket]:
    """A bracket of ``log Z(x_next, t)`` for each of the noisier states `x_next`, shape (N, ...).

    `energy_fn` is ``x_t -> E(x_t, t)``, `clean` the Gaussian of the clean data, for the base. `samples` are for each
    noisier state of the model's ``p(x_t | x_next)``, shape (M, ...), for the upper bound, which is strict only if they
    are exact; None gives no upper bounds. The `settings` are those of `estimate_log_z`.
    """
    if samples is not None and len(samples) != len(x_next):
        raise ValueError(f"samples must have one entry per noisier state, {len(x_next)}, got {len(samples)}.")
    return [
        estimate_log_z(
            conditional_energy(energy_fn, x_next[i], t, coefficients),
            denoising_base(clean, x_next[i], t, coefficients),
            None if samples is None else samples[i],
            **settings,
        )
        for i in range(len(x_next))
    ]


VECTOR_BOX = Box(-3.0, 3.0)  # the 2-D sets reach about 2.2
GRID_RESOLUTION = 512


@no_grad
def evaluate_likelihood(
    pipeline: Any,
    train: Tensor,
    held_out: Tensor,
    num_levels: int | None = None,
    settings: LikelihoodSettings | None = None,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """The bracket, and the held-out data's likelihood at both its ends, for JSON.

    Args:
        pipeline: A generation pipeline with its energy.
        train: Training samples, shape (N, ...), for ``reverse_from="data"`` and for the Gaussian to compare with.
        held_out: Samples that the model was not trained on, shape (M, ...).
        num_levels: L of images, whose values are the levels ``2 y / (L - 1) - 1``; None for vectors.
        settings: How the bracket is made; None = the defaults.
        progress_bar: Wraps the temperatures of each walk.

    Returns:
        ``log_z`` (the bracket, gap, effective sample sizes), ``mean_energy`` (``E / T`` of held-out data, of the ends
        of the forward walk and of the reverse starts: where they differ by much, data are not what the energy finds
        likely), ``log_likelihood`` and, with levels, ``bits_per_dim`` at both ends of log Z, ``density``,
        ``temperature``, ``settings``, ``seconds``; for 2-D data ``log_z_grid``.

    Raises:
        ValueError: If the pipeline has no energy or no scheduler (which gives the energy's temperature), or the data do
            not lie in the box or on the levels.
    """
    settings = settings or LikelihoodSettings()
    for needed in ("energy_model", "scheduler"):
        if getattr(pipeline, needed) is None:
            raise ValueError(f"pipeline has no {needed}, so it has no likelihood; load it.")
    began, generator = time.perf_counter(), torch.Generator().manual_seed(settings.seed)
    temperature = pipeline.temperature if settings.temperature is None else settings.temperature
    box = VECTOR_BOX if num_levels is None else Box.of_levels(num_levels)
    box.from_box(torch.cat([train, held_out]))  # raises where data lie outside
    model = pipeline.energy_model
    device = execution_device(model)
    train, held_out = train.to(device), held_out.to(device)
    held_out_energies = compute_energies(model, held_out)
    starts_of = dequantise_uniform(train, num_levels, generator)[0] if num_levels else train

    frozen = eval_copy(model)

    def energy_fn(x: Tensor) -> Tensor:
        return frozen(x, 0).energy

    bracket, mean_energy = bracket_on_box(
        pipeline, energy_fn, box, temperature, starts_of, settings, generator, progress_bar
    )
    mean_energy["held_out"] = (held_out_energies / temperature).mean().item()
    record: dict[str, Any] = {"log_z": bracket_record(bracket), "mean_energy": mean_energy}
    if held_out.shape[1:] == (2,):
        record["log_z_grid"] = log_z_on_grid(energy_fn, box.high, GRID_RESOLUTION, temperature, device=device)
    assert bracket.log_z_upper is not None  # there were samples
    ends = {"at_log_z_lower": bracket.log_z_lower, "at_log_z_upper": bracket.log_z_upper}
    record["log_likelihood"] = {
        name: log_likelihood(held_out_energies, log_z, temperature).mean().item() for name, log_z in ends.items()
    }
    if num_levels is not None:
        record["bits_per_dim"] = bits_records(pipeline, train, held_out, num_levels, temperature, ends, generator)
    return record | {
        "density": f"exp(-E(x, 0) / T) / Z on [{box.low:g}, {box.high:g}] in each of {held_out[0].numel()} dimensions",
        "upper_bound_is_strict": False,
        "temperature": temperature,
        "num_held_out": len(held_out),
        "num_levels": num_levels,
        "settings": asdict(settings),
        "seconds": time.perf_counter() - began,
    }


def bits_records(
    pipeline: Any,
    train: Tensor,
    held_out: Tensor,
    num_levels: int,
    temperature: float,
    ends: dict[str, float],
    generator: torch.Generator,
) -> dict[str, Any]:
    """Upper bounds of the held-out data's bits per dimension by both dequantisations, and two models to compare with.

    ``uniform`` and ``normal`` (with the noise of the training data, if it had some) bound the same number, each at both
    ends of log Z. ``full_gaussian`` is a Gaussian fitted to the training data with uniform noise (left out unless there
    are more of them than dimensions), ``log2_levels`` what the uniform density takes.
    """
    dims, std = held_out[0].numel(), pipeline.data_noise_std
    uniform = dequantise_uniform(held_out, num_levels, generator)
    dequantised = {"uniform": uniform}
    if std > 0.0:
        dequantised["normal"] = dequantise_normal(held_out, std, num_levels, generator)
    records: dict[str, Any] = {}
    for name, (x, log_q) in dequantised.items():
        energies = compute_energies(pipeline.energy_model, x)
        records[name] = {
            end: bits_per_dim(log_likelihood(energies, log_z, temperature), log_q.cpu(), dims).mean().item()
            for end, log_z in ends.items()
        }
    if "normal" in records:
        records["normal"]["noise_std"] = std
    if len(train) > dims:  # else it has no width in some directions
        gaussian = GaussianBase.fit_full(dequantise_uniform(train, num_levels, generator)[0], min_std=1e-3)
        records["full_gaussian"] = bits_per_dim(gaussian.log_prob(uniform[0]), uniform[1], dims).mean().item()
    records["log2_levels"] = math.log2(num_levels)
    return records


def check_has_chain(pipeline: Any) -> None:
    """Raise a `ValueError` if the pipeline has no denoising steps, each with an energy and a generator."""
    if any(getattr(pipeline, name, None) is None for name in ("energy_model", "generator_model", "coefficients")):
        raise ValueError(
            "pipeline must have denoising steps (a DDAEBMPipeline has) with an energy_model and a generator_model, got "
            f"a {type(pipeline).__name__} without."
        )


@no_grad
def evaluate_chain_likelihood(
    pipeline: Any,
    train: Tensor,
    held_out: Tensor,
    num_levels: int | None = None,
    settings: LikelihoodSettings | None = None,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """Brackets of ``log Z(x_{t+1}, t)`` along the noise process of each held-out sample, and the evidence lower bound.

    The arguments are those of `evaluate_likelihood`, the pipeline is a `DDAEBMPipeline`. The reverse walks start at the
    generator's draws of ``x_t`` given ``x_{t+1}``, equilibrated; ``base`` and ``reverse_from`` of `settings` are not
    used. With levels, x_0 is a level with the chain's own noise, normal and cut off at the bin.

    Returns:
        ``steps``: for each t the bounds of log Z of each sample, their mean gap and effective sample size;
        ``log_likelihood`` (the evidence lower bound of x_0, mean over samples) and with levels ``bits_per_dim``, at the
        lower and the upper bounds of log Z.

    Raises:
        ValueError: If the pipeline is not a DDAEBM with an energy, or `held_out` is not on the levels.
    """
    settings = settings or LikelihoodSettings()
    check_has_chain(pipeline)
    began, generator = time.perf_counter(), torch.Generator().manual_seed(settings.seed)
    model, q = pipeline.energy_model, pipeline.coefficients
    options = settings.walk_options(generator, progress_bar)
    device = execution_device(model)
    clean = GaussianBase.fit_full(train.to(device))
    x = held_out.to(device)

    def draw() -> Tensor:
        return randn_tensor(x.shape, generator=generator, device=device, dtype=x.dtype)

    if num_levels is None:
        x_t, log_q = q.q_sample(x, torch.zeros(len(x), dtype=torch.long), draw()), None
    else:
        noise_std = math.sqrt(1.0 - q.alphas_cumprod[0].item())
        x_t, log_q = dequantise_normal(x, noise_std, num_levels, generator)
    bounds = {"at_log_z_lower": torch.zeros(len(x)), "at_log_z_upper": torch.zeros(len(x))}
    steps = []
    frozen = eval_copy(model)
    for t in range(q.num_timesteps):
        step = torch.full((len(x),), t, device=device)
        x_next = q.q_step(x_t, step, draw())

        def energy_fn(x_t: Tensor, t: int = t) -> Tensor:
            return frozen(x_t, t).energy

        starts = [denoised_starts(pipeline, energy_fn, clean, state, t, settings, options) for state in x_next]
        brackets = estimate_conditional_log_z(energy_fn, q, x_next, t, clean, starts, **options)
        lower = torch.tensor([bracket.log_z_lower for bracket in brackets])
        upper = torch.tensor([bracket.log_z_upper for bracket in brackets])
        energies = energy_fn(x_t).float().cpu()
        bounds["at_log_z_lower"] -= energies + lower
        bounds["at_log_z_upper"] -= energies + upper
        sizes = [bracket.effective_sample_size for bracket in brackets]
        steps.append(
            {
                "t": t,
                "lower": lower.tolist(),
                "upper": upper.tolist(),
                "mean_gap": (upper - lower).mean().item(),
                "mean_effective_sample_size": sum(sizes) / len(sizes),
            }
        )
        x_t = x_next
    log_p_last = -half_squared_norm(x_t).cpu() - 0.5 * x[0].numel() * math.log(2.0 * math.pi)
    record: dict[str, Any] = {"steps": steps, "log_likelihood": {}, "bits_per_dim": {}}
    for name, bound in bounds.items():
        log_p = bound + log_p_last
        record["log_likelihood"][name] = log_p.mean().item()
        if log_q is not None:
            record["bits_per_dim"][name] = bits_per_dim(log_p, log_q.cpu(), x[0].numel()).mean().item()
    return record | {"num_held_out": len(x), "seconds": time.perf_counter() - began}


def denoised_starts(
    pipeline: Any,
    energy_fn: Callable[[Tensor], Tensor],
    clean: GaussianBase,
    x_next: Tensor,
    t: int,
    settings: LikelihoodSettings,
    options: dict[str, Any],
) -> Tensor:
    """The generator's draws of x_t given one `x_next`, equilibrated on the step's density, shape (num_chains, ...)."""
    q, number, generator = pipeline.coefficients, settings.num_chains, options["generator"]
    many = x_next.expand(number, *x_next.shape)
    step = torch.full((number,), t, device=x_next.device)
    latents = (number, pipeline.generator_model.config.latent_dim)
    z = randn_tensor(latents, generator=generator, device=x_next.device, dtype=x_next.dtype)
    noise = randn_tensor(many.shape, generator=generator, device=x_next.device, dtype=x_next.dtype)
    x0_pred = in_eval(pipeline.generator_model)(many, step, z).sample
    return equilibrate(
        conditional_energy(energy_fn, x_next, t, q),
        denoising_base(clean, x_next, t, q),
        q.posterior_sample(x0_pred, many, step, noise, noise_at_t0=True),
        num_steps=settings.equilibration_steps,
        scheduler=options["scheduler"],
        generator=generator,
        progress_bar=options["progress_bar"],
    ).samples
