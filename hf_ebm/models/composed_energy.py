"""Compositions of energies: products, mixtures and constraints, each an energy like any other.

With E_i(x, t[, y_i]) the energies of the parts and tau_i their temperatures (p_i ~ exp(-E_i / tau_i)):

    and    E = sum_i w_i E_i / tau_i                     the product of p_i^w_i; w_i < 0 is "not"
    or     E = -log sum_i w_i exp(-E_i / tau_i - log Z_i)    the mixture with weights w_i

Both have temperature 1. Without the log Z_i of an "or" its weights are w_i Z_i, which are unknown. A negative weight
may leave no normalisable density, and drives a chain out of the data's range: it needs `bounds` on x, outside of which
the energy is infinite, and a sampler that rejects (MALA, HMC).

At a noise level t > 0 the sum of the parts' energies is not the energy of the noised product: Langevin or MCMC steps at
each level correct for it. Source: Du et al., "Compositional Visual Generation with Energy Based Models", NeurIPS 2020,
and "Reduce, Reuse, Recycle", ICML 2023.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: F401 (diffusers looks here)

from hf_ebm.data.image_processor import register_image_processor
from hf_ebm.hub.download import HUB_OPTIONS, fetch_network
from hf_ebm.models.energy import EnergyModel, EnergyOutput, check_energy_model, check_sample, energy_of
from hf_ebm.utils.files import expand_home
from hf_ebm.utils.validation import is_number

OPERATIONS = ("and", "or")
LOADING: ContextVar[tuple[str, ...]] = ContextVar("LOADING", default=())  # compositions around the present one


class ComposedEnergyConfig(PreTrainedConfig):
    """Settings of `ComposedEnergyModel`; each list has one entry per part.

    Args:
        parts: ``{"name", "revision"}`` of each part, by which it is loaded: a folder or Hub id of an energy.
        operation: ``"and"`` or ``"or"``.
        weights: w_i.
        temperatures: tau_i.
        class_labels: y_i of parts with classes; None = the marginal energy.
        log_z: log Z_i of the parts of an "or"; None = unknown.
        bounds: Lowest and highest value of x with a finite energy; None = no bounds.
        num_timesteps: T, the number of noise levels of all parts.
        padding: Black pixels on each side in the preparation of images, as of the first part.
    """

    model_type = "hf_ebm_composed_energy"

    parts: list[dict] | None = None
    operation: str = "and"
    weights: list[float] | tuple[float, ...] | None = None
    temperatures: list[float] | tuple[float, ...] | None = None
    class_labels: list[int | None] | None = None
    log_z: list[float] | tuple[float, ...] | None = None
    bounds: list[float] | tuple[float, ...] | None = None
    num_timesteps: int = 1
    padding: int = 0


class CallableTerm(nn.Module):
    """A function ``f(x, t) -> (B,)`` as a part: a constraint, a mask, minus a classifier's log probability."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, timestep: Any = 0) -> EnergyOutput:
        """The function's values."""
        return EnergyOutput(energy=self.function(x, timestep))


