"""Base of the networks that are no energies: diffusers models, read from safetensors only."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin

from hf_ebm.hub.download import fetch_network
from hf_ebm.hub.saved_weights import PathlessConfig, require_safe_serialization, require_safetensors, save_network
from hf_ebm.models.class_labels import CLASS_SETTINGS
from hf_ebm.models.loaded_weights import check_same_architecture
from hf_ebm.utils.validation import check_config_types

# diffusers 0.42 warns of modules that should stay in float32 whenever a dtype is given, also where there are none, and
# of weights of another architecture, which are refused here
UNWANTED = ("kept in float32: []", "Some weights of ")
logging.getLogger("diffusers.models.modeling_utils").addFilter(
    lambda record: not any(text in record.getMessage() for text in UNWANTED)
)


class Network(PathlessConfig, ModelMixin, ConfigMixin):
    """A diffusers model whose weights are safetensors and whose config has the constructor's types."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        config: Any = self.config
        if hasattr(config, "data_dim"):
            return (config.data_dim,)
        return (config.num_channels, config.image_size, config.image_size)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a network as ``ModelMixin.from_pretrained`` does, from safetensors only.

        Raises:
            ValueError: If other weights are asked for, the weights lack a tensor of this architecture or hold one of
                another name or size, or a setting in its config has the wrong type.
            OSError: If there are no safetensors, or they are damaged.
        """
        want_info = kwargs.pop("output_loading_info", False)
        require_safetensors(kwargs)
        folder = fetch_network(pretrained_model_name_or_path, kwargs)
        kwargs["ignore_mismatched_sizes"] = True  # they are found below
        model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        check_same_architecture(cls, pretrained_model_name_or_path, info)
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return (model, info) if want_info else model

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> Any:
        """As ``ConfigMixin.from_config``; a value of the wrong type is a `ValueError` that names it."""
        if isinstance(config, dict):
            check_config_types(cls.__init__, config)
        return super().from_config(config, **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON; that of an unconditional network has no settings of classes."""
        values = json.loads(super().to_json_string())
        if not values.get("num_classes"):
            values = {name: value for name, value in values.items() if name not in CLASS_SETTINGS}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save a network as ``ModelMixin.save_pretrained`` does, as safetensors only.

        Weights of the same variant that were in the folder are replaced, and those of other variants stay.

        Raises:
            ValueError: If another format is asked for.
        """
        require_safe_serialization(safe_serialization, use_flashpack)
        kwargs |= {"is_main_process": is_main_process, "save_function": save_function, "max_shard_size": max_shard_size}
        save_network(super().save_pretrained, save_directory, variant, push_to_hub, **kwargs)
