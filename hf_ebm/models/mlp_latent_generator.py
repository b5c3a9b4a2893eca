"""The generator of Dual-MCMC Teaching on vectors: ``z -> x``, a plain MLP, unbounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from diffusers import ModelMixin  # noqa: F401 (diffusers looks here)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_ebm.models.class_labels import ClassEmbedding, check_classes, expand_class_labels
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
        num_classes: Classes of ``class_labels``; 0 = unconditional.
        class_prior: Their frequencies in the training set, from which labels are sampled; None = unknown.
        class_names: Their names; None = unknown.
        null_class: Whether samples without a label were trained, which guidance needs.
    """

    @register_to_config
    def __init__(
        self,
        data_dim: int = 2,
        latent_dim: int = 2,
        hidden_dims: Sequence[int] = (128, 128, 128),
        likelihood_std: float = 0.1,
        num_classes: int = 0,
        class_prior: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        check_classes(num_classes, class_prior, class_names)
        self.check_settings("running", "frozen", likelihood_std)
        self.register_to_config(sampling_batch_norm="running", chain_running_statistics="frozen")
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([latent_dim, *hidden_dims]):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], data_dim))
        self.class_embedding = ClassEmbedding(num_classes, hidden_dims[0]) if num_classes else None

    def forward(self, z: Tensor, class_labels: Any = None, return_dict: bool = True) -> GeneratorOutput | tuple[Tensor]:
        """Generate vectors of shape (B, D) from latents of shape (B, latent_dim)."""
        check_sample("z", z, (self.config.latent_dim,))
        labels = expand_class_labels(class_labels, z, self.config.num_classes)
        hidden = self.layers[0](z)
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(labels)
        x = self.layers[1:](hidden)
        return GeneratorOutput(sample=x) if return_dict else (x,)
