"""What hf_ebm's pipelines share: loading by Hub id, pushing with a card, output formats, scoring by energy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

import hf_ebm
from hf_ebm.image_inputs import images_to_tensor
from hf_ebm.scoring.energy import ScoreOutput, score_samples

OUTPUT_TYPES = ("pil", "np", "pt")


class EBMPipeline(DiffusionPipeline):
    """Base of the generation pipelines: component names, Hub id loading, output formats and ``score``."""

    _optional_components = ["energy_model", "inference_model"]  # noqa: RUF012 (diffusers' own form)
    _loads_any = False  # whether other pipelines' repositories can be loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or by Hub id, as every diffusers pipeline.

        Raises:
            ValueError: If the folder holds another pipeline of this package.
        """
        index = Path(pretrained_model_name_or_path) / cls.config_name
        if index.is_file() and not cls._loads_any:
            found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
            if found in hf_ebm.__all__ and found not in {base.__name__ for base in cls.__mro__}:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a {found}, not a {cls.__name__}; load it with "
                    f"hf_ebm.{found}.from_pretrained."
                )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch the files of a pipeline repository into the cache and return their folder.

        diffusers' own method knows only components of its libraries; this one takes ``model_index.json``'s folders,
        safetensors and JSON alone.
        """
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import HFValidationError

        names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        try:
            index_file = hf_hub_download(pretrained_model_name, cls.config_name, **options)
        except (OSError, HFValidationError) as error:
            raise OSError(
                f"{pretrained_model_name!r} is no folder here, and no pipeline of that name could be had from the Hub: "
                f"{error}"
            ) from error
        index = json.loads(Path(index_file).read_text(encoding="utf-8"))
        given = {name for name in index if name in kwargs}  # injected, or None: not wanted
        folders = [
            name
            for name, value in index.items()
            if isinstance(value, list) and value and value[0] is not None and name not in given
        ]
        patterns = [cls.config_name, "README.md", "calibration.json"]
        patterns += [f"{folder}/*{end}" for folder in folders for end in (".json", ".safetensors")]
        return snapshot_download(pretrained_model_name, allow_patterns=patterns, **options)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        return self.generator_model.sample_shape

    def check_common_inputs(self, batch_size: int, generator: Any, output_type: str) -> None:
        """Raise a `ValueError` for a batch size, generator list or output type that cannot be done."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"generator must be one torch.Generator or a list of batch_size={batch_size} of them, got a list of "
                f"{len(generator)}."
            )
        allowed = OUTPUT_TYPES if len(self.sample_shape) == 3 else ("np", "pt")
        if output_type not in allowed:
            raise ValueError(f"output_type must be one of {allowed} for this model, got {output_type!r}.")

    def post_process(self, x: Tensor, output_type: str) -> Any:
        """States as PIL images, arrays in [0, 1] (B, H, W, C), or tensors in the models' own [-1, 1] (B, C, H, W).

        Vector data stay as they are, as an array or a tensor of shape (B, D).
        """
        if len(self.sample_shape) == 1:
            return x if output_type == "pt" else x.float().cpu().numpy()
        if output_type == "pt":
            return x.clamp(-1.0, 1.0)
        array = VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(x.float()))
        return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)

    def score(self, images: Any, all_timesteps: bool = False, batch_size: int = 256) -> ScoreOutput:
        """Energies of images, low = likely: deterministic, in eval mode, no noise added.

        Args:
            images: PIL images, uint8 or float arrays, tensors in [-1, 1] (see `hf_ebm.image_inputs`); vectors (B, D).
            all_timesteps: Also return ``E(x, t)`` of every noise level, shape (B, T).
            batch_size: Images per forward pass.

        Returns:
            `ScoreOutput` with ``energies`` = ``E(x, 0)``, shape (B,).

        Raises:
            ValueError: If the pipeline has no energy model, or the images do not fit it.
        """
        if self.energy_model is None:
            raise ValueError("score needs energy_model, and this pipeline was loaded without one.")
        x = images_to_tensor(images, self.energy_model.sample_shape)
        return score_samples(self.energy_model, x, all_timesteps, batch_size)
