"""A smooth energy of vectors for score matching: ``E(x) = 1/2 ||x||^2 + f(x)`` with f an MLP."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: F401 (diffusers looks here)

from hf_ebm.models.energy import EnergyModel, EnergyOutput, check_sample


class DSMEnergyConfig(PreTrainedConfig):
    """Settings of `DSMEnergyModel`.

    Args:
        data_dim: D, dimensions of one vector.
        hidden_dims: Width of each hidden layer.
        noise_std: Standard deviation of the noise on the training data.
    """

    model_type = "hf_ebm_dsm_energy"

    data_dim: int = 2
    hidden_dims: list[int] | tuple[int, ...] = (64, 64)
    noise_std: float = 0.3


class DSMEnergyModel(EnergyModel):
    """``E(x) = 1/2 ||x||^2 + f(x)`` for vectors, shape (B,), low = likely; it grows far from the data."""

    config_class = DSMEnergyConfig

    def __init__(self, config: DSMEnergyConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((config.data_dim, *config.hidden_dims)):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(config.hidden_dims[-1], 1))
        self.post_init()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one vector, (D,)."""
        return (self.config.data_dim,)

    def forward(self, pixel_values: Tensor, timestep: Tensor | int | None = None, **_: Any) -> EnergyOutput:
        """Energy of each vector (B, D), shape (B,), float32; `timestep` is ignored."""
        check_sample("pixel_values", pixel_values, self.sample_shape)
        prior = 0.5 * pixel_values.float().square().sum(dim=1)
        return EnergyOutput(energy=prior + self.mlp(pixel_values)[:, 0].float())


AutoConfig.register(DSMEnergyConfig.model_type, DSMEnergyConfig)
AutoModel.register(DSMEnergyConfig, DSMEnergyModel)
