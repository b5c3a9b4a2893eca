"""From a latent ``z ~ N(0, I)`` to the embedding that modulates a generator's norms: pixel norm, then a small MLP."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


class LatentMapping(nn.Module):
    """``z -> MLP(z / sqrt(mean(z^2)))``, shape (B, embedding_dim)."""

    def __init__(self, latent_dim: int, hidden_dim: int, embedding_dim: int, num_layers: int = 3) -> None:
        super().__init__()
        widths = [latent_dim] + [hidden_dim] * (num_layers - 1) + [embedding_dim]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)  # the embedding of z starts as large as that of time
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Embedding of the latents `z`, shape (B, latent_dim) -> (B, embedding_dim)."""
        return self.layers(z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt())
