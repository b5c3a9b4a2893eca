"""Sampling from an energy trained by denoising score matching: a Langevin chain from noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.langevin import run_chain
from hf_ebm.models.dsm_energy import DSMEnergyModel
from hf_ebm.models.eval_copy import eval_copy
from hf_ebm.pipelines.pipeline_base import EBMPipeline, task
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.schedulers.scheduling_mala import MALAScheduler
from hf_ebm.utils.validation import check_count


class DSMPipeline(EBMPipeline):
    """Generate and score with an energy trained by denoising score matching (Vincent 2011).

    Args:
        energy_model: ``x -> energy``.
        scheduler: Sampler of the chain.
        image_processor: Preparation of images; None = that of the energy's size. Vectors have none.
    """

    method_name = "denoising score matching"
    sampling_text = "The model starts from noise and takes small steps down the energy, with a little noise."
    samplers: ClassVar[dict[str, Any]] = {"Langevin (its own)": LangevinScheduler, "MALA": MALAScheduler}
    model_cpu_offload_seq = "energy_model"
    _optional_components: ClassVar[list[str]] = ["image_processor"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["x"]

    def __init__(
        self,
        energy_model: DSMEnergyModel,
        scheduler: EnergySampler,
        image_processor: EBMImageProcessor | None = None,
    ) -> None:
        super().__init__()
        image_processor = self.make_image_processor(image_processor, energy_model)
        self.register_modules(energy_model=energy_model, scheduler=scheduler, image_processor=image_processor)

    @property
    def data_noise_std(self) -> float:
        """Sigma of the training data's noise."""
        return self.energy_model.config.noise_std

    @task
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample; the arguments are those of every pipeline."""
        self.check_common_inputs(batch_size, generator, output_type)
        num_steps = len(self.scheduler) if num_inference_steps is None else num_inference_steps
        check_count("num_inference_steps", num_steps, 1)
        names = self.callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        energy_model = eval_copy(self.energy_model)

        def after_step(step: int, t: Tensor, x: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return x
            return (callback_on_step_end(self, step, t, dict.fromkeys(names, x)) or {}).get("x", x)

        # 1. start from noise, 2. follow the energy
        shape = (batch_size, *self.sample_shape)
        x = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        chain = run_chain(
            self.scheduler,
            lambda x: energy_model(x.to(energy_model.dtype)).energy,
            x,
            num_steps,
            generator,
            after_step=after_step,
            progress_bar=self.until_interrupted,
        )
        images = self.post_process(chain.sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
