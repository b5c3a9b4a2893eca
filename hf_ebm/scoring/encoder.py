"""Image encoders: networks whose features know what an image shows, for the scores `encoder` and `density_encoder`.

    d(x) = mean Euclidean distance of u(x) to its 5 nearest in a bank,        u(x) = f(x) / ||f(x)||

with f the encoder and a bank of at most 10,000 in-distribution features. On the unit sphere the squared distance is
2 - 2 cos, so that the order of neighbours is that of the cosine similarity. Norms of features are left out because they
follow contrast and complexity rather than content.

Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, who take the distance to the
k-th neighbour.

An encoder is not a part of a saved pipeline: its Hub id, commit and a hash of its weights are saved with the
calibration, and another hash is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_ebm.hub.model_card import is_local, public_name
from hf_ebm.models.eval_copy import in_eval
from hf_ebm.utils.files import hash_tensors
from hf_ebm.utils.torch_utils import execution_device

CLASS_TOKENS = ("cls_token", "class_embedding")  # names of the parameter in transformers' models


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], (B, 1 or 3, H, W), as 8-bit RGB, (B, 3, H, W), uint8."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"a network of RGB images takes 1 or 3 channels, got {images.shape[1]}; give a module.")
    return ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().expand(-1, 3, -1, -1)


def weights_sha256(module: nn.Module, without: Collection[str] = ()) -> str:
    """Hash of a module's parameters and buffers with their names, the same on every machine."""
    weights = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return hash_tensors({name: value for name, value in weights.items() if name not in without})


