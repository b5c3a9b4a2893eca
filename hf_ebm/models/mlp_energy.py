"""The energy of DDAEBM on vectors: ``E(x, t) = 1/2 ||u(x, t)||^2`` with u an MLP on Fourier features.

Bounded below by 0 and quadratic around its minima, as narrow modes are. Source: the form is ours; Geng et al., ICML
2024, use a plain MLP of widths 300, 300 on 2-D data.

With classes (`num_classes`) this is the base energy of `hf_ebm.models.class_scores`; phi is the last hidden layer after
its ReLU. Neither u nor the class scores have spectral norm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel  # noqa: F401 (diffusers looks here)

from hf_ebm.models.class_scores import ClassScores, ConditionalEnergyConfig
from hf_ebm.models.energy import EnergyModel, EnergyOutput, check_sample, expand_timestep, half_squared_norm
from hf_ebm.models.mlp import FourierFeatures, TimestepMLP


class MLPEnergyConfig(ConditionalEnergyConfig):
    """Settings of `MLPEnergyModel`; those of the classes are in `ConditionalEnergyConfig`.

    Args:
        data_dim: D, dimensions of one vector.
        num_timesteps: T, the number of noise levels.
        output_dim: Dimensions of u.
        hidden_dims: Width of each hidden layer.
        num_frequencies: Fourier features of x (each a sine and a cosine).
        frequency_scales: Standard deviations of their frequencies, radians per unit of x.
    """

    model_type = "hf_ebm_mlp_energy"

    data_dim: int = 2
    num_timesteps: int = 4
    output_dim: int = 2
    hidden_dims: list[int] | tuple[int, ...] = (128, 128, 128)
    num_frequencies: int = 32
    frequency_scales: list[float] | tuple[float, ...] = (2.0, 8.0)


class MLPEnergyModel(EnergyModel):
    """``E(x, t) = 1/2 ||u(x, t)||^2`` for vectors, shape (B,), low = likely."""

    config_class = MLPEnergyConfig

    def __init__(self, config: MLPEnergyConfig) -> None:
        super().__init__(config)
        self.features = FourierFeatures(config.data_dim, config.num_frequencies, config.frequency_scales)
        self.mlp = TimestepMLP(self.features.out_dim, config.output_dim, config.num_timesteps, config.hidden_dims)
        self.class_scores: ClassScores | None = None
        if config.num_classes and config.class_scores:
            self.class_scores = ClassScores(config.hidden_dims[-1], config.num_classes)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, timestep: Tensor | int | None = None, class_labels: Any = None, **_: Any
    ) -> EnergyOutput:
        """Energy of each vector.

        Args:
            pixel_values: Vectors (the name is that of all energies), shape (B, D).
            timestep: Noise level 0..T-1, a number or shape (B,); None = 0.
            class_labels: Label of each vector, shape (B,), or one number for all; -1 or None = the marginal energy.

        Returns:
            `EnergyOutput` with ``energy`` of shape (B,), and ``logits`` (B, num_classes) if there are classes, float32.
        """
        check_sample("pixel_values", pixel_values, self.sample_shape)
        t = expand_timestep(timestep, pixel_values, self.config.num_timesteps)
        u, hidden = self.mlp(self.features(pixel_values), t)
        base = half_squared_norm(u, u.new_zeros(()))
        logits = None if self.class_scores is None else self.class_scores(hidden)
        return self.with_labels(base, logits, class_labels)


AutoConfig.register(MLPEnergyConfig.model_type, MLPEnergyConfig)
AutoModel.register(MLPEnergyConfig, MLPEnergyModel)
