"""Scores of how odd a sample is, larger = more out of distribution, from measures that any energy model gives.

A measure is a number per sample that needs no data set: the energy, the energies of all noise levels, the norm of the
energy's gradient, the compressed size of the image, the reconstruction error. A score is one measure, or several put
on one scale with the mean m and standard deviation s that they have on in-distribution data (`MeasureStatistics`):

    energy          E(x, 0)
    gradient_norm   ||grad_x E(x, 0)||                                Grathwohl et al., ICLR 2020 (there its negative)
    multiscale      mean_t (E(x_t, t) - m_t) / s_t                    ours
    typicality      |E(x, 0) - m|                                     Nalisnick et al. 2019, for one sample
    complexity      (E(x, 0) - m) / s - (L(x) - m_L) / s_L            after Serra et al., ICLR 2020
    reconstruction  mean squared error of what the model makes of x, against x
    combined        (E(x, 0) - m) / s + (error - m_e) / s_e           ours

Dual-MCMC Teaching reconstructs by its z-chain, g(z_revised) (Cui & Han 2023). A DDAEBM is given x with its first noise,
x_1 ~ q(x_1 | x), and its generator makes a clean image of it, for several x_1 and latents. That a diffusion's
reconstructions tell odd images is from Graham et al., CVPR workshops 2023, who use more noise as well.

Serra et al. subtract the bits L of a lossless compressor from -log2 p; an unnormalised energy has no such unit, so both
are standardised instead. x_t of the noise levels is made with one noise tensor for all samples, given by a seed: the
score of a sample does not depend on its neighbours, its place or the process.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import energy_grad
from hf_ebm.scoring.energy import compute_energies

Measures = Mapping[str, Tensor]
NUM_DENOISING_DRAWS = 8  # of x_1 and latent for a DDAEBM's reconstruction error


@dataclass(frozen=True)
class MeasureStatistics:
    """Mean and standard deviation of a measure on in-distribution data, one number each, or one per noise level."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, values: Tensor, name: str = "measure") -> MeasureStatistics:
        """Statistics of the measure `name`, shape (N,) or (N, T).

        Raises:
            ValueError: If there are fewer than two samples, a value is not finite, or all are equal.
        """
        values = values.double().reshape(len(values), -1)
        if len(values) < 2:
            raise ValueError(f"statistics need at least 2 in-distribution samples, got {len(values)}.")
        std = values.std(dim=0)
        if not torch.isfinite(values).all() or not (std > 0).all():
            raise ValueError(f"in-distribution samples must give finite values of {name} that are not all equal.")
        return cls(values.mean(dim=0).tolist(), std.tolist())

    def standardise(self, values: Tensor) -> Tensor:
        """``(values - mean) / std``, shape (N,) or (N, T)."""
        mean, std = (torch.tensor(v, dtype=torch.float64).squeeze() for v in (self.mean, self.std))
        return (values.double() - mean) / std


Statistics = Mapping[str, MeasureStatistics]


def energy_score(measures: Measures, statistics: Statistics) -> Tensor:
    """``E(x, 0)``, shape (N,)."""
    return measures["energy"].double()


def gradient_norm_score(measures: Measures, statistics: Statistics) -> Tensor:
    """``||grad_x E(x, 0)||``, shape (N,)."""
    return measures["gradient_norm"].double()


def reconstruction_score(measures: Measures, statistics: Statistics) -> Tensor:
    """Mean squared error per pixel of the revised reconstruction, shape (N,)."""
    return measures["reconstruction_error"].double()


def multiscale_score(measures: Measures, statistics: Statistics) -> Tensor:
    """Mean over t of the standardised ``E(x_t, t)``, shape (N,)."""
    return statistics["energies"].standardise(measures["energies"]).mean(dim=1)


def typicality_score(measures: Measures, statistics: Statistics) -> Tensor:
    """Distance of the energy from its in-distribution mean, shape (N,): too low is odd, too."""
    return (measures["energy"].double() - statistics["energy"].mean[0]).abs()


def complexity_score(measures: Measures, statistics: Statistics) -> Tensor:
    """Standardised energy minus standardised compressed size, shape (N,)."""
    sizes = statistics["compressed_size"].standardise(measures["compressed_size"])
    return statistics["energy"].standardise(measures["energy"]) - sizes


def combined_score(measures: Measures, statistics: Statistics) -> Tensor:
    """Standardised energy plus standardised reconstruction error, shape (N,)."""
    errors = statistics["reconstruction_error"].standardise(measures["reconstruction_error"])
    return statistics["energy"].standardise(measures["energy"]) + errors


@dataclass(frozen=True)
class Score:
    """A score with what it is made of.

    Attributes:
        function: ``(measures, statistics) -> scores``, shape (N,), float64.
        measures: Measures it reads.
        needs_statistics: Whether it can be computed only after a calibration.
    """

    function: Callable[[Measures, Statistics], Tensor]
    measures: tuple[str, ...]
    needs_statistics: bool = False