def load_vision_model(name: str, argument: str, choices: str, **options: Any) -> tuple[Any, Any, set[str]]:
    """A transformers model and its image processor, and the names of pooler weights that the checkpoint lacks.

    Args:
        name: Hub id or folder.
        argument: What `name` was given as, for messages.
        choices: What may be given, for messages.
        options: Of ``from_pretrained``.

    Raises:
        ValueError: If it cannot be loaded, or lacks other weights than a pooler's, which would be random.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True, **options)
        processor = AutoImageProcessor.from_pretrained(name, **{k: v for k, v in options.items() if k == "revision"})
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument} {name!r} cannot be loaded ({error}); give {choices}.") from error
    made_up = set(loading["missing_keys"])
    if others := sorted(key for key in made_up if "pooler" not in key.split(".")):
        raise ValueError(
            f"{argument} {name!r} lacks {len(others)} of its weights, {others[0]!r} first, which would be random; give "
            "a whole checkpoint."
        )
    return model.eval(), processor, made_up


class ImageEncoder:
    """Images -> features of length one.

    A transformers model gets the images as 8-bit RGB, gray repeated to three channels (unless the model's config has
    ``num_channels=1``), prepared by its image processor. Its features are, in this order,

    1. ``image_embeds`` (of a model with ``get_image_features``, what that returns),
    2. ``pooler_output``, unless the checkpoint holds no weights of the pooler,
    3. the class token of the last hidden state, where the model has one,
    4. the mean of the last hidden state over tokens or places.

    Any other module gets the images in [-1, 1], of the energy's size, (B, C, H, W), or what `feature_extractor` makes
    of them, and returns features (B, D). Gray images are repeated to three channels where its first convolution has
    three.

    Args:
        module: The network. It is run in eval mode, on its own device.
        feature_extractor: The image processor, which a transformers model needs.
        name: Hub id or folder; None = that of a transformers model.
        made_up: Names of weights that the checkpoint lacks.

    Raises:
        ValueError: If it is no module, or a transformers model without an image processor.
    """

    def __init__(
        self,
        module: nn.Module,
        feature_extractor: Any = None,
        name: str | None = None,
        made_up: Collection[str] = (),
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"image_encoder must be a torch.nn.Module or the id or folder of a transformers model, got "
                f"{type(module).__name__}."
            )
        self.module, self.feature_extractor, self.made_up = module, feature_extractor, frozenset(made_up)
        self.is_transformers = isinstance(module, PreTrainedModel)
        name = name or getattr(module, "name_or_path", None) or None
        self.id = name if name and not is_local(name) else None
        self.revision = getattr(getattr(module, "config", None), "_commit_hash", None) if self.id else None
        self.name = public_name(name) if name else type(module).__name__
        if self.is_transformers and feature_extractor is None:
            raise ValueError(
                f"image_encoder {self.name} is a transformers model and needs its image processor: give "
                f"feature_extractor=AutoImageProcessor.from_pretrained(...), or image_encoder as an id."
            )

    @classmethod
    def load(cls, name: str, revision: str | None = None) -> ImageEncoder:
        """A transformers model with its image processor, from safetensors only.

        Raises:
            ValueError: If it cannot be loaded.
        """
        choices = "the Hub id or folder of a transformers vision model with safetensors and an image processor"
        options = {} if revision is None else {"revision": revision}
        model, processor, made_up = load_vision_model(name, "image_encoder", choices, use_safetensors=True, **options)
        return cls(model, processor, name, made_up)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the weights."""
        return weights_sha256(self.module, self.made_up)

    def describe(self) -> dict[str, str | None]:
        """What a calibration keeps: ``name``, Hub ``id`` and commit (``revision``), None of a local one, ``sha256``."""
        return {"name": self.name, "id": self.id, "revision": self.revision, "sha256": self.sha256}

    def check_is(self, saved: Mapping[str, str | None]) -> None:
        """Raise a `ValueError` unless the weights are those that a calibration was made with."""
        if self.sha256 != saved["sha256"]:
            revision = f" at revision {saved['revision']}" if saved["revision"] else ""
            raise ValueError(
                f"image_encoder {self.name} has other weights (SHA-256 {self.sha256[:12]}...) than the encoder of the "
                f"calibration, {saved['name']}{revision} ({str(saved['sha256'])[:12]}...); give that one, or calibrate "
                "again."
            )

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features of length one, shape (B, D), float32, where the encoder is.

        A feature that is not finite gives NaN.

        Args:
            x: Images in [-1, 1], shape (B, C, H, W).

        Raises:
            ValueError: If the encoder cannot take the images, or gives no (B, D).
        """
        module = in_eval(self.module)
        x = self.prepare(x)
        try:
            if self.is_transformers:
                output = getattr(module, "get_image_features", module)(pixel_values=x)
            else:
                output = module(x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            kind = type(self.feature_extractor).__name__
            made = "the energy takes" if self.feature_extractor is None else f"its feature_extractor {kind} makes"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"image_encoder {self.name} cannot take the images that {made}, of shape {tuple(x.shape[1:])}: "
                f"{reason}. Give the image processor of the encoder's own size as feature_extractor."
            ) from error
        output = self.pool(output) if self.is_transformers else output
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(x):
            got = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(
                f"image_encoder {self.name} must give features of shape ({len(x)}, D) for {len(x)} images, got {got}; "
                "wrap it in a module that pools them, for example by their mean over tokens."
            )
        return F.normalize(output.float(), dim=1)

    def prepare(self, x: Tensor) -> Tensor:
        """The network's input, on its device."""
        device, dtype = execution_device(self.module), getattr(self.module, "dtype", None)
        if dtype is None:
            dtype = next((parameter.dtype for parameter in self.module.parameters()), torch.float32)
        channels = getattr(getattr(self.module, "config", None), "num_channels", None)
        if self.feature_extractor is not None:
            images = to_bytes(x.cpu())[:, : 1 if channels == x.shape[1] == 1 else 3]
            arrays = list(images.permute(0, 2, 3, 1).numpy())
            x = self.feature_extractor(images=arrays, return_tensors="pt")["pixel_values"]
        else:
            convolutions = (module for module in self.module.modules() if isinstance(module, nn.Conv2d))
            first = next(convolutions, None)
            if x.shape[1] == 1 and first is not None and first.in_channels == 3:
                x = x.expand(-1, 3, -1, -1)
        return x.to(device=device, dtype=dtype)

    def pool(self, output: Any) -> Any:
        """The features (B, D) in a transformers model's output, by the order in the class's docstring."""
        if isinstance(output, Tensor):
            return output
        pooled = getattr(output, "image_embeds", None)
        if pooled is None and not self.made_up:
            pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise ValueError(
                f"image_encoder {self.name} gives neither pooled features nor hidden states; load it with AutoModel."
            )
        has_class_token = any(name.split(".")[-1] in CLASS_TOKENS for name, _ in self.module.named_parameters())
        if hidden.ndim == 3:
            return hidden[:, 0] if has_class_token else hidden.mean(dim=1)
        return hidden.flatten(2).mean(dim=2)
