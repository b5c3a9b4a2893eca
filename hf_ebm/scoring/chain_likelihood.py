"""The likelihood of a DDAEBM as what it is trained to be, a chain of conditional energies, by their log Z's.

    p(x_0 .. x_T) = N(x_T; 0, I) prod_t p(x_t | x_{t+1})

    p(x_t | x_{t+1}) = exp(-E(x_t, t)) q(x_{t+1} | x_t) / Z(x_{t+1}, t)

    log p(x_0) >= E_q [ log p(x_0 .. x_T) - log q(x_1 .. x_T | x_0) ]
                = E_q [ log N(x_T; 0, I) - sum_t ( E(x_t, t) + log Z(x_{t+1}, t) ) ]

The evidence lower bound over the noise process q, where the transition densities cancel. The chain is on all of R^D:
its conditionals have finite integrals, because q(x_{t+1} | .) is Gaussian in x_t and the energies are bounded below.

Source: the chain and its bound are those of diffusion models (Ho et al. 2020); this evaluation of it is ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.devices import execution_device
from hf_ebm.inference_mode import no_grad
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.progress import ProgressBar, no_bar
from hf_ebm.schedulers.metropolis import half_squared_norm
from hf_ebm.scoring.conditional_log_z import conditional_energy, denoising_base, estimate_conditional_log_z
from hf_ebm.scoring.equilibration import equilibrate
from hf_ebm.scoring.gaussian_base import GaussianBase
from hf_ebm.scoring.likelihood import bits_per_dim, dequantise_normal
from hf_ebm.scoring.model_log_z import LikelihoodSettings


def check_has_chain(pipeline: Any) -> None:
    """Raise a `ValueError` if the pipeline is not a DDAEBM with its energy and generator."""
    if any(getattr(pipeline, name, None) is None for name in ("energy_model", "generator_model", "coefficients")):
        raise ValueError(
            "pipeline must be a DDAEBMPipeline with an energy_model and a generator_model: others have no denoising "
            "steps."
        )


@no_grad
def measure_chain_likelihood(
    pipeline: Any,
    train: Tensor,
    held_out: Tensor,
    num_levels: int | None = None,
    settings: LikelihoodSettings | None = None,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """Brackets of ``log Z(x_{t+1}, t)`` along the noise process of each held-out sample, and what they say together.

    The reverse walks start at the generator's draws of ``x_t`` given ``x_{t+1}``, equilibrated; of `settings`, ``base``
    and ``reverse_from`` are not used. As ever, an upper bound from such starts is not strict.

    Args:
        pipeline: A `DDAEBMPipeline` with its energy.
        train: Training samples, shape (N, ...): their Gaussian gives the bases.
        held_out: Samples to follow, shape (M, ...): 2 T walks each.
        num_levels: L of images on levels; then x_0 is a level with the chain's own noise, normal and cut off at the
            bin, so that bits per dimension of the levels can be given. None for vectors.
        settings: Chains, temperatures, leapfrog steps, equilibration, seed; None = the defaults.
        progress_bar: Wraps the temperatures of each walk.

    Returns:
        ``steps``: for each t the bounds of log Z of each sample, their mean gap and effective sample size;
        ``log_likelihood`` (the evidence lower bound of x_0, mean over samples) and with levels ``bits_per_dim``, at the
        lower and the upper bounds of log Z.

    Raises:
        ValueError: If the pipeline is not a DDAEBM with an energy, or `held_out` is not on the levels.
    """
    settings = LikelihoodSettings() if settings is None else settings
    check_has_chain(pipeline)
    began, generator = time.perf_counter(), torch.Generator().manual_seed(settings.seed)
    model, q = pipeline.energy_model, pipeline.coefficients
    options = settings.walk_options(generator, progress_bar)
    device = execution_device(model)
    clean = GaussianBase.fit_full(train.to(device))
    x = held_out.to(device)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return randn_tensor(shape, generator=generator, device=device, dtype=x.dtype)

    if num_levels is None:
        x_t, log_q = q.q_sample(x, torch.zeros(len(x), dtype=torch.long), draw(tuple(x.shape))), None
    else:
        noise_std = math.sqrt(1.0 - q.alphas_cumprod[0].item())
        x_t, log_q = dequantise_normal(x, noise_std, num_levels, generator)
    bounds = {"at_log_z_lower": torch.zeros(len(x)), "at_log_z_upper": torch.zeros(len(x))}
    steps = []
    frozen = eval_copy(model)
    for t in range(q.num_timesteps):
        step = torch.full((len(x),), t, device=device)
        x_next = q.q_step(x_t, step, draw(tuple(x.shape)))

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
