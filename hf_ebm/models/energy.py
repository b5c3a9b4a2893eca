"""What every energy model is: ``energy_model(x, t) -> output.energy``, shape (B,), low = likely.

The unnormalised density is ``p(x) ~ exp(-E(x, t))``. Energies are `transformers.PreTrainedModel`s, because people score
with them outside any sampler (`AutoModel`, `transformers.pipeline`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.hub.download import fetch_network
from hf_ebm.hub.saved_weights import require_safetensors, save_network
from hf_ebm.models.class_labels import expand_class_labels
from hf_ebm.models.class_scores import ConditionalEnergyConfig, conditional_energy
from hf_ebm.models.loaded_weights import check_same_architecture
from hf_ebm.utils.files import expand_home
from hf_ebm.utils.validation import check_config_types, python_number


@dataclass
class EnergyOutput(ModelOutput):
    """Output of an energy model.

    Attributes:
        energy: ``E(x, t)`` of each sample in nats, low = likely, shape (B,), float32. With a label it is
            ``E(x, t, y)``, and of a conditional energy without one the marginal.
        logits: Class scores ``l_y(x, t)``, shape (B, num_classes), float32; ``p(y | x) = softmax(logits)``. None for an
            energy without class scores.
        residuals: On request, ``x - U(x, t)`` of an energy of images ``1/2 ||x - U(x, t)||^2``, shape (B, C, H, W):
            ``1/2 residuals^2`` are its per-pixel terms, whose sum is the energy without the term of the classes.
    """

    energy: Tensor | None = None
    logits: Tensor | None = None
    residuals: Tensor | None = None


def check_sample(name: str, x: Any, sample_shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless `x` is a floating batch of samples of `sample_shape`: (C, H, W) or (D,)."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a floating-point tensor, got {found}; convert images to floats in [-1, 1].")
    if tuple(x.shape[1:]) != tuple(sample_shape):
        raise ValueError(
            f"{name} must have shape (B, {', '.join(map(str, sample_shape))}) for this model, got {tuple(x.shape)}; "
            "resize or convert the input, or use a model of that size."
        )


ENERGY_ATTRIBUTES = ("config", "sample_shape", "device", "dtype")
ENERGY_CONTRACT = (
    "an energy is a subclass of hf_ebm.models.energy.EnergyModel: a transformers.PreTrainedModel with a `config`, a "
    "`sample_shape` ((C, H, W) for images, (D,) for vectors) and `forward(x, timestep)`, which returns an output whose "
    "`.energy` has shape (B,), low = likely"
)


def check_energy_model(energy_model: Any) -> None:
    """Raise a `ValueError` unless `energy_model` has what scoring and sampling read from an energy."""
    missing = [name for name in ENERGY_ATTRIBUTES if not hasattr(energy_model, name)]
    if missing:
        raise ValueError(
            f"energy_model must be an energy, got {type(energy_model).__name__}, which has no {', no '.join(missing)}; "
            f"{ENERGY_CONTRACT}."
        )


def energy_of(energy_model: Any, x: Tensor, timestep: Tensor | int = 0, class_labels: Any = None) -> Tensor:
    """``E(x, timestep)``, or with labels ``E(x, timestep, class_labels)``, shape (B,).

    Raises:
        ValueError: If the model's output has no ``energy`` of shape (B,), or it does not take the labels.
    """
    labels = {} if class_labels is None else {"class_labels": class_labels}
    return energy_in(energy_model(x, timestep, **labels), x, energy_model)


def energy_in(output: Any, x: Tensor, energy_model: Any) -> Tensor:
    """The energy (B,) in the model's output for `x`; else a `ValueError`."""
    energy = getattr(output, "energy", None)
    if not isinstance(energy, Tensor) or energy.shape != x.shape[:1]:
        got = f"an energy of shape {tuple(energy.shape)}" if isinstance(energy, Tensor) else type(output).__name__
        raise ValueError(
            f"energy_model must return one number per sample, shape ({len(x)},), got {got} from "
            f"{type(energy_model).__name__}; {ENERGY_CONTRACT}."
        )
    return energy


def expand_timestep(t: Tensor | int | None, x: Tensor, num_timesteps: int) -> Tensor:
    """`t` as an integer tensor of shape (B,) on the device of `x`; None means 0, a number goes to every sample.

    A number, and a CPU tensor that holds one, is filled in on the device: copying it there would wait for the GPU.

    Raises:
        ValueError: If one is not in ``0..num_timesteps-1``; a tensor on a GPU is not checked, which would wait for it.
    """
    t = torch.as_tensor(0 if t is None else t)
    looked_at = t.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and not ((t >= 0) & (t < num_timesteps)).all():
        levels = f"0..{num_timesteps - 1}, the noise levels of this model"
        raise ValueError(f"timestep must be in {levels}, got {t.tolist()}.")
    if looked_at and t.ndim == 0:
        return torch.full((x.shape[0],), t.item(), dtype=t.dtype, device=x.device)
    t = t.to(x.device)
    return t.expand(x.shape[0]) if t.ndim == 0 else t


