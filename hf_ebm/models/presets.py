"""DDAEBM's three networks after the published settings, and the small ones for digits and 2-D data, as differences.

| preset | data | published parameters: generator, energy, inference |
|---|---|---|
| `cifar10` | 32x32 RGB | 48.4M, 40.3M, 4.8M |
| `celeba64` | 64x64 RGB | 25.7M, 19.7M, 15.1M |
| `lsun128` | 128x128 RGB | 37.9M, 30.3M, 27.8M |
| `digits`, `small` | 8x8 gray | ours: trains in minutes on a CPU; `small` is the base for other data |
| `toy` | 2-D vectors | ours: small MLPs |

Differences from the published networks that remain:

- The U-Nets are diffusers' blocks with convolutional resampling; the published ones are NCSN++, with FIR resampling and
  BigGAN residual blocks. Widths, levels, attention and depth are the published ones.
- The (time, z) embedding modulates the norms of both U-Nets by scale and shift. Published are adaptive group norms in
  the generator.
- The embeddings' widths and the inference models' are chosen so that the parameter counts come near.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

from hf_ebm.models.class_labels import check_classes
from hf_ebm.utils.validation import check_known

SIZES = ("image_size", "num_channels", "data_dim")  # of the data
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "unet": {"image_size": 32, "num_channels": 3, "base_channels": 128, "channel_multipliers": (1, 2, 2, 2)},
        "generator": {"latent_dim": 100, "embedding_dim": 1152},
        "energy": {"time_embedding_dim": 640},
        "inference": {"block_out_channels": (64, 128, 256, 512)},
    },
    "celeba64": {
        "unet": {"image_size": 64, "num_channels": 3, "base_channels": 64, "channel_multipliers": (1, 1, 2, 2, 4)},
        "generator": {"latent_dim": 100, "embedding_dim": 896},
        "energy": {"time_embedding_dim": 384},
        "inference": {"block_out_channels": (64, 128, 256, 512, 1024)},
    },
    "lsun128": {
        "unet": {
            "image_size": 128,
            "num_channels": 3,
            "base_channels": 64,
            "channel_multipliers": (1, 2, 2, 4, 4),
            "dropout": 0.0,
        },
        "generator": {"latent_dim": 100, "embedding_dim": 896},
        "energy": {"time_embedding_dim": 384},
        "inference": {"block_out_channels": (64, 128, 256, 512, 896, 1024)},
    },
    "digits": {
        "unet": {
            "image_size": 8,
            "num_channels": 1,
            "patch_size": 2,  # a CPU does 32 channels at 4x4 in less time than 16 at 8x8, and learns as much a step
            "base_channels": 32,
            "channel_multipliers": (1, 1),
            "layers_per_block": 1,
            "attention_resolutions": (),
            "mid_attention": False,
            "dropout": 0.0,
        },
        "generator": {"latent_dim": 8},
        "energy": {},
        "inference": {"block_out_channels": (16, 32)},
    },
    "toy": {
        "mlp": {"data_dim": 2},
        "generator": {"latent_dim": 2},
        "energy": {"output_dim": 2},
        "inference": {"hidden_dims": (64, 64, 64)},
    },
}
PRESETS["small"] = PRESETS["digits"]


def ddaebm_model_settings(
    preset: str,
    num_timesteps: int = 4,
    latent_dim: int | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
    chain: dict[str, Any] | None = None,
    num_classes: int = 0,
    class_prior: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Which networks, and their arguments: ``{"network": "unet" | "mlp", "generator": ..., "energy": ..., ...}``.

    Args:
        preset: A name of `PRESETS`.
        num_timesteps: T, the same for all three.
        latent_dim: Dimensions of z; None = the preset's, 0 = no latent, an ablation.
        overrides: Changes by part: ``"unet"`` or ``"mlp"`` (the data's size; for U-Nets also what generator and energy
            share), ``"generator"``, ``"energy"``, ``"inference"``.
        chain: ``beta_min``, ``beta_max``, ``spacing`` of the diffusion where they are not the defaults; the inference
            model of vectors uses them.
        num_classes: Classes of all three networks; 0 = unconditional.
        class_prior: The frequency of each class in the training set; None = unknown.
        class_names: The name of each class; None = unknown.

    Raises:
        ValueError: If the preset or a part is unknown, `latent_dim` is negative, the networks' data differ in size, or
            the description of the classes is inconsistent.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}.")
    parts = copy.deepcopy(PRESETS[preset])
    for part, values in (overrides or {}).items():
        if part not in parts or not isinstance(values, dict):
            raise ValueError(f"models must map some of {sorted(parts)} to their settings, got {part!r}: {values!r}.")
        parts[part].update(values)
    network = "unet" if "unet" in parts else "mlp"
    shared = parts[network]
    for name in ("generator", "energy"):
        parts[name] = {**shared, **parts[name], "num_timesteps": num_timesteps}
    sizes = {key: shared[key] for key in SIZES if key in shared}
    parts["inference"] = {**sizes, **parts["inference"], "num_timesteps": num_timesteps}
    if network == "mlp":
        parts["inference"].update(chain or {})
    latent_dim = parts["generator"]["latent_dim"] if latent_dim is None else latent_dim
    if latent_dim < 0:
        raise ValueError(f"latent_dim must be >= 0 (0: a generator without latent), got {latent_dim}.")
    parts["generator"]["latent_dim"] = parts["inference"]["latent_dim"] = latent_dim
    check_sizes(parts, network)
    add_classes(parts, num_classes, class_prior, class_names)
    return {"network": network, **{name: parts[name] for name in ("generator", "energy", "inference")}}


def check_sizes(parts: dict[str, dict[str, Any]], shared: str) -> None:
    """Raise a `ValueError` unless the data's size is the same in all networks."""
    for key in SIZES:
        found = {name: parts[name].get(key) for name in ("generator", "energy", "inference")}
        if len(set(found.values())) > 1:
            values = ", ".join(f"{value} of the {name}" for name, value in found.items())
            raise ValueError(
                f"models: {key} must be the same in all networks, got {values}; set models.{shared}.{key}, which is "
                "for all of them."
            )


