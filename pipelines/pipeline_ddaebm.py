"""Sampling with DDAEBM: T generator calls, each followed by one draw from the denoising posterior.

Loading finds a component's class only in a module that is imported already: all that a DDAEBM can hold are, here.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DDPMScheduler, ImagePipelineOutput, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import conditional_energy_grad, langevin_chain, run_chain
from hf_ebm.losses.conditional import guided_energy
from hf_ebm.models.energy import EnergyOutput, energy_of
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.models.mlp_energy import MLPEnergyModel
from hf_ebm.models.mlp_generator import MLPGeneratorModel
from hf_ebm.models.mlp_pair_inference import MLPPairInferenceModel
from hf_ebm.models.pair_inference import PairInferenceModel
from hf_ebm.models.unet_energy import UNetEnergyModel
from hf_ebm.models.unet_generator import UNetGeneratorModel
from hf_ebm.pipelines.pipeline_base import EBMPipeline, task
from hf_ebm.schedulers.denoising_contract import contract_violation
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.scheduling_ddaebm import DDAEBMScheduler
from hf_ebm.scoring.statistics import ReconstructionError, most_likely_labels
from hf_ebm.utils.torch_utils import channels_last_on_cpu, execution_device
from hf_ebm.utils.validation import check_count, check_positive

logger = logging.getLogger(__name__)
NUM_DENOISING_DRAWS = 8  # of x_1 and latent for a DDAEBM's reconstruction error


@functools.lru_cache
def takes_generator(scheduler: Any) -> bool:
    """Whether the ``step`` of this class of schedulers draws noise."""
    return "generator" in inspect.signature(scheduler.step).parameters


@torch.no_grad()
def compute_denoising_errors(
    generator_model: Any,
    x: Tensor,
    coefficients: DiffusionCoefficients,
    seed: int = 0,
    class_labels: Tensor | None = None,
    num_levels: int | None = None,
) -> Tensor:
    """Mean squared error per pixel of the generator's clean images of noisy ones, shape (N, num_levels), on the CPU.

    Column t is the error of one call from ``x_{t+1} ~ q(x_{t+1} | x)``, as the mean over several noises and latents,
    given by `seed` and the same for all samples and levels. With classes, and without `class_labels` (N,), a sample's
    label is that with the smallest error at t = 0. OOD detection by the reconstructions of a diffusion model from
    several noise levels is from Graham et al., CVPR workshops 2023, who run its whole chain from each.

    Args:
        generator_model: The generator.
        x: Samples in the model's range, shape (N, ...).
        coefficients: Its diffusion.
        seed: Of noises and latents.
        class_labels: Of each sample, shape (N,); None = see above.
        num_levels: Number of columns, those of the cleaner states; None = all T.
    """
    num_classes = getattr(generator_model.config, "num_classes", 0)
    if num_classes and class_labels is None:
        each = (torch.full((len(x),), label) for label in range(num_classes))
        of_labels = [compute_denoising_errors(generator_model, x, coefficients, seed, y, 1)[:, 0] for y in each]
        if num_levels == 1:
            return torch.stack(of_labels).amin(dim=0)[:, None]
        class_labels = torch.stack(of_labels).argmin(dim=0)
    generator_model = in_eval(generator_model)
    q, x = coefficients.to("cpu"), x.cpu().float()
    device, dtype = execution_device(generator_model), generator_model.dtype
    given = () if class_labels is None else (class_labels.to(device),)
    columns = []
    for t in range(q.num_timesteps if num_levels is None else num_levels):
        random, errors = torch.Generator().manual_seed(seed), torch.zeros(len(x))
        for _ in range(NUM_DENOISING_DRAWS):
            noise = torch.randn(1, *x.shape[1:], generator=random)
            z = torch.randn(1, generator_model.config.latent_dim, generator=random)
            x_next = q.q_sample(x, torch.full((len(x),), t + 1), noise.expand(x.shape)).to(device=device, dtype=dtype)
            clean = generator_model(x_next, t, z.expand(len(x), -1).to(device=device, dtype=dtype), *given).sample
            errors += (clean.float().cpu() - x).square().flatten(1).mean(dim=1)
        columns.append(errors / NUM_DENOISING_DRAWS)
    return torch.stack(columns, dim=1)


@torch.no_grad()
def denoise(
    generator_model: Any,
    x: Tensor,
    coefficients: DiffusionCoefficients,
    seed: int = 0,
    class_labels: Tensor | None = None,
) -> Tensor:
    """The mean of the generator's clean images from ``x_1 ~ q(x_1 | x)``, shape of `x`, float32, where the model is.

    Noises, latents and labels are as for the error. Without `class_labels` a sample's label is the one whose mean is
    nearest to it.
    """
    num_classes = getattr(generator_model.config, "num_classes", 0)
    device, dtype = execution_device(generator_model), generator_model.dtype
    x = x.to(device).float()
    if num_classes and class_labels is None:
        each = (torch.full((len(x),), label, device=device) for label in range(num_classes))
        of_labels = torch.stack([denoise(generator_model, x, coefficients, seed, labels) for labels in each])
        nearest = (of_labels - x).square().flatten(2).sum(dim=2).argmin(dim=0)
        return of_labels[nearest, torch.arange(len(x), device=device)]
    generator_model = in_eval(generator_model)
    q, random = coefficients.to(device), torch.Generator().manual_seed(seed)
    first, total = torch.ones(len(x), dtype=torch.long, device=device), torch.zeros_like(x)
    given = () if class_labels is None else (class_labels.to(device),)
    for _ in range(NUM_DENOISING_DRAWS):
        noise = torch.randn(1, *x.shape[1:], generator=random).to(device)
        z = torch.randn(1, generator_model.config.latent_dim, generator=random)
        x_1 = q.q_sample(x, first, noise.expand(x.shape)).to(dtype)
        total += generator_model(x_1, 0, z.expand(len(x), -1).to(device=device, dtype=dtype), *given).sample.float()
    return total / NUM_DENOISING_DRAWS


class DDAEBMPipeline(EBMPipeline):
    """Generate and score with a Denoising Diffusion Adversarial Energy-Based Model (Geng et al., ICML 2024).

    Args:
        generator_model: ``(x_next, t, z) -> x0_pred``.
        scheduler: `DDAEBMScheduler`, or a stock scheduler that takes a predicted clean sample, made with
            ``DDPMScheduler.from_config(pipe.scheduler.config)`` or ``DDIMScheduler.from_config(...)``. With one that
            does not follow the model's denoising chain (`hf_ebm.schedulers.denoising_contract`) a call logs a warning.
        energy_model: ``(x, t) -> energy``; needed to score and for the Langevin correction, not to sample.
        inference_model: ``q(z | x_t, x_next)``; needed to resume training only.
        image_processor: Preparation of images for scores; None = one of the models' size, padded as in training.
    """

    method_name = "DDAEBM"
    sampling_text = """The model starts from noise and removes it in a few steps. The strip shows intermediate samples
