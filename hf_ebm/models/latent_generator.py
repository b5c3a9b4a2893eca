"""What generators from a latent share: how their batch norm behaves when sampling and along the z-chain."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_ebm.models.eval_copy import eval_copy


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

    def for_sampling(self) -> Any:
        """An `eval_copy` with batch norm as in ``sampling_batch_norm``; running statistics never move."""
        model: Any = eval_copy(self)  # type: ignore[type-var]
        if self.config.sampling_batch_norm == "batch":
            if model is self:
                raise ValueError(
                    "sampling_batch_norm must be 'running' with diffusers' layerwise casting or group offloading, got "
                    "'batch'; load the model in another dtype, or offload it with enable_model_cpu_offload."
                )
            model.train()
            for norm in batch_norms(model):
                norm.track_running_stats = False
        return model

    @contextlib.contextmanager
    def z_chain(self) -> Iterator[None]:
        """Inside, the z-chain of training: batch statistics, running ones by ``chain_running_statistics``.

        It may change the model until it exits, so it is for a training loop, which has the model
        to itself.
        """
        frozen = self.config.chain_running_statistics == "frozen"
        with frozen_running_statistics(self) if frozen else contextlib.nullcontext():  # type: ignore[arg-type]
            yield


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of `model`."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, training forwards of `model` do not update the running statistics of its batch norms."""
    norms = [norm for norm in batch_norms(model) if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
