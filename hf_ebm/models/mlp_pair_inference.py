"""The inference model of DDAEBM on vectors: ``q_psi(z | x_t, x_next)``, an MLP on ``x_next`` and the step's noise.

The pair enters as ``x_next`` and ``n = (x_next - sqrt(1 - beta) x_t) / sqrt(beta)``, the noise of the step, which has
unit scale at every t: with ``x_t`` itself as the input the latent collapsed on 25 Gaussians (its KL went to 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample, expand_timestep
from hf_ebm.models.mlp import FourierFeatures, TimestepMLP
from hf_ebm.models.network import Network
from hf_ebm.models.pair_inference import InferenceOutput

LOGVAR_RANGE = (-10.0, 4.0)


class MLPPairInferenceModel(Network):
    """``(x_t, x_next, t) -> mean, logvar of z`` for vectors.

    Args:
        data_dim: D, dimensions of one vector of the pair.
        num_timesteps: T, the number of denoising steps.
        latent_dim: Dimensions of z.
        hidden_dims: Width of each hidden layer.
        num_frequencies: Fourier features of x_next (each a sine and a cosine).
        frequency_scales: Standard deviations of their frequencies, radians per unit of x.
        beta_min: The chain's, see `DiffusionCoefficients.vp`.
        beta_max: The chain's.
        spacing: The chain's.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
    """

    betas: Tensor

    @register_to_config
    def __init__(
        self,
        data_dim: int = 2,
        num_timesteps: int = 4,
        latent_dim: int = 2,
        hidden_dims: Sequence[int] = (64, 64, 64),
        num_frequencies: int = 32,
        frequency_scales: Sequence[float] = (2.0, 8.0),
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        spacing: str = "uniform",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        self.features = FourierFeatures(data_dim, num_frequencies, frequency_scales)
        self.mlp = TimestepMLP(self.features.out_dim + data_dim, 2 * latent_dim, num_timesteps, hidden_dims)
        self.class_embedding = ClassEmbedding(num_classes, hidden_dims[0]) if num_classes else None
        coefficients = DiffusionCoefficients.vp(num_timesteps, beta_min, beta_max, spacing)
        self.register_buffer("betas", coefficients.betas[1:])

    def forward(
        self, x_t: Tensor, x_next: Tensor, timestep: Tensor | int, class_labels: Any = None, return_dict: bool = True
    ) -> InferenceOutput | tuple[Tensor, Tensor]:
        """Infer the latent that turns `x_next` into `x_t`.

        Args:
            x_t: Vectors at state t, shape (B, D).
            x_next: Vectors at state t + 1, shape (B, D).
            timestep: Index t, 0..T-1, a number or shape (B,).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return an `InferenceOutput` or a tuple.

        Returns:
            ``mean`` and ``logvar`` (within -10..4), each of shape (B, latent_dim), float32.
        """
        check_sample("x_t", x_t, self.sample_shape)
        check_sample("x_next", x_next, self.sample_shape)
        t = expand_timestep(timestep, x_t, self.config.num_timesteps)
        beta = self.betas.index_select(0, t)[:, None]
        noise = (x_next - (1.0 - beta).sqrt() * x_t) / beta.sqrt()
        labels = expand_class_labels(class_labels, x_t, self.config.num_classes)
        class_bias = None if self.class_embedding is None else self.class_embedding(labels)
        output, _ = self.mlp(torch.cat([self.features(x_next), noise], dim=1), t, class_bias)
        mean, logvar = output.float().chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR_RANGE)
        return InferenceOutput(mean=mean, logvar=logvar) if return_dict else (mean, logvar)
