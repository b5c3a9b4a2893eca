"""The published Dual-MCMC settings of the three networks, and the small ones for digits and 2-D data.

| preset | data | parameters: energy, generator, inference |
|---|---|---|
| `cifar10` | 32x32 RGB | 16.8M, 16.0M, 15.2M: the authors' networks |
| `celeba64` | 64x64 RGB | 19.5M, 12.2M, 15.2M: the authors' networks |
| `digits`, `small` | 8x8 gray | ours: trains in minutes on a CPU; `small` is the base for other data |
| `toy` | 2-D vectors | ours: small MLPs |
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hf_ebm.models.presets import add_classes, build_models, check_sizes
from hf_ebm.utils.validation import check_count

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "data": {"image_size": 32, "num_channels": 3},
        "generator": {
            "latent_dim": 128,
            "block_out_channels": (512, 512, 512, 512),
            "upsample_mode": "bilinear",
            "initialization": "published",
        },
        "energy": {
            "block_out_channels": (512, 512, 512, 512),
            "num_downsamples": 2,
            "initialization": "published",
        },
        "inference": {
            "block_out_channels": (128, 256, 512, 1024),
            "conv_bias": False,
            "initialization": "published",
        },
    },
    "celeba64": {
        "data": {"image_size": 64, "num_channels": 3},
        "generator": {
            "latent_dim": 128,
            "block_out_channels": (1024, 512, 256, 128, 64),
            "upsample_mode": "bilinear",
            "initialization": "published",
        },
        "energy": {
            "block_out_channels": (64, 128, 256, 512, 1024),
            "num_downsamples": 5,
            "initialization": "published",
        },
        "inference": {
            "block_out_channels": (128, 256, 512, 1024),
            "strided_conv_in": True,
            "conv_bias": False,
            "initialization": "published",
        },
    },
    "digits": {
        "data": {"image_size": 8, "num_channels": 1},
        "generator": {"latent_dim": 16, "patch_size": 2, "block_out_channels": (64, 64)},
        "energy": {"block_out_channels": (64, 64), "num_downsamples": 1, "patch_size": 2},
        "inference": {"block_out_channels": (32, 64)},
    },
    "toy": {
        "data": {"data_dim": 2},
        "generator": {"latent_dim": 2},
        "energy": {"num_timesteps": 1},
        "inference": {},
    },
}
PRESETS["small"] = PRESETS["digits"]


def dual_mcmc_model_settings(
    preset: str,
    latent_dim: int | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
    num_classes: int = 0,
    class_prior: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    energy_temperature: float | None = None,
) -> dict[str, Any]:
    """Which networks, and their arguments: ``{"network": "resnet" | "mlp", "generator": ..., "energy": ..., ...}``.

    Args:
        preset: A name of `PRESETS`.
        latent_dim: Dimensions of z; None = the preset's.
        overrides: Changes by part: ``"data"`` (the data's size), ``"generator"``, ``"energy"``, ``"inference"``.
        num_classes: Classes of all three networks; 0 = unconditional. ``class_scores=False`` among the energy's
            settings leaves them to the generator and the inference model.
        class_prior: The frequency of each class in the training set; None = unknown.
        class_names: The name of each class; None = unknown.
        energy_temperature: ``(noise_std / step_size)^2`` of the x-chain. An energy with class scores needs it.

    Raises:
        ValueError: If the preset or a part is unknown, `latent_dim` is below 1, the networks' data differ in size, or
            the description of the classes is inconsistent.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}.")
    parts = copy.deepcopy(PRESETS[preset])
    for part, values in (overrides or {}).items():
        if part not in parts or not isinstance(values, dict):
            raise ValueError(f"models must map some of {sorted(parts)} to their settings, got {part!r}: {values!r}.")
        parts[part].update(values)
    data = parts.pop("data")
    latent_dim = parts["generator"]["latent_dim"] if latent_dim is None else latent_dim
    check_count("latent_dim", latent_dim, 1)
    parts["generator"]["latent_dim"] = parts["inference"]["latent_dim"] = latent_dim
    network = "mlp" if "data_dim" in data else "resnet"
    parts = {name: {**data, **values} for name, values in parts.items()}
    check_sizes(parts, "data")
    add_classes(parts, num_classes, class_prior, class_names)
    if num_classes:
        energy_temperature = parts["energy"].get("energy_temperature", energy_temperature)
        if energy_temperature is None and parts["energy"].get("class_scores", True):
            raise ValueError(
                "energy_temperature must be (noise_std / step_size)^2 of the x-chain for an energy with class scores, "
                "got None; give it, or set class_scores=False for the energy."
            )
        if energy_temperature is not None:
            parts["energy"]["energy_temperature"] = energy_temperature
    return {"network": network, **parts}


def build_dual_mcmc_models(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The generator, energy and inference networks of `dual_mcmc_model_settings`, initialised by torch's seed."""
    from hf_ebm.models.conv_inference import ConvInferenceModel
    from hf_ebm.models.mlp_energy import MLPEnergyConfig, MLPEnergyModel
    from hf_ebm.models.mlp_inference import MLPInferenceModel
    from hf_ebm.models.mlp_latent_generator import MLPLatentGeneratorModel
    from hf_ebm.models.resnet_energy import ResNetEnergyConfig, ResNetEnergyModel
    from hf_ebm.models.resnet_generator import ResNetGeneratorModel

    if settings["network"] == "mlp":
        classes: Any = (MLPLatentGeneratorModel, MLPEnergyConfig, MLPEnergyModel, MLPInferenceModel)
    else:
        classes = (ResNetGeneratorModel, ResNetEnergyConfig, ResNetEnergyModel, ConvInferenceModel)
    return build_models(settings, *classes)
