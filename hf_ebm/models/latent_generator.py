"""What generators from a latent share: how their batch norm behaves when sampling and along the z-chain."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import nn


class LatentGenerator:
    """Mixin of ``z -> x`` models with the settings ``sampling_batch_norm`` and ``chain_running_statistics``."""

    config: Any

    @staticmethod
    def check_settings(sampling_batch_norm: str, chain_running_statistics: str, likelihood_std: float) -> None:
        """Raise a `ValueError` that names a setting that cannot be used."""
        choices = (
            ("sampling_batch_norm", sampling_batch_norm, ("running", "batch")),
            ("chain_running_statistics", chain_running_statistics, ("frozen", "updated")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
        if not 0.0 < likelihood_std < math.inf:
            raise ValueError(f"likelihood_std must be positive and finite, got {likelihood_std!r}.")

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, batch norm is as ``sampling_batch_norm`` says, and nothing is learned from what passes through."""
        was_training = self.training  # type: ignore[attr-defined]
        self.train(self.config.sampling_batch_norm == "batch")  # type: ignore[attr-defined]
        try:
            with frozen_running_statistics(self):  # type: ignore[arg-type]
                yield
        finally:
            self.train(was_training)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def z_chain(self) -> Iterator[None]:
        """Inside, the z-chain of training: batch statistics, running ones as ``chain_running_statistics`` says."""
        frozen = self.config.chain_running_statistics == "frozen"
        with frozen_running_statistics(self) if frozen else contextlib.nullcontext():  # type: ignore[arg-type]
            yield


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, training forwards of `model` leave the running statistics of its batch norms alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
