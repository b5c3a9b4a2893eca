"""The small network under DDAEBM's models of vector data: Fourier features of x, then an MLP with a scale per timestep.

Sharp densities need high frequencies of x, which a plain MLP learns late; fixed random Fourier features (Tancik et al.
2020) hand them over.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FourierFeatures(nn.Module):
    """``x -> [x, sin(x B), cos(x B)]`` with fixed random B, shape (B, D) -> (B, `out_dim`).

    Args:
        data_dim: D.
        num_frequencies: Columns of B, shared out evenly over `scales`.
        scales: Standard deviation of the frequencies, radians per unit of x, one per block of columns.
    """

    frequencies: Tensor

    def __init__(self, data_dim: int, num_frequencies: int, scales: Sequence[float]) -> None:
        super().__init__()
        columns = [scale * torch.randn(data_dim, num_frequencies // len(scales)) for scale in scales]
        self.register_buffer("frequencies", torch.cat(columns, dim=1))  # persistent: saved with the weights
        self.out_dim = data_dim + 2 * self.frequencies.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Features of `x`, shape (B, D) -> (B, out_dim)."""
        phase = x @ self.frequencies
        return torch.cat([x, phase.sin(), phase.cos()], dim=1)


class TimestepMLP(nn.Module):
    """A ReLU MLP whose first hidden layer is scaled and shifted by numbers learned for each timestep.

    Args:
        in_dim: Inputs.
        out_dim: Outputs.
        num_timesteps: T.
        hidden_dims: Width of each hidden layer; at least one.
    """

    def __init__(self, in_dim: int, out_dim: int, num_timesteps: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        if not hidden_dims:
            raise ValueError("hidden_dims must name at least one layer, got none.")
        widths = [in_dim, *hidden_dims]
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.out = nn.Linear(widths[-1], out_dim)
        self.shift = nn.Parameter(0.3 * torch.randn(num_timesteps, hidden_dims[0]))
        self.scale = nn.Parameter(1.0 + 0.3 * torch.randn(num_timesteps, hidden_dims[0]))

    def forward(self, features: Tensor, t: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and the last hidden layer.

        Args:
            features: Inputs, shape (B, in_dim).
            t: Timesteps, shape (B,).
            bias: Added to the first layer's output, shape (B, hidden_dims[0]): the embedding of a class.

        Returns:
            The outputs, shape (B, out_dim), and the last hidden layer after its ReLU, shape (B, hidden_dims[-1]).
        """
        hidden = self.hidden[0](features)
        if bias is not None:
            hidden = hidden + bias
        hidden = hidden * self.scale.index_select(0, t) + self.shift.index_select(0, t)
        for layer in self.hidden[1:]:
            hidden = layer(F.relu(hidden))
        hidden = F.relu(hidden)
        return self.out(hidden), hidden
