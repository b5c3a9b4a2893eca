"""Weights averaged over the training, put into the networks for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn


def make_emas(models: Sequence[nn.Module], decay: float, device: torch.device) -> list[EMAModel]:
    """An average of each model's weights, on `device`."""
    emas = [EMAModel(model.parameters(), decay=decay, foreach=True) for model in models]
    for ema in emas:
        ema.to(device)
    return emas


class averaged_weights:  # noqa: N801 (a context manager, read as a verb)
    """Inside ``with``, the models hold their EMA's weights and what `calibrate` makes of them; afterwards their own."""

    def __init__(
        self, emas: Sequence[EMAModel], models: Sequence[nn.Module], calibrate: Callable[..., None] = lambda *_: None
    ) -> None:
        self.pairs, self.calibrate = list(zip(emas, models, strict=True)), calibrate

    def __enter__(self) -> None:
        self.buffers = [[buffer.clone() for buffer in model.buffers()] for _, model in self.pairs]
        for ema, model in self.pairs:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
        if self.pairs:
            self.calibrate(*(model for _, model in self.pairs))

    def __exit__(self, *_: Any) -> None:
        for (ema, model), saved in zip(self.pairs, self.buffers, strict=True):
            ema.restore(model.parameters())
            for buffer, value in zip(model.buffers(), saved, strict=True):
                buffer.copy_(value)
