"""The inference model of Dual-MCMC Teaching on vectors: ``q(z | x) = N(mean, exp(logvar))``, an MLP."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
from hf_ebm.models.energy import check_sample
from hf_ebm.models.network import Network
from hf_ebm.models.pair_inference import InferenceOutput


class MLPInferenceModel(Network):
    """``x -> mean, logvar of z`` for vectors.

    Args:
        data_dim: D, dimensions of one vector.
        latent_dim: Dimensions of z.
        hidden_dims: Width of each hidden layer.
        num_classes: Classes of ``class_labels``; 0 = unconditional.
    """

    @register_to_config
    def __init__(
        self,
        data_dim: int = 2,
        latent_dim: int = 2,
        hidden_dims: Sequence[int] = (128, 128, 128),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([data_dim, *hidden_dims]):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], 2 * latent_dim))
        self.class_embedding = ClassEmbedding(num_classes, hidden_dims[0]) if num_classes else None

    def forward(
        self, x: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> InferenceOutput | tuple[Tensor, Tensor]:
        """Infer the latents of vectors: (B, D) -> ``mean`` and ``logvar``, each (B, latent_dim), float32."""
        check_sample("x", x, self.sample_shape)
        labels = expand_class_labels(class_labels, x, self.config.num_classes)
        hidden = self.layers[0](x)
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(labels)
        mean, logvar = self.layers[1:](hidden).float().chunk(2, dim=1)
        return InferenceOutput(mean=mean, logvar=logvar) if return_dict else (mean, logvar)
