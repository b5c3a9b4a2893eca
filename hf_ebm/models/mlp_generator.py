"""The generator of DDAEBM on vectors: ``(x_next, t, z) -> x0_pred = x_next + MLP``, unbounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample, expand_timestep
from hf_ebm.models.mlp import FourierFeatures, TimestepMLP
from hf_ebm.models.network import Network
from hf_ebm.models.unet_generator import GeneratorOutput


class MLPGeneratorModel(Network):
    """``(x_next, t, z) -> x0_pred`` for vectors.

    Args:
        data_dim: D, dimensions of one vector.
        num_timesteps: T, the number of denoising steps.
        latent_dim: Dimensions of z.
        hidden_dims: Width of each hidden layer.
        num_frequencies: Fourier features of x_next (each a sine and a cosine).
        frequency_scales: Standard deviations of their frequencies, radians per unit of x.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
        class_prior: Their frequencies in the training set, from which labels are sampled; None = unknown.
        class_names: Their names; None = unknown.
        null_class: Whether samples without a label were trained, which guidance needs.
    """

    @register_to_config
    def __init__(
        self,
        data_dim: int = 2,
        num_timesteps: int = 4,
        latent_dim: int = 2,
        hidden_dims: Sequence[int] = (128, 128, 128),
        num_frequencies: int = 32,
        frequency_scales: Sequence[float] = (2.0, 8.0),
        num_classes: int = 0,
        class_prior: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        check_classes(num_classes, class_prior, class_names)
        self.features = FourierFeatures(data_dim, num_frequencies, frequency_scales)
        self.mlp = TimestepMLP(self.features.out_dim + latent_dim, data_dim, num_timesteps, hidden_dims)
        self.class_embedding = ClassEmbedding(num_classes, hidden_dims[0]) if num_classes else None

    def forward(
        self, x_next: Tensor, timestep: Tensor | int, z: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[Tensor]:
        """Predict the clean vector.

        Args:
            x_next: Noisy vectors at state t + 1, shape (B, D).
            timestep: Index t of the cleaner state, 0..T-1, a number or shape (B,).
            z: Latents ~ N(0, I), shape (B, latent_dim).
            class_labels: Label of each sample, shape (B,), or one number for all; -1 or None = the null class.
            return_dict: Whether to return a `GeneratorOutput` or a tuple.

        Returns:
            ``x0_pred``, shape (B, D).
        """
        check_sample("x_next", x_next, self.sample_shape)
        check_sample("z", z, (self.config.latent_dim,))
        inputs = torch.cat([self.features(x_next), z], dim=1)
        t = expand_timestep(timestep, x_next, self.config.num_timesteps)
        labels = expand_class_labels(class_labels, x_next, self.config.num_classes)
        class_bias = None if self.class_embedding is None else self.class_embedding(labels)
        x0_pred = x_next + self.mlp(inputs, t, class_bias)[0]
        return GeneratorOutput(sample=x0_pred) if return_dict else (x0_pred,)
