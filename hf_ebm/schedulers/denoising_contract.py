"""Whether a scheduler follows a DDAEBM's denoising chain: a check of what it does, whatever its class.

The generator predicts the clean sample ``x0`` of the state ``x_{t+1}``, once for each timestep t. A step must lead
from a state of the noising process to one of the same process, for any ``x0`` and whatever was predicted before:

    x_{t+1} ~ q(x_{t+1} | x0)   =>   step(x0, t, x_{t+1}) ~ q(x_{s+1} | x0),   s = the next timestep

and the last one to ``x0``. DDPM does so by the posterior, DDIM without noise. Solvers of higher order mix predictions
of several timesteps, and those in other coordinates (Euler, Heun) need scaled inputs: both fail. At which noise level
the chain begins is not checked.
"""

from __future__ import annotations

import copy
import inspect
from itertools import pairwise
from typing import Any

import torch

from hf_ebm.schedulers.scheduling_ddaebm import BETA_SCHEDULES, DDAEBMScheduler

NUM_SAMPLES = 2**16
TOLERANCE = 0.03  # of the standardised error's variance and correlations, which chance moves by 0.006 and 0.004
FINAL_ERROR = 0.05  # of the last state; the cleanest state of the default chain has noise of 0.0105


@torch.no_grad()
def contract_violation(
    scheduler: Any, num_inference_steps: int, sample_ndim: int = 3, bound: float = 1.0
) -> str | None:
    """What a scheduler does other than the denoising chain in its config; None if it follows it.

    Args:
        scheduler: A scheduler that takes predicted clean samples; a copy of it is run.
        num_inference_steps: Steps to take.
        sample_ndim: Dimensions of one sample: 3 for images, 1 for vectors.
        bound: The check's clean samples lie in [-bound, bound]; clipping beyond it is not a violation.
    """
    if scheduler.config.get("beta_schedule") not in BETA_SCHEDULES:
        return "its betas are not those of a DDAEBM's chain"
    q = DDAEBMScheduler.from_config(scheduler.config).coefficients
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.tolist()
    whole = all(t == int(t) and 0 <= t < q.num_timesteps for t in timesteps)
    if not whole or any(t <= after for t, after in pairwise(timesteps)):
        return f"its timesteps are {timesteps}, not falling whole numbers below {q.num_timesteps}"

    random = torch.Generator().manual_seed(0)
    options = {"generator": random} if "generator" in inspect.signature(scheduler.step).parameters else {}
    shape = (NUM_SAMPLES, *[1] * sample_ndim)
    x0 = torch.zeros(shape)
    for t, after in pairwise([*scheduler.timesteps, None]):
        earlier = x0
        x0 = bound * (2.0 * torch.rand(shape, generator=random) - 1.0)
        states = torch.full((NUM_SAMPLES,), int(t) + 1)
        x_next = q.q_sample(x0, states, torch.randn(shape, generator=random))
        x = scheduler.step(x0, t, x_next, return_dict=False, **options)[0]
        if after is None:
            return None if (x - x0).square().mean().sqrt() <= FINAL_ERROR else "its last step does not end at x0"
        abar = q.alphas_cumprod[int(after) + 1]
        error = (x - abar.sqrt() * x0) / (1.0 - abar).sqrt()
        deviations = [error.square() - 1.0, error * x0 / bound, error * earlier / bound]
        if not all(abs(deviation.mean()) <= TOLERANCE for deviation in deviations):  # NaN is a violation, too
            return f"its step at timestep {int(t)} leads to another distribution than that of the next state"
    return "it has no timesteps"
