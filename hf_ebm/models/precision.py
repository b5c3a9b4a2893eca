"""The precision of a diffusers model, without a look through all its modules."""

from __future__ import annotations

import torch
from diffusers import ModelMixin


class QuickDtype(ModelMixin):
    """A diffusers model that says its dtype at once where it is float32.

    diffusers asks each module first whether layerwise casting computes in another dtype than it stores; a `UNet2DModel`
    does so twice per call. Storing in float32 to compute in less makes no sense, so that float32 needs no look.
    """

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        first = next(self.parameters(), None)
        return torch.float32 if first is not None and first.dtype == torch.float32 else super().dtype
