"""Initial weights of the networks of Dual-MCMC Teaching, by the setting ``initialization``.

| | convolutions | linear layers | batch norm |
|---|---|---|---|
| ``"xavier_normal"`` | Xavier-normal, biases 0 | Xavier-normal, biases 0 | weights 1, biases 0 |
| ``"published"``, the authors' | Xavier-normal, biases PyTorch's | PyTorch's | weights from N(0, 1), biases 0 |
"""

from __future__ import annotations

from torch import nn

INITIALIZATIONS = ("xavier_normal", "published")


def check_initialization(initialization: str) -> None:
    """Raise a `ValueError` unless the setting is one of `INITIALIZATIONS`."""
    if initialization not in INITIALIZATIONS:
        raise ValueError(f"initialization must be one of {INITIALIZATIONS}, got {initialization!r}.")


def initialize(module: nn.Module, initialization: str) -> None:
    """Initialise one layer, which has PyTorch's weights, in place; see the module's table."""
    published = initialization == "published"
    if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and not published):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None and not published:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d) and published:
        nn.init.normal_(module.weight)