SCORES: dict[str, Score] = {
    "energy": Score(energy_score, ("energy",)),
    "gradient_norm": Score(gradient_norm_score, ("gradient_norm",)),
    "multiscale": Score(multiscale_score, ("energies",), needs_statistics=True),
    "typicality": Score(typicality_score, ("energy",), needs_statistics=True),
    "complexity": Score(complexity_score, ("energy", "compressed_size"), needs_statistics=True),
    "reconstruction": Score(reconstruction_score, ("reconstruction_error",)),
    "combined": Score(combined_score, ("energy", "reconstruction_error"), needs_statistics=True),
}


def measure_energies(
    energy_model: Any, x: Tensor, coefficients: DiffusionCoefficients | None, seed: int = 0, batch_size: int = 256
) -> Tensor:
    """``E(x_t, t)`` of every noise level, shape (N, T), with one noise tensor for all samples.

    Args:
        energy_model: An energy with noise levels; one without gives T = 1 and ``E(x)``.
        x: Clean samples, shape (N, ...).
        coefficients: The chain the energy was trained on; None only for an energy without noise levels.
        seed: Of the noise.
        batch_size: Samples per forward pass.
    """
    if coefficients is None:
        return compute_energies(energy_model, x, 0, batch_size)[:, None]
    q = coefficients.to("cpu")
    noise = torch.randn(q.num_timesteps, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    columns = []
    for t in range(q.num_timesteps):
        times = torch.full((x.shape[0],), t)
        x_t = q.q_sample(x.cpu(), times, noise[t].expand(x.shape))
        columns.append(compute_energies(energy_model, x_t, t, batch_size))
    return torch.stack(columns, dim=1)


def measure_gradient_norm(energy_model: Any, x: Tensor, batch_size: int = 256) -> Tensor:
    """``||grad_x E(x, 0)||``, shape (N,), float32, on the CPU."""
    with energy_model.chain_in_eval():
        parts = []
        for part in x.split(batch_size):
            part = part.to(device=energy_model.device, dtype=energy_model.dtype)
            grad = energy_grad(lambda x: energy_model(x, 0).energy, part)
            parts.append(grad.float().flatten(1).norm(dim=1).cpu())
    return torch.cat(parts)


def measure_compressed_size(x: Tensor) -> Tensor:
    """Bits of each image as a lossless PNG of 8 bits per value, without the fixed part of the file, shape (N,).

    Args:
        x: Images in [-1, 1], shape (N, C, H, W); channels beyond gray and RGB are compressed one by one.
    """
    if x.ndim != 4:
        raise ValueError(f"the compressed size is one of images (N, C, H, W), got shape {tuple(x.shape)}.")
    pixels = ((x.cpu().float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    sizes = []
    for image in pixels:
        layers = [image] if image.shape[-1] == 3 else [image[..., channel] for channel in range(image.shape[-1])]
        sizes.append(8.0 * sum(_png_bytes(layer) - _png_bytes(layer[:1, :1] * 0) for layer in layers))
    return torch.tensor(sizes)


def measure_reconstruction_error(pipe: Any, x: Tensor, seed: int = 0) -> Tensor:
    """Mean squared error per pixel of each sample's revised reconstruction, shape (N,), float32, on the CPU.

    Args:
        pipe: A `DualMCMCPipeline`.
        x: Samples in the models' range, shape (N, ...).
        seed: Of the chains' noise, the same for each sample, so that its error depends on nothing but itself.
    """
    generators = [torch.Generator().manual_seed(seed) for _ in range(len(x))]
    recon = pipe.reconstruct(
        x, sample_latents=False, generator=generators, output_type="pt", output_squared_errors=True
    )
    return recon.squared_errors[-1].float().cpu()


@torch.no_grad()
def measure_denoising_error(
    generator_model: Any,
    x: Tensor,
    coefficients: DiffusionCoefficients,
    num_draws: int = NUM_DENOISING_DRAWS,
    seed: int = 0,
) -> Tensor:
    """Mean squared error per pixel of a DDAEBM's clean images from ``x_1 ~ q(x_1 | x)``, shape (N,), on the CPU.

    Args:
        generator_model: Its generator.
        x: Clean samples in the models' range, shape (N, ...).
        coefficients: The chain it was trained on.
        num_draws: Noises and latents to average over; all samples get the same ones.
        seed: Of those.
    """
    generator_model.eval()
    q, random = coefficients.to("cpu"), torch.Generator().manual_seed(seed)
    x, first = x.cpu().float(), torch.ones(len(x), dtype=torch.long)
    device, dtype, errors = generator_model.device, generator_model.dtype, torch.zeros(len(x))
    for _ in range(num_draws):
        noise = torch.randn(1, *x.shape[1:], generator=random)
        z = torch.randn(1, generator_model.config.latent_dim, generator=random)
        x_1 = q.q_sample(x, first, noise.expand(x.shape)).to(device=device, dtype=dtype)
        clean = generator_model(x_1, 0, z.expand(len(x), -1).to(device=device, dtype=dtype)).sample
        errors += (clean.float().cpu() - x).square().flatten(1).mean(dim=1)
    return errors / num_draws


def _png_bytes(pixels: Any) -> int:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.tell()
