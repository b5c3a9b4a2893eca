"""What the samplers of an energy share: one gradient per timestep in, the next point at which to take it out.

    scheduler.set_timesteps(num_inference_steps)
    for t in scheduler.timesteps:
        energy, grad = energy_and_grad(energy_fn, x)
        x = scheduler.step(grad, t, x, energy=energy, generator=generator).prev_sample

All samplers are given by the Langevin step's two numbers, the step size s and the noise n; they target
``exp(-E / temperature)`` with ``temperature = (n/s)^2``, so one is swapped for another by ``from_config``. A sampler
that must evaluate a proposal before it accepts it (MALA, HMC) keeps the chain's state between steps, as diffusers' Heun
does.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ebm.hub.saved_weights import PathlessConfig
from hf_ebm.utils.validation import check_count, check_positive


@dataclass
class EnergySamplerOutput(BaseOutput):
    """Output of one step of a sampler.

    Attributes:
        prev_sample: Where the gradient is needed next; after the last timestep, the chain's end. Shape (B, ...);
            a sampler that runs replicas needs the gradient at more rows in between.
        current_sample: The chain's state now, which may lag behind `prev_sample` while a proposal waits, (B, ...).
        energy: Energy at the sample that was given, shape (B,); None if it was not given.
        grad: The gradient that was given, shape (B, ...).
        acceptance_rate: Share of the batch that took its proposal at this step, a scalar; None where there was none.
        swap_rate: Share of the replicas' neighbouring pairs that swapped states, of those whose turn it was, a scalar;
            None where there was none.
    """

    prev_sample: Tensor
    current_sample: Tensor
    energy: Tensor | None = None
    grad: Tensor | None = None
    acceptance_rate: Tensor | None = None
    swap_rate: Tensor | None = None

    @property
    def grad_norm(self) -> Tensor | None:
        """Euclidean norm of each sample's gradient, shape (B,); worked out when it is asked for."""
        return None if self.grad is None else self.grad.flatten(1).norm(dim=1)


Generators = torch.Generator | list[torch.Generator] | None  # one for the batch, or one per sample
SIZES = (1e-19, 1e19)  # of steps and noises, whose squares are numbers in float32 as well


def check_size(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a number that steps and noises can have."""
    check_positive(name, value)
    if not SIZES[0] <= value <= SIZES[1]:
        raise ValueError(f"{name} must be from {SIZES[0]:g} to {SIZES[1]:g}, got {value!r}.")


class EnergySampler(PathlessConfig, SchedulerMixin, ConfigMixin):
    """Base of the samplers: timesteps, the checks, and the temperature. Subclasses write `update`."""

    order = 1
    init_noise_sigma = 1.0
    rejects = False  # whether proposals are accepted or rejected by their energy, which may be infinite

    def setup(self, num_train_timesteps: int, step_size: float, noise_std: float | None) -> None:
        """Check the settings all samplers have; called by each ``__init__``.

        Raises:
            ValueError: If one of them cannot be used.
        """
        check_count("num_train_timesteps", num_train_timesteps, 0)
        check_size("step_size", step_size)
        if noise_std is not None:
            check_size("noise_std", noise_std)
        self.step_size = float(step_size)
        self.noise_std = float(step_size if noise_std is None else noise_std)
        self.set_timesteps(max(1, num_train_timesteps))  # 0: the model was trained without the chain

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As every diffusers scheduler; of another sampler's config the settings that this one has are taken."""
        if config is not None and config.get("_class_name", "") != cls.__name__:
            known = inspect.signature(cls.__init__).parameters
            config = {key: value for key, value in config.items() if key in known or key.startswith("_")}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def temperature(self) -> float:
        """``(noise_std / step_size)^2``: the chain targets ``exp(-E / temperature)``."""
        return (self.noise_std / self.step_size) ** 2

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def num_evaluations(self, num_inference_steps: int) -> int:
        """Gradients that `num_inference_steps` updates of the chain need: one each, unless a sampler overrides it."""
        return num_inference_steps

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Start a chain of `num_inference_steps` updates; ``timesteps`` has one entry per gradient it needs.

        Args:
            num_inference_steps: Updates of the chain >= 1; None = the number the model was trained with.
            device: Where `timesteps` shall be.

        Raises:
            ValueError: If it is not a whole number >= 1.
        """
        number = self.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
        check_count("num_inference_steps", number, 1)
        self.num_inference_steps = int(number)
        self.timesteps = torch.arange(self.num_evaluations(self.num_inference_steps), device=device)
        self.reset()

    def reset(self) -> None:
        """Forget the chain: the next `step` is its first."""
        self.step_index = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """`sample` unchanged: energies see the states as they are."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        energy: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> EnergySamplerOutput | tuple[Tensor, Tensor]:
        """One step of the chain.

        Args:
            model_output: Gradient of the energy at `sample`, its shape.
            timestep: Entry of `timesteps`; the chain counts its steps itself.
            sample: The start at the first call, later the last call's ``prev_sample``, shape (B, ...).
            energy: Energy at `sample`, shape (B,); samplers with proposals need it.
            generator: Random number generator, or one per sample of the start.
            return_dict: Whether to return an `EnergySamplerOutput`, or its first two entries as a tuple.

        Raises:
            ValueError: If a shape does not fit, a needed `energy` is missing, or the chain has no step left.
        """
        output = self.update(model_output, sample, energy, generator)
        return output if return_dict else (output.prev_sample, output.current_sample)

    def update(self, grad: Tensor, sample: Tensor, energy: Tensor | None, generator: Generators) -> EnergySamplerOutput:
        """The sampler's step: see `step`."""
        raise NotImplementedError

    def advance(self) -> int:
        """This step's index, counted here and not read from `timestep`: a GPU is never waited for."""
        index = self.step_index
        if index >= len(self.timesteps):
            raise ValueError(
                f"step was called more than the {len(self.timesteps)} times of this chain; call set_timesteps first."
            )
        self.step_index = index + 1
        return index