def half_squared_norm(x: Tensor, predicted: Tensor) -> Tensor:
    """``1/2 ||x - predicted||^2`` of each sample, shape (B,), in float32 at least: a sum over many pixels needs it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return 0.5 * (x.to(wide) - predicted.to(wide)).square().flatten(1).sum(dim=1)


class EnergyModel(PreTrainedModel):
    """Base of the energies: loading that never leaves a weight unset, and the inputs' check."""

    base_model_prefix = ""
    main_input_name = "pixel_values"
    has_residuals = False  # whether `forward` takes ``output_residuals=True``, for heat maps
    _supports_sdpa = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        check_config_types(type(config), vars(config))
        for name, value in vars(config).items():
            if (number := python_number(value)) is not value:
                setattr(config, name, number)
        if isinstance(config, ConditionalEnergyConfig):
            config.check_classes()
        super().__init__(config, *args, **kwargs)

    def with_labels(self, base: Tensor, logits: Tensor | None, class_labels: Any) -> EnergyOutput:
        """The output for the base energy (B,) and the class scores (B, num_classes), None if there are none."""
        labels = expand_class_labels(class_labels, base, self.config.num_classes)
        if labels is None or logits is None:
            return EnergyOutput(energy=base)
        energy = conditional_energy(base, logits, labels, self.config.energy_temperature)
        return EnergyOutput(energy=energy, logits=logits)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        config: Any = self.config
        if hasattr(config, "data_dim"):
            return (config.data_dim,)
        return (config.num_channels, config.image_size, config.image_size)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the networks' own initialisation: `PreTrainedModel` would overwrite it."""

    @contextlib.contextmanager
    def chain(self) -> Iterator[None]:
        """Inside, the energy of training's chain: eval mode, frozen, spectral-norm weights computed once.

        Where the config says ``power_iteration="every_forward"`` and the model is training, each forward of the chain
        moves the estimate of the singular values instead, as the published code does.

        It changes the model until it exits, so it is for a training loop, which has the model to
        itself. To sample or score use `hf_ebm.models.eval_copy.eval_copy`, which does not.
        """
        every_forward = self.training and getattr(self.config, "power_iteration", None) == "every_forward"
        was_training = self.training
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.train(every_forward)
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            with contextlib.nullcontext() if every_forward else parametrize.cached():
                yield
        finally:
            self.train(was_training)
            for parameter in trainable:
                parameter.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load an energy as `PreTrainedModel.from_pretrained` does, from safetensors only.

        As diffusers' models, and as the networks beside it, it is float32 unless ``dtype`` is given: the config's
        ``dtype`` is that of the variant that was saved last.

        Raises:
            ValueError: If the weights lack a tensor of this architecture, or hold one of another name or size.
            OSError: If there are no safetensors, or they are damaged.
        """
        kwargs.pop("ignore_mismatched_sizes", None)
        want_info = kwargs.pop("output_loading_info", False)
        require_safetensors(kwargs)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        folder = fetch_network(pretrained_model_name_or_path, kwargs)
        try:
            model, info = super().from_pretrained(
                folder, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            raise OSError(f"weights of {pretrained_model_name_or_path} are damaged or cut off ({error}).") from error
        check_same_architecture(cls, pretrained_model_name_or_path, info)
        # Weights mapped from the file lie at odd addresses, where some kernels add in another order: copies, which are
        # aligned, give the energies from before saving bit for bit.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        if pretrained_model_name_or_path is not None:
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        model.eval()
        return (model, info) if want_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained`, with the image processor beside: ``preprocessor_config.json``.

        Weights of the same variant that were in the folder are replaced, and those of other variants stay. `variant`
        and `max_shard_size` are named here because diffusers' pipelines look for them in the signature.
        """
        save_directory = expand_home(save_directory)
        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict, "max_shard_size": max_shard_size}
        save_network(super().save_pretrained, save_directory, variant, push_to_hub, **kwargs)
        if len(self.sample_shape) == 3 and self.sample_shape[0] in (1, 3):
            processor = EBMImageProcessor(
                self.sample_shape[-1], self.sample_shape[0], getattr(self.config, "padding", 0)
            )
            processor.save_pretrained(save_directory)

    def forward(self, pixel_values: Tensor, timestep: Tensor | int | None = None) -> EnergyOutput:
        """``E(x, t)``; `timestep` in 0..T-1, a number or shape (B,), None = 0. Methods without time ignore it.

        Conditional energies also take ``class_labels``, and return ``E(x, t, y)``.
        """
        raise NotImplementedError
