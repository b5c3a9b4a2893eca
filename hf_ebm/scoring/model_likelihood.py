"""How likely a trained model finds held-out data: its energy's ``log Z`` bracketed, in nats and bits per dimension.

The density is ``p(x) = exp(-E(x, 0) / T) / Z`` on a box and 0 outside (`hf_ebm.scoring.box` says why), images on
``[-1, 1]`` and half a level around. T is 1 for DDAEBM; for Dual-MCMC Teaching it is that of its chain on images,
``(noise_std / step_size)^2``, unless another one is asked for. It is the *energy's* density: a generator's samples have
another, which needs other means.

Both ends of log Z are stochastic bounds. The lower one says how likely the data are at most. The
upper one, which bounds the likelihood from below, starts from approximate samples and may err to
either side (`hf_ebm.scoring.model_log_z`).
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hf_ebm.devices import execution_device
from hf_ebm.inference_mode import no_grad
from hf_ebm.models.eval_copy import eval_copy
from hf_ebm.progress import ProgressBar, no_bar
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.scoring.box import Box
from hf_ebm.scoring.energy import compute_energies
from hf_ebm.scoring.gaussian_base import GaussianBase
from hf_ebm.scoring.likelihood import (
    bits_per_dim,
    dequantise_normal,
    dequantise_uniform,
    log_likelihood,
    log_z_on_grid,
)
from hf_ebm.scoring.model_log_z import (
    LikelihoodSettings,
    bracket_on_box,
    bracket_record,
    model_temperature,
)

VECTOR_BOX = Box(-3.0, 3.0)  # the 2-D sets reach about 2.2
GRID_RESOLUTION = 512


def training_noise_std(pipeline: Any) -> float:
    """Noise on the images that the energy at t = 0 was trained on: x_0's for DDAEBM, else that of the chain."""
    if isinstance(pipeline.scheduler, EnergySampler):
        return pipeline.scheduler.noise_std
    return (1.0 - pipeline.coefficients.alphas_cumprod[0].item()) ** 0.5


@no_grad
def measure_likelihood(
    pipeline: Any,
    train: Tensor,
    held_out: Tensor,
    num_levels: int | None = None,
    settings: LikelihoodSettings | None = None,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """The bracket, and the held-out data's likelihood at both its ends, as numbers and words that JSON can hold.

    Args:
        pipeline: A `DDAEBMPipeline` or `DualMCMCPipeline` with its energy; computed on the energy's device, in float32.
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
        ValueError: If the pipeline has no energy, or the data do not lie in the box or on the levels.
    """
    settings = LikelihoodSettings() if settings is None else settings
    if pipeline.energy_model is None:
        raise ValueError("pipeline has no energy_model, so it has no likelihood.")
    began, generator = time.perf_counter(), torch.Generator().manual_seed(settings.seed)
    temperature = model_temperature(pipeline) if settings.temperature is None else settings.temperature
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

    ``uniform`` and ``normal`` bound the same number, each at both ends of log Z. ``full_gaussian`` is a Gaussian fitted
    to the training data with uniform noise (left out unless there are more of them than dimensions), ``log2_levels``
    what the uniform density takes.
    """
    dims, std = held_out[0].numel(), training_noise_std(pipeline)
    uniform, normal = (
        dequantise_uniform(held_out, num_levels, generator),
        dequantise_normal(held_out, std, num_levels, generator),
    )
    records: dict[str, Any] = {}
    for name, (x, log_q) in (("uniform", uniform), ("normal", normal)):
        energies = compute_energies(pipeline.energy_model, x)
        records[name] = {
            end: bits_per_dim(log_likelihood(energies, log_z, temperature), log_q.cpu(), dims).mean().item()
            for end, log_z in ends.items()
        }
    records["normal"]["noise_std"] = std
    if len(train) > dims:  # else it has no width in some directions
        gaussian = GaussianBase.fit_full(dequantise_uniform(train, num_levels, generator)[0], min_std=1e-3)
        records["full_gaussian"] = bits_per_dim(gaussian.log_prob(uniform[0]), uniform[1], dims).mean().item()
    records["log2_levels"] = math.log2(num_levels)
    return records
