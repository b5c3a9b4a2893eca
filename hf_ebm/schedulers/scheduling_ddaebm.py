"""The denoising posterior of DDAEBM as a scheduler: from a predicted clean sample and ``x_next``, draw ``x_t``.

``step`` draws ``x_t ~ q(x_t | x_next, x0_pred)``; T steps, ``t = T-1 .. 0``, lead from noise to data, and the last one
adds no noise. Its config holds what diffusers' `DDPMScheduler` and `DDIMScheduler` need (``trained_betas``,
``prediction_type="sample"``), so ``DDIMScheduler.from_config(pipe.scheduler.config)`` samples the same models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.diffusion import SPACINGS, DiffusionCoefficients
from hf_ebm.hub.saved_weights import PathlessConfig
from hf_ebm.utils.validation import check_config_types

BETA_SCHEDULES = {f"vp_{spacing}": spacing for spacing in SPACINGS}  # diffusers' config key -> our spacing


@dataclass
class DDAEBMSchedulerOutput(BaseOutput):
    """Output of `DDAEBMScheduler.step`.

    Attributes:
        prev_sample: ``x_t``, the next, cleaner state of the sampling loop, shape (B, ...).
        pred_original_sample: The clean sample the step was made from, shape (B, ...).
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DDAEBMScheduler(PathlessConfig, SchedulerMixin, ConfigMixin):
    """Sampling with the denoising posterior of `DiffusionCoefficients.vp`.

    Args:
        num_train_timesteps: T, the number of denoising steps the models were trained for.
        beta_start: ``beta_min``, the rate of the noise at time 0.
        beta_end: ``beta_max``, the rate of the noise at time 1.
        beta_schedule: How the times are laid: ``"vp_"`` and a spacing of `hf_ebm.diffusion.vp_times`.
        prediction_type: ``"sample"``: the generator predicts the clean sample.
        clip_sample: Kept for the stock schedulers; the generator's tanh bounds images already.
        trained_betas: Worked out from the above and kept in the config for the stock schedulers; never read.
    """

    order = 1
    _compatibles = ["DDPMScheduler", "DDIMScheduler"]  # noqa: RUF012 (diffusers' own form)

    def __init__(
        self,
        num_train_timesteps: int = 4,
        beta_start: float = 0.1,
        beta_end: float = 20.0,
        beta_schedule: str = "vp_uniform",
        prediction_type: str = "sample",
        clip_sample: bool = False,
        trained_betas: list[float] | None = None,
    ) -> None:
        if prediction_type != "sample":
            raise ValueError(
                f"prediction_type must be 'sample' (the generator predicts the clean sample), got {prediction_type!r}."
            )
        if beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule must be one of {tuple(BETA_SCHEDULES)}, got {beta_schedule!r}.")
        coefficients = DiffusionCoefficients.vp(
            num_train_timesteps, beta_start, beta_end, BETA_SCHEDULES[beta_schedule]
        )
        # Registered without the usual decorator: values left at their default must survive from_config into another
        # scheduler class. The stock schedulers' index t is our pair (t, t + 1): alphas_cumprod[t] = abar_{t+1}.
        first = 1.0 - coefficients.alphas_cumprod[1].item()
        self.register_to_config(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            prediction_type="sample",
            clip_sample=clip_sample,
            trained_betas=[first, *coefficients.betas[2:].tolist()],
        )
        self.coefficients = coefficients
        # as numbers: of a tensor each of them is an operation, and on a GPU a copy that is waited for
        names = ("posterior_mean_coef_x0", "posterior_mean_coef_xnext", "sampling_std")
        self.step_weights = list(zip(*(getattr(coefficients, name).tolist() for name in names), strict=True))
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As every diffusers scheduler; a value of the wrong type is a `ValueError` that names it."""
        check_config_types(cls.__init__, config or {})
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Lay the timesteps ``T-1 .. 0``.

        Args:
            num_inference_steps: T, or None for T: every step was trained with its own noise, none can be left out.
            device: Where `timesteps` shall be.

        Raises:
            ValueError: If `num_inference_steps` is not T.
        """
        num_timesteps = self.config.num_train_timesteps
        if num_inference_steps is not None and num_inference_steps != num_timesteps:
            raise ValueError(
                f"num_inference_steps must be {num_timesteps}, the number of steps this model was trained for, got "
                f"{num_inference_steps}; leave it out. (In Python DDIMScheduler.from_config(pipe.scheduler.config) as "
                "pipe.scheduler takes fewer.)"
            )
        self.num_inference_steps = num_timesteps
        self.timesteps = torch.arange(num_timesteps - 1, -1, -1, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """`sample` unchanged: the models see the states as they are."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDAEBMSchedulerOutput | tuple[Tensor]:
        """Draw ``x_t ~ q(x_t | x_next, x0_pred)``.

        Args:
            model_output: ``x0_pred``, the generator's clean sample, shape (B, ...).
            timestep: Index t of the state to draw, T-1 .. 0.
            sample: ``x_next``, shape (B, ...).
            generator: Random number generator, or one per sample. Not used at t = 0, which adds no noise.
            return_dict: Whether to return a `DDAEBMSchedulerOutput` or a tuple.
        """
        step = int(timestep)
        if not 0 <= step < len(self.step_weights):
            raise ValueError(f"timestep must be in 0..{len(self.step_weights) - 1}, got {step}.")
        # as DiffusionCoefficients.posterior_sample, with one t for all
        weight_x0, weight_xnext, std = self.step_weights[step]
        prev_sample = weight_x0 * model_output + weight_xnext * sample
        if step > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev_sample = prev_sample + std * noise
        if not return_dict:
            return (prev_sample,)
        return DDAEBMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=model_output)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_next`` of the pair with index `timesteps`, drawn from its marginal: what the generator sees there."""
        return self.coefficients.q_sample(original_samples, timesteps + 1, noise)