class ComposedEnergyModel(EnergyModel):
    """A composition of energies, which every sampler and score takes as one energy of temperature 1.

        cat_and_red = ComposedEnergyModel([energy, red], class_labels=[3, None])
        not_three = ComposedEnergyModel([energy, energy], weights=[1.0, -0.5], class_labels=[None, 3], bounds=(-1, 1))

    Args:
        parts: Energies, or functions ``f(x, t) -> (B,)``, at least one of them an energy.
        operation: ``"and"``: their weighted sum; ``"or"``: their mixture.
        weights: w_i; None = all 1 for "and", all the same share for "or".
        class_labels: y_i of parts with classes, one per part; None = the marginal.
        temperatures: tau_i; None = those of the energies' configs (``energy_temperature``), 1 for functions.
        log_z: log Z_i of the parts of an "or", which makes its weights those of the mixture; None = unknown.
        bounds: Lowest and highest value of x; the energy outside is infinite. Needed for negative weights.

    Raises:
        ValueError: If the parts do not fit each other, or an argument is not as described.
    """

    config_class = ComposedEnergyConfig

    def __init__(
        self,
        parts: Sequence[Any],
        operation: str = "and",
        weights: Sequence[float] | None = None,
        class_labels: Sequence[int | None] | None = None,
        temperatures: Sequence[float] | None = None,
        log_z: Sequence[float] | None = None,
        bounds: Sequence[float] | None = None,
    ) -> None:
        energies: list[Any] = [part for part in parts if isinstance(part, nn.Module)]
        if not energies:
            raise ValueError(f"parts must hold at least one energy, got {len(parts)} functions; add an energy model.")
        for part in energies:
            check_energy_model(part)
        shapes = {tuple(part.sample_shape) for part in energies}
        levels = {getattr(part.config, "num_timesteps", 1) for part in energies}
        if len(shapes) > 1 or len(levels) > 1:
            raise ValueError(
                f"parts must have one sample shape and one number of noise levels, got {sorted(shapes)} and "
                f"{sorted(levels)}; compose energies of one size and method."
            )
        number = len(parts)
        if operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {OPERATIONS}, got {operation!r}.")
        if temperatures is None:
            temperatures = [getattr(getattr(part, "config", None), "energy_temperature", 1.0) for part in parts]
        if weights is None:
            weights = [1.0 if operation == "and" else 1.0 / number] * number
        if class_labels is None:
            class_labels = [None] * number
        numbers = {"weights": weights, "temperatures": temperatures, "log_z": log_z, "bounds": bounds}
        lengths: dict[str, Any] = {"class_labels": class_labels, **numbers}
        for name, values in lengths.items():
            if values is not None and name != "bounds" and len(values) != number:
                raise ValueError(f"{name} must have one entry for each of the {number} parts, got {len(values)}.")
        for name, values in numbers.items():
            if values is not None and not all(is_number(value) and math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite numbers, got {list(values or ())!r}.")
        if not all(temperature > 0 for temperature in temperatures):
            raise ValueError(f"temperatures must be > 0, got {list(temperatures)!r}.")
        if bounds is not None and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise ValueError(f"bounds must be (lowest, highest) with lowest < highest, got {bounds!r}.")
        if operation == "or" and not all(weight > 0 for weight in weights):
            raise ValueError(f"weights of an 'or' must be > 0, as those of a mixture, got {list(weights)!r}.")
        if min(weights) < 0 and bounds is None:
            raise ValueError(
                f"weights must be >= 0 without bounds, got {list(weights)!r}: a negative weight may leave no density "
                "that can be normalised; give bounds=(-1.0, 1.0) for images, and sample by MALA or HMC."
            )
        names = [describe_part(part) for part in parts]
        config = ComposedEnergyConfig(
            parts=names,
            operation=operation,
            weights=[float(weight) for weight in weights],
            temperatures=[float(temperature) for temperature in temperatures],
            class_labels=list(class_labels),
            log_z=None if log_z is None else [float(value) for value in log_z],
            bounds=None if bounds is None else [float(value) for value in bounds],
            num_timesteps=levels.pop(),
            padding=getattr(energies[0].config, "padding", 0),
        )
        super().__init__(config)
        self.parts = nn.ModuleList(part if isinstance(part, nn.Module) else CallableTerm(part) for part in parts)
        for part, label in zip(self.parts, class_labels, strict=True):
            if label is not None and not getattr(getattr(part, "config", None), "num_classes", 0):
                raise ValueError(f"class_labels must be None for a part without classes, got {label!r}.")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (D,)."""
        energies: list[Any] = [part for part in self.parts if not isinstance(part, CallableTerm)]
        return energies[0].sample_shape

    @property
    def needs_rejection(self) -> bool:
        """Whether only samplers that reject proposals follow it: it has bounds."""
        return self.config.bounds is not None

    def extra_repr(self) -> str:
        """The operation, and what is unknown of it."""
        config = self.config
        text = f"operation={config.operation!r}, weights={config.weights}, temperatures={config.temperatures}"
        if config.operation == "or" and config.log_z is None:
            text += ", log_z=None (the mixture's weights are w_i Z_i, unknown)"
        return text

    def forward(self, pixel_values: Tensor, timestep: Tensor | int | None = None, **_: Any) -> EnergyOutput:
        """Energy of each sample.

        Args:
            pixel_values: Samples in the models' range, shape (B, ...).
            timestep: Noise level 0..T-1, a number or shape (B,); None = 0.

        Returns:
            `EnergyOutput` with ``energy`` of shape (B,), float32; infinite outside the bounds.

        Raises:
            ValueError: If a part does not return one number per sample.
        """
        check_sample("pixel_values", pixel_values, self.sample_shape)
        config, terms = self.config, []
        for part, label, temperature in zip(self.parts, config.class_labels, config.temperatures, strict=True):
            time = 0 if timestep is None else timestep
            terms.append(energy_of(part, pixel_values, time, label).float() / temperature)
        energies = torch.stack(terms)  # (parts, B)
        weights = torch.tensor(config.weights, device=energies.device)[:, None]
        if config.operation == "and":
            energy = (weights * energies).sum(dim=0)
        else:
            log_z = 0.0 if config.log_z is None else torch.tensor(config.log_z, device=energies.device)[:, None]
            energy = -(weights.log() - energies - log_z).logsumexp(dim=0)
        if config.bounds is not None:
            low, high = config.bounds
            inside = ((pixel_values >= low) & (pixel_values <= high)).flatten(1).all(dim=1)
            energy = torch.where(inside, energy, torch.inf)
        return EnergyOutput(energy=energy)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the config, which names the parts; their weights stay where they are.

        Raises:
            ValueError: If a part is a function, or an energy that was not loaded from a folder or the Hub.
        """
        for index, part in enumerate(self.config.parts):
            if part is None:
                what = "a function" if isinstance(self.parts[index], CallableTerm) else "an energy in memory only"
                raise ValueError(
                    f"part {index} is {what}, which a saved composition cannot name; save or push the energy, load it "
                    "from there, and compose again."
                )
        self.config.save_pretrained(expand_home(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved composition and its parts.

        Raises:
            ValueError: If it is no composition, or one that is a part of itself.
            OSError: If a part cannot be found.
        """
        where = {name: kwargs[name] for name in (*HUB_OPTIONS, "subfolder") if kwargs.get(name) is not None}
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(pretrained_model_name_or_path, **where)
        if not isinstance(config, ComposedEnergyConfig) or not config.parts:
            raise ValueError(f"{pretrained_model_name_or_path} holds no composition of energies.")
        dtype = {"dtype": kwargs["dtype"]} if kwargs.get("dtype") is not None else {}
        here = os.path.realpath(pretrained_model_name_or_path)
        if here in LOADING.get():
            raise ValueError(
                f"{pretrained_model_name_or_path} is a composition that names itself as a part, directly or by another "
                "one; name other energies in its config.json."
            )
        outer = LOADING.set((*LOADING.get(), here))
        try:
            parts = [
                AutoModel.from_pretrained(
                    fetch_network(part["name"], {"revision": part["revision"]}), use_safetensors=True, **dtype
                )
                for part in config.parts
            ]
        finally:
            LOADING.reset(outer)
        for part, description in zip(parts, config.parts, strict=True):
            part.name_or_path = part.config.name_or_path = description["name"]
        names = ("operation", "weights", "class_labels", "temperatures", "log_z", "bounds")
        model = cls(parts, **{name: getattr(config, name) for name in names})
        model.config.parts = config.parts
        return model.eval()


def describe_part(part: Any) -> dict[str, Any] | None:
    """How a saved composition names a part: ``{"name", "revision"}``; None if it cannot be loaded again."""
    name = getattr(part, "name_or_path", "")
    if not name:
        return None
    return {"name": str(name), "revision": getattr(part.config, "_commit_hash", None)}


AutoConfig.register(ComposedEnergyConfig.model_type, ComposedEnergyConfig)
AutoModel.register(ComposedEnergyConfig, ComposedEnergyModel)
register_image_processor(ComposedEnergyConfig)