def add_classes(
    parts: dict[str, dict[str, Any]],
    num_classes: int,
    class_prior: Sequence[float] | None,
    class_names: Sequence[str] | None,
) -> None:
    """Add the settings of the classes to the arguments of the three networks by name."""
    check_classes(num_classes, class_prior, class_names)
    for name in ("generator", "energy", "inference"):
        own = parts[name].get("num_classes", num_classes)
        if own != num_classes:
            raise ValueError(
                f"models: num_classes must be the same in all networks, got {own} of the {name} and {num_classes}; "
                f"remove models.{name}.num_classes. An energy without class scores has class_scores=False."
            )
    if not num_classes:
        return
    for name in ("generator", "energy", "inference"):
        parts[name]["num_classes"] = num_classes
    parts["generator"]["class_prior"] = parts["energy"]["class_prior"] = class_prior and list(class_prior)
    parts["generator"]["class_names"] = class_names and list(class_names)
    if class_names:
        parts["energy"]["id2label"] = dict(enumerate(class_names))


def build_ddaebm_models(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The generator, energy and inference networks of `ddaebm_model_settings`, freshly initialised (torch's seed)."""
    from hf_ebm.models.mlp_energy import MLPEnergyConfig, MLPEnergyModel
    from hf_ebm.models.mlp_generator import MLPGeneratorModel
    from hf_ebm.models.mlp_pair_inference import MLPPairInferenceModel
    from hf_ebm.models.pair_inference import PairInferenceModel
    from hf_ebm.models.unet_energy import UNetEnergyConfig, UNetEnergyModel
    from hf_ebm.models.unet_generator import UNetGeneratorModel

    if settings["network"] == "mlp":
        classes: Any = (MLPGeneratorModel, MLPEnergyConfig, MLPEnergyModel, MLPPairInferenceModel)
    else:
        classes = (UNetGeneratorModel, UNetEnergyConfig, UNetEnergyModel, PairInferenceModel)
    return build_models(settings, *classes)


def build_models(
    settings: dict[str, Any], generator: Any, energy_config: Any, energy: Any, inference: Any
) -> tuple[Any, Any, Any]:
    """The three networks of the given classes with the arguments in `settings`."""
    check_known(energy_config.__name__, settings["energy"], energy_config().to_dict())
    for part, cls in (("generator", generator), ("inference", inference)):
        check_known(cls.__name__, settings[part], inspect.signature(cls).parameters)
    try:
        return (
            generator(**settings["generator"]),
            energy(energy_config(**settings["energy"])),
            inference(**settings["inference"]),
        )
    except TypeError as error:
        raise ValueError(f"models: {error}; see the networks' arguments in hf_ebm.models.") from error