of the first images, the curve shows how the energy falls."""
    samplers: ClassVar[dict[str, Any]] = {
        "DDAEBM (its own)": DDAEBMScheduler,
        "DDPM (with all steps the same as its own)": DDPMScheduler,
        "DDIM": DDIMScheduler,
    }
    reconstruction_components = ("generator_model",)
    model_cpu_offload_seq = "generator_model->energy_model"
    _callback_tensor_inputs = ["x", "x0_pred"]  # noqa: RUF012 (diffusers' own form)

    def __init__(
        self,
        generator_model: UNetGeneratorModel | MLPGeneratorModel,
        scheduler: SchedulerMixin,
        energy_model: UNetEnergyModel | MLPEnergyModel | None = None,
        inference_model: PairInferenceModel | MLPPairInferenceModel | None = None,
        image_processor: EBMImageProcessor | None = None,
    ) -> None:
        super().__init__()
        self.check_scheduler(scheduler, generator_model)
        self._checked_schedulers: set[tuple[str, int]] = set()  # configs and numbers of steps
        self.register_modules(
            generator_model=generator_model,
            scheduler=scheduler,
            energy_model=energy_model,
            inference_model=inference_model,
            image_processor=self.make_image_processor(image_processor, generator_model, energy_model),
        )

    @staticmethod
    def check_scheduler(scheduler: Any, generator_model: Any) -> None:
        """Raise a `ValueError` if the scheduler takes no clean sample, or was made for another number of steps."""
        if scheduler.config.get("prediction_type") != "sample":
            raise ValueError(
                "scheduler must take a predicted clean sample (prediction_type='sample'), got "
                f"{type(scheduler).__name__} with prediction_type={scheduler.config.get('prediction_type')!r}; make a "
                "DDAEBMScheduler, DDPMScheduler or DDIMScheduler with from_config(pipe.scheduler.config)."
            )
        if scheduler.config.num_train_timesteps != generator_model.config.num_timesteps:
            raise ValueError(
                f"scheduler has {scheduler.config.num_train_timesteps} steps and generator_model was built for "
                f"{generator_model.config.num_timesteps}; make the scheduler with from_config(pipe.scheduler.config)."
            )

    def warn_of_scheduler(self, num_steps: int) -> None:
        """Log a warning, once, if samples with the scheduler will not follow the model."""
        scheduler = self.scheduler
        if isinstance(scheduler, DDAEBMScheduler):
            return
        checked = (scheduler.to_json_string(), num_steps)  # with the class's name
        if checked in self._checked_schedulers:
            return
        self._checked_schedulers.add(checked)
        is_image = len(self.sample_shape) == 3
        violation = contract_violation(scheduler, num_steps, len(self.sample_shape), bound=1.0 if is_image else 3.0)
        if violation is not None:
            logger.warning(
                "samples will not follow the model's denoising posterior: the scheduler %s with num_inference_steps=%d "
                "does not step through its chain (%s). DDAEBMScheduler, DDPMScheduler and DDIMScheduler do, with their "
                "default settings and made by from_config(pipe.scheduler.config) of the saved scheduler.",
                type(scheduler).__name__,
                num_steps,
                violation,
            )

    def warn_of_first_timestep(self, num_steps: int) -> None:
        """Log a warning if the scheduler's timesteps do not begin at the noisiest level, as some spacings do not."""
        first, noisiest = float(self.scheduler.timesteps[0]), self.scheduler.config.num_train_timesteps - 1
        if first != noisiest:
            logger.warning(
                "num_inference_steps=%d: the timesteps of %s begin at %g, not at %d, the noisiest level; samples "
                "may be worse; pass num_inference_steps=%d, as in training.",
                num_steps,
                type(self.scheduler).__name__,
                first,
                noisiest,
                noisiest + 1,
            )

    def check_inputs(
        self,
        batch_size: int,
        generator: Any,
        output_type: str,
        num_inference_steps: int | None,
        num_correction_steps: int,
        correction_step_size: float,
        correction_scheduler: Any = None,
    ) -> None:
        """Raise a `ValueError` that names the argument, before any work is done."""
        self.check_common_inputs(batch_size, generator, output_type)
        self.check_scheduler(self.scheduler, self.generator_model)  # which may have been swapped
        steps = num_inference_steps  # stock schedulers divide by 0, or leave the noise unchanged
        if steps is not None:
            check_count("num_inference_steps", steps, 1, ", or None for as many as in training")
        check_count("num_correction_steps", num_correction_steps, 0)
        if num_correction_steps and self.energy_model is None:
            raise ValueError("num_correction_steps > 0 needs energy_model, and this pipeline was loaded without one.")
        if correction_scheduler is not None and not isinstance(correction_scheduler, EnergySampler):
            raise ValueError(
                "correction_scheduler must be a sampler of hf_ebm.schedulers such as MALAScheduler(), or None for "
                f"Langevin steps, got {type(correction_scheduler).__name__}."
            )
        rejects = getattr(correction_scheduler, "rejects", False)
        if num_correction_steps and getattr(self.energy_model, "needs_rejection", False) and not rejects:
            raise ValueError(
                "correction_scheduler must be MALA or HMC for an energy with bounds, whose proposals outside are "
                f"rejected, got {type(correction_scheduler).__name__}; give correction_scheduler=MALAScheduler()."
            )
        if num_correction_steps and steps not in (None, all_steps := self.scheduler.config.num_train_timesteps):
            raise ValueError(
                f"num_correction_steps > 0 needs all {all_steps} denoising steps, whose conditional energies it "
                f"follows; got num_inference_steps={steps}."
            )
        check_positive("correction_step_size", correction_step_size)

    @task
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_correction_steps: int = 0,
        correction_step_size: float = 0.1,
        correction_scheduler: EnergySampler | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw samples.

        Args:
            batch_size: How many.
            num_inference_steps: Denoising steps; None = all T. `DDAEBMScheduler` supports only T.
            generator: Random number generator, or a list with one per sample.
            output_type: ``"pil"``, ``"np"`` (an array in [0, 1], (B, H, W, C)) or ``"pt"`` (a tensor in [0, 1],
                (B, C, H, W)); vector data: ``"np"`` or ``"pt"``, (B, D). ``"latent"``: the last state as it is, a
                float32 tensor in the models' own range [-1, 1], not clamped.
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.
            num_correction_steps: MCMC steps after each denoising step on the conditional energy
                ``E(x_t, t) - log q(x_next | x_t)``; 0 = none. With a composed energy E is the composition, and the
                transition enters once.
            correction_step_size: Their step size, in units of the denoising posterior's standard deviation.
            correction_scheduler: Their sampler, such as ``MALAScheduler()``, with `correction_step_size` in place of
                its own step size and noise; None = Langevin steps. An energy with bounds needs one that rejects
                proposals, and bounds wide enough for noisy states.
            class_labels: Class of each sample of a class-conditional model: a number or name, or a sequence of them,
                which then sets the batch size; None = sampled from the class frequencies of the training set.
            guidance_scale: s of ``G_null + s (G_y - G_null)``, a heuristic; 1 = no guidance, which costs nothing.
            callback_on_step_end: ``f(pipe, step, timestep, tensors) -> tensors or None``, after each step. Its
                ``pipe`` is a shallow copy of this pipeline with the call's own scheduler; ``pipe._interrupt = True``
                ends the loop after the step.
            callback_on_step_end_tensor_inputs: Which of ``x`` (the state) and ``x0_pred`` it gets; default ``["x"]``.

        Returns:
            `ImagePipelineOutput` with ``images``.

        Raises:
            ValueError: If an argument cannot be done.
        """
        labels, batch_size = self.resolve_class_labels(class_labels, batch_size, generator)
        self.check_inputs(
            batch_size,
            generator,
            output_type,
            num_inference_steps,
            num_correction_steps,
            correction_step_size,
            correction_scheduler,
        )
        self.check_guidance(guidance_scale, labels)
        names = self.callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        generator_model = in_eval(self.generator_model)
        energy_model = eval_copy(self.energy_model) if num_correction_steps else None
        device = self._execution_device
        num_steps = self.scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
        self.warn_of_scheduler(num_steps)
        self.scheduler.set_timesteps(num_steps)  # on the CPU, as diffusers' DDPMPipeline: read there, not waited for
        self.warn_of_first_timestep(num_steps)
        latent_dim = generator_model.config.latent_dim
        step_kwargs: dict[str, Any] = {}
        if takes_generator(self.scheduler.__class__):
            step_kwargs["generator"] = generator

        draw = functools.partial(randn_tensor, generator=generator, device=device, dtype=generator_model.dtype)
        x = draw((batch_size, *self.sample_shape))
        for step, t in enumerate(self.until_interrupted(self.scheduler.timesteps)):
            # 1. predict the clean sample with a random latent
            z = draw((batch_size, latent_dim))
            (x0_pred,) = generator_model(channels_last_on_cpu(x), t, z, labels, return_dict=False)
            if guidance_scale != 1.0:
                (x0_null,) = generator_model(channels_last_on_cpu(x), t, z, return_dict=False)
                x0_pred = x0_null + guidance_scale * (x0_pred - x0_null)
                x0_pred = x0_pred.clamp(-1.0, 1.0) if len(self.sample_shape) == 3 else x0_pred

            # 2. draw x_t ~ q(x_t | x_next, x0_pred)
            x_next = x
            x = self.scheduler.step(x0_pred, t, x_next, return_dict=False, **step_kwargs)[0].to(x_next.dtype)

            # 3. optional: MCMC steps on E(x_t, t) - log q(x_next | x_t)
            if energy_model is not None:
                options = (num_correction_steps, correction_step_size, generator, energy_model)
                x = self.correct(x, x_next, t, *options, labels, guidance_scale, correction_scheduler)

            if callback_on_step_end is not None:
                tensors = {"x": x, "x0_pred": x0_pred}
                changed = callback_on_step_end(self, step, t, {name: tensors[name] for name in names})
                x = (changed or {}).get("x", x)

        if not math.isfinite(x.sum(dtype=torch.float32).item()):
            raise ValueError(
                f"scheduler {type(self.scheduler).__name__} made samples that are not finite on this short chain; use "
                "DDAEBMScheduler, DDPMScheduler or DDIMScheduler.from_config(pipe.scheduler.config)."
            )
        images = self.post_process(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def correct(
        self,
        x: Tensor,
        x_next: Tensor,
        t: Tensor,
        num_steps: int,
        relative_step_size: float,
        generator: Any,
        energy_model: Any = None,
        labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        scheduler: EnergySampler | None = None,
    ) -> Tensor:
        """`num_steps` MCMC steps at noise ``step_size`` on ``E(x_t, t) - log q(x_next | x_t)``, from `x`.

        `energy_model` is an `eval_copy` of the pipeline's; None makes one. With labels E is ``E + s (E_y - E)``.
        `scheduler` is the sampler; None = Langevin.
        """
        frozen = eval_copy(self.energy_model) if energy_model is None else energy_model
        device, dtype = execution_device(frozen), frozen.dtype

        def energy_fn(x_t: Tensor, t: Tensor) -> EnergyOutput:
            output = frozen(x_t.to(device, dtype), t.to(device))
            energy = output.energy
            if labels is not None and output.logits is not None:
                tau = frozen.config.energy_temperature
                energy = guided_energy(energy, output.logits, labels.to(device), tau, guidance_scale)
            return EnergyOutput(energy=energy.to(x_t.device))

        timesteps = torch.full((x.shape[0],), int(t), device=x.device)
        q = self.coefficients
        step_size = relative_step_size * (0.5 * q.posterior_log_variance[int(t)]).exp().item()
        q = q.to(x.device)
        if scheduler is None:
            grad_fn = conditional_energy_grad(energy_fn, x_next, timesteps, q)
            return langevin_chain(x, grad_fn, num_steps, step_size, generator=generator)

        def conditional_energy(x_t: Tensor) -> Tensor:
            return energy_of(energy_fn, x_t, timesteps) - q.log_q_step(x_next, x_t, timesteps)

        sampler = type(scheduler).from_config(scheduler.config, step_size=step_size, noise_std=None)
        return run_chain(sampler, conditional_energy, x, num_steps, generator).sample

    @property
    def step_range(self) -> tuple[int, int, int | None]:
        """The denoising steps: up to all T, and with the model's own scheduler always all."""
        number = len(self.scheduler)
        return (number if isinstance(self.scheduler, DDAEBMScheduler) else 1), number, number

    @property
    def data_noise_std(self) -> float:
        """Standard deviation of the noise in ``x_0``, on which the energy at t = 0 was trained."""
        return (1.0 - self.coefficients.alphas_cumprod[0].item()) ** 0.5

    @classmethod
    def make_reconstruction_error(cls, components: Mapping[str, Any], seed: int) -> ReconstructionError | None:
        """By the generator's clean images of noisy ones: `compute_denoising_errors`.

        With classes they are those of the most likely label, or without class scores of the label with the least error.
        """
        generator_model, scheduler = components["generator_model"], components["scheduler"]
        num_levels = getattr(components["energy_model"].config, "num_timesteps", 1)
        has_chain = scheduler is not None and scheduler.config.get("prediction_type") == "sample" and num_levels > 1
        if generator_model is None or not has_chain:
            return None
        q = DDAEBMScheduler.from_config(scheduler.config).coefficients
        num_classes = getattr(generator_model.config, "num_classes", 0)

        def error(x: Tensor, all_levels: bool = False) -> Tensor:
            labels = most_likely_labels(components["energy_model"], x, num_classes)
            if all_levels:
                return compute_denoising_errors(generator_model, x, q, seed, labels)
            return compute_denoising_errors(generator_model, x, q, seed, labels, num_levels=1)[:, 0]

        return error

    @classmethod
    def make_reconstruction(cls, components: Mapping[str, Any], seed: int) -> Callable[[Tensor], Tensor] | None:
        """The mean of the generator's clean images of noisy ones: `denoise`, with labels as for the error."""
        if cls.make_reconstruction_error(components, seed) is None:
            return None
        generator_model, config = components["generator_model"], components["scheduler"].config
        q = DDAEBMScheduler.from_config(config).coefficients
        num_classes = getattr(generator_model.config, "num_classes", 0)

        def reconstruct(x: Tensor) -> Tensor:
            labels = most_likely_labels(components["energy_model"], x, num_classes)
            return denoise(generator_model, x, q, seed, labels)

        return reconstruct

    @property
    def coefficients(self) -> DiffusionCoefficients:
        """The chain the models were trained on, from the scheduler's config (a stock scheduler keeps it too)."""
        return DDAEBMScheduler.from_config(self.scheduler.config).coefficients
