"""hf-ebm: energy-based generative models with the diffusers and transformers APIs.

Names are imported when they are first used, so that ``import hf_ebm`` costs milliseconds and no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "DDAEBMPipeline": "hf_ebm.pipelines.pipeline_ddaebm",
    "DDAEBMScheduler": "hf_ebm.schedulers.scheduling_ddaebm",
    "DiffusionCoefficients": "hf_ebm.diffusion",
    "MLPEnergyConfig": "hf_ebm.models.mlp_energy",
    "MLPEnergyModel": "hf_ebm.models.mlp_energy",
    "MLPGeneratorModel": "hf_ebm.models.mlp_generator",
    "MLPPairInferenceModel": "hf_ebm.models.mlp_pair_inference",
    "PairInferenceModel": "hf_ebm.models.pair_inference",
    "UNetEnergyConfig": "hf_ebm.models.unet_energy",
    "UNetEnergyModel": "hf_ebm.models.unet_energy",
    "UNetGeneratorModel": "hf_ebm.models.unet_generator",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from hf_ebm.diffusion import DiffusionCoefficients as DiffusionCoefficients
    from hf_ebm.models.mlp_energy import MLPEnergyConfig as MLPEnergyConfig
    from hf_ebm.models.mlp_energy import MLPEnergyModel as MLPEnergyModel
    from hf_ebm.models.mlp_generator import MLPGeneratorModel as MLPGeneratorModel
    from hf_ebm.models.mlp_pair_inference import MLPPairInferenceModel as MLPPairInferenceModel
    from hf_ebm.models.pair_inference import PairInferenceModel as PairInferenceModel
    from hf_ebm.models.unet_energy import UNetEnergyConfig as UNetEnergyConfig
    from hf_ebm.models.unet_energy import UNetEnergyModel as UNetEnergyModel
    from hf_ebm.models.unet_generator import UNetGeneratorModel as UNetGeneratorModel
    from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline as DDAEBMPipeline
    from hf_ebm.schedulers.scheduling_ddaebm import DDAEBMScheduler as DDAEBMScheduler


def __getattr__(name: str) -> Any:
    """Import the module that defines `name`, the first time it is asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_ebm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
