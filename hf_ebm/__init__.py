"""hf-ebm: energy-based generative models with the diffusers and transformers APIs.

Names are imported when they are first used, so that ``import hf_ebm`` costs milliseconds and no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

EXPORTS = {  # class -> its module. Of our classes, saved pipelines may name these and no others
    "AnnealedLangevinScheduler": "hf_ebm.schedulers.scheduling_annealed_langevin",
    "ComposedEnergyConfig": "hf_ebm.models.composed_energy",
    "ComposedEnergyModel": "hf_ebm.models.composed_energy",
    "ConvInferenceModel": "hf_ebm.models.conv_inference",
    "DDAEBMPipeline": "hf_ebm.pipelines.pipeline_ddaebm",
    "DDAEBMScheduler": "hf_ebm.schedulers.scheduling_ddaebm",
    "DiffusionCoefficients": "hf_ebm.diffusion",
    "DualMCMCPipeline": "hf_ebm.pipelines.pipeline_dual_mcmc",
    "EBMImageProcessor": "hf_ebm.data.image_processor",
    "EnergyScoringPipeline": "hf_ebm.pipelines.pipeline_energy_scoring",
    "HMCScheduler": "hf_ebm.schedulers.scheduling_hmc",
    "LangevinScheduler": "hf_ebm.schedulers.scheduling_langevin",
    "MALAScheduler": "hf_ebm.schedulers.scheduling_mala",
    "MLPEnergyConfig": "hf_ebm.models.mlp_energy",
    "MLPEnergyModel": "hf_ebm.models.mlp_energy",
    "MLPGeneratorModel": "hf_ebm.models.mlp_generator",
    "MLPInferenceModel": "hf_ebm.models.mlp_inference",
    "MLPLatentGeneratorModel": "hf_ebm.models.mlp_latent_generator",
    "MLPPairInferenceModel": "hf_ebm.models.mlp_pair_inference",
    "PairInferenceModel": "hf_ebm.models.pair_inference",
    "PreconditionedLangevinScheduler": "hf_ebm.schedulers.scheduling_preconditioned_langevin",
    "ReplicaExchangeScheduler": "hf_ebm.schedulers.scheduling_replica_exchange",
    "ResNetEnergyConfig": "hf_ebm.models.resnet_energy",
    "ResNetEnergyModel": "hf_ebm.models.resnet_energy",
    "ResNetGeneratorModel": "hf_ebm.models.resnet_generator",
    "UNetEnergyConfig": "hf_ebm.models.unet_energy",
    "UNetEnergyModel": "hf_ebm.models.unet_energy",
    "UNetGeneratorModel": "hf_ebm.models.unet_generator",
}

__all__ = ["__version__", *sorted(EXPORTS)]

if TYPE_CHECKING:
    from hf_ebm.data.image_processor import EBMImageProcessor as EBMImageProcessor
    from hf_ebm.diffusion import DiffusionCoefficients as DiffusionCoefficients
    from hf_ebm.models.composed_energy import ComposedEnergyConfig as ComposedEnergyConfig
    from hf_ebm.models.composed_energy import ComposedEnergyModel as ComposedEnergyModel
    from hf_ebm.models.conv_inference import ConvInferenceModel as ConvInferenceModel
    from hf_ebm.models.mlp_energy import MLPEnergyConfig as MLPEnergyConfig
    from hf_ebm.models.mlp_energy import MLPEnergyModel as MLPEnergyModel
    from hf_ebm.models.mlp_generator import MLPGeneratorModel as MLPGeneratorModel
    from hf_ebm.models.mlp_inference import MLPInferenceModel as MLPInferenceModel
    from hf_ebm.models.mlp_latent_generator import MLPLatentGeneratorModel as MLPLatentGeneratorModel
    from hf_ebm.models.mlp_pair_inference import MLPPairInferenceModel as MLPPairInferenceModel
    from hf_ebm.models.pair_inference import PairInferenceModel as PairInferenceModel
    from hf_ebm.models.resnet_energy import ResNetEnergyConfig as ResNetEnergyConfig
    from hf_ebm.models.resnet_energy import ResNetEnergyModel as ResNetEnergyModel
    from hf_ebm.models.resnet_generator import ResNetGeneratorModel as ResNetGeneratorModel
    from hf_ebm.models.unet_energy import UNetEnergyConfig as UNetEnergyConfig
    from hf_ebm.models.unet_energy import UNetEnergyModel as UNetEnergyModel
    from hf_ebm.models.unet_generator import UNetGeneratorModel as UNetGeneratorModel
    from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline as DDAEBMPipeline
    from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline as DualMCMCPipeline
    from hf_ebm.pipelines.pipeline_energy_scoring import EnergyScoringPipeline as EnergyScoringPipeline
    from hf_ebm.schedulers.scheduling_annealed_langevin import AnnealedLangevinScheduler as AnnealedLangevinScheduler
    from hf_ebm.schedulers.scheduling_ddaebm import DDAEBMScheduler as DDAEBMScheduler
    from hf_ebm.schedulers.scheduling_hmc import HMCScheduler as HMCScheduler
    from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler as LangevinScheduler
    from hf_ebm.schedulers.scheduling_mala import MALAScheduler as MALAScheduler
    from hf_ebm.schedulers.scheduling_preconditioned_langevin import (
        PreconditionedLangevinScheduler as PreconditionedLangevinScheduler,
    )
    from hf_ebm.schedulers.scheduling_replica_exchange import ReplicaExchangeScheduler as ReplicaExchangeScheduler


def __getattr__(name: str) -> Any:
    """Import the module that defines `name`, the first time it is asked for."""
    if name not in EXPORTS:
        raise AttributeError(f"module 'hf_ebm' has no attribute {name!r}")
    value = getattr(importlib.import_module(EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
