"""The generator of Dual-MCMC Teaching on vectors: ``z -> x``, a plain MLP, unbounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_ebm.models.energy import check_sample
from hf_ebm.models.latent_generator import LatentGenerator
from hf_ebm.models.network import Network
from hf_ebm.models.unet_generator import GeneratorOutput


class MLPLatentGeneratorModel(LatentGenerator, Network):
    """``z -> x`` for vectors.

    Args:
        data_dim: D, dimensions of one vector.
        latent_dim: Dimensions of z.
        hidden_dims: Width of each hidden layer.
        likelihood_std: Standard deviation of ``p(x | z)``, > 0; the squared error carries no 1/2.
    """

    @register_to_config
    def __init__(
        self,
        data_dim: int = 2,
        latent_dim: int = 2,
        hidden_dims: Sequence[int] = (128, 128, 128),
        likelihood_std: float = 0.1,
    ) -> None:
        super().__init__()
        self.check_settings("running", "frozen", likelihood_std)
        self.register_to_config(sampling_batch_norm="running", chain_running_statistics="frozen")
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([latent_dim, *hidden_dims]):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], data_dim))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one vector, (D,)."""
        return (self.config.data_dim,)

    def forward(self, z: Tensor, return_dict: bool = True) -> GeneratorOutput | tuple[Tensor]:
        """Generate vectors of shape (B, D) from latents of shape (B, latent_dim)."""
        check_sample("z", z, (self.config.latent_dim,))
        x = self.layers(z)
        return GeneratorOutput(sample=x) if return_dict else (x,)
