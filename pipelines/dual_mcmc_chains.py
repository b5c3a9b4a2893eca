"""The two chains of Dual-MCMC Teaching, the steps that its tasks share, and paths between latents.

    generate: z -> g(z)                 revise: the x-chain
    infer: x -> z ~ q(z | x), then      revise_latents: the z-chain

Networks run in eval mode, as copies that share their weights (`hf_ebm.models.eval_copy`), so their
own modes do not change. The chains' states are float32 whatever the networks' dtype is, so that
small steps are not lost; they are not clamped. The methods run the schedulers of the pipeline they
are called on, so tasks call them on a copy of it (`EBMPipeline.call_copy`).

With classes every sample has a label y, and the chains are those of ``g(z, y)``, ``q(z | x, y)`` and, where
the energy has class scores, ``E(x, y)``. Guidance extrapolates from "no label" by a scale s. For the
generator this is a heuristic. The x-chain's energy is then that of ``p(x) p(y | x)^s``:

    generate:  g(z) + s (g(z, y) - g(z))        images clamped to [-1, 1]
    revise:    E(x) + s (E(x, y) - E(x))

Paths between latents are lines or great circles. Almost all latents of ``N(0, I)`` have about the
norm ``sqrt(Z)``. The middle of a line between two has a far smaller one, which the generator has not
seen in training; a great circle keeps the norm. Source: White 2016, "Sampling Generative Networks".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ebm.langevin import ChainResult, run_chain
from hf_ebm.losses.conditional import guided_energy
from hf_ebm.losses.dual_mcmc import posterior_energy, squared_error
from hf_ebm.models.eval_copy import eval_copy, in_eval
from hf_ebm.pipelines.pipeline_base import EBMPipeline
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.scoring.inputs import images_to_tensor
from hf_ebm.scoring.statistics import most_likely_labels
from hf_ebm.utils.torch_utils import channels_last_on_cpu, execution_device
from hf_ebm.utils.validation import check_count

logger = logging.getLogger(__name__)


def linear_path(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``(1 - t) a + t b``, shape (B, F, Z).

    Args:
        a: Starts, shape (B, Z).
        b: Ends, shape (B, Z).
        t: Positions in [0, 1], shape (F,).
    """
    t = t[:, None]
    return (1.0 - t) * a[:, None] + t * b[:, None]


def spherical_path(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``[sin((1 - t) w) a + sin(t w) b] / sin w``, w the angle between a and b, shape (B, F, Z).

    Both ends are exact. Where a and b point the same way or opposite ways there is no such circle: the line is taken.

    Args:
        a: Starts, shape (B, Z).
        b: Ends, shape (B, Z).
        t: Positions in [0, 1], shape (F,).
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    omega = cosine.clamp(-1.0, 1.0).arccos()[:, None, None]
    t = t[:, None]
    weight_a = ((1.0 - t) * omega).sin() / omega.sin()
    weight_b = (t * omega).sin() / omega.sin()
    on_circle = weight_a * a[:, None] + weight_b * b[:, None]
    return torch.where(omega.sin() > 1e-3, on_circle, linear_path(a, b, t[:, 0]))


PATHS = {"spherical": spherical_path, "linear": linear_path}


@dataclass
class DualMCMCOutput(BaseOutput):
    """Output of `DualMCMCPipeline`.

    Attributes:
        images: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1]; vectors (B, D);
            ``"latent"``: the float32 state, not clamped.
        latents: The z that the images were generated from, before the x-chain, shape (B, Z).
        energies: On request, ``E`` of the start and of the state after each update of the x-chain, (num_steps + 1, B);
            with classes that of the sample's label, guided as the chain is.
        squared_errors: On request, the reconstruction's mean squared error per pixel, on the scale of [-1, 1], at the
            start and after each update of the z-chain, (num_steps + 1, B).
        diagnostics: On request, what the chain's sampler reported, as in `hf_ebm.langevin.ChainResult`: the z-chain's
            where images were reconstructed, the x-chain's elsewhere.
        class_labels: The label of each image, shape (B,), of a model with classes.
    """

    images: Any
    latents: Tensor | None = None
    energies: Tensor | None = None
    squared_errors: Tensor | None = None
    diagnostics: dict[str, Tensor] | None = None
    class_labels: Tensor | None = None


def repeat_rows(values: Tensor, like: Tensor) -> Tensor:
    """A row of `values`, shape (B, ...), for each of `like`, (B R, ...): some samplers run R chains per sample."""
    repeats = like.shape[0] // values.shape[0]
    return values if repeats == 1 else values.repeat_interleave(repeats, dim=0)


class DualMCMCMoves(EBMPipeline):
    """Base of `DualMCMCPipeline`, which has the components."""

    @staticmethod
    def check_sampler(name: str, scheduler: Any) -> None:
        """Raise a `ValueError` unless `scheduler` is a sampler of energies."""
        if not isinstance(scheduler, EnergySampler):
            raise ValueError(
                f"{name} must be a sampler of energies, got {type(scheduler).__name__}; use "
                "hf_ebm.LangevinScheduler(...) or another one of hf_ebm.schedulers."
            )

    def count_steps(self, name: str, value: int | None, scheduler_name: str) -> int:
        """The number of updates of a scheduler's chain: `value`, or None for as many as in training.

        Raises:
            ValueError: If `value` is not a whole number >= 0, or the scheduler is not a sampler of energies.
        """
        if value is not None:
            check_count(name, value, 0, ", or None for as many as in training")
        scheduler = getattr(self, scheduler_name)
        if value == 0 or scheduler is None:
            return value or 0
        self.check_sampler(scheduler_name, scheduler)
        return scheduler.config.num_train_timesteps if value is None else value

    def x_chain_steps(self, num_inference_steps: int | None) -> int:
        """The number of updates of the x-chain; 0 with a warning if the pipeline lacks a component it needs."""
        num_steps = self.count_steps("num_inference_steps", num_inference_steps, "scheduler")
        if num_steps and getattr(self.energy_model, "needs_rejection", False) and not self.scheduler.rejects:
            raise ValueError(
                f"scheduler must reject proposals for an energy with bounds, got {type(self.scheduler).__name__}; use "
                "MALA or HMC, such as MALAScheduler.from_config(pipe.scheduler.config)."
            )
        missing = [name for name in ("scheduler", "energy_model") if getattr(self, name) is None]
        is_asked_for = num_steps > 0 or (num_inference_steps is None and self.scheduler is None)
        if not (missing and is_asked_for):
            return num_steps
        logger.warning(
            "samples are the generator's, not revised by the x-chain: it needs %s, which this pipeline was loaded "
            "without. Load what is missing, or pass num_inference_steps=0.",
            " and ".join(missing),
        )
        return 0

    def z_chain_steps(self, name: str, value: int | None) -> int:
        """The number of updates of the z-chain, of the named argument.

        Raises:
            ValueError: If it is not 0 and the pipeline lacks a component that the chain needs.
        """
        num_steps = self.count_steps(name, value, "latent_scheduler")
        if value != 0 and self.latent_scheduler is None:
            raise ValueError(
                f"{name}={value} needs latent_scheduler, and this pipeline was loaded without one; load it, or pass "
                f"{name}=0 to leave that chain out."
            )
        return num_steps

    def check_has(self, component: str, why: str) -> None:
        """Raise a `ValueError` if an optional component is missing."""
        if getattr(self, component) is None:
            raise ValueError(f"{why} needs {component}, and this pipeline was loaded without one.")

    def check_latents(self, name: str, latents: Any, batch_size: int) -> Tensor:
        """Given latents in float32 on the pipeline's device, shape (batch_size, latent_dim).

        Raises:
            ValueError: If they are something else, or not finite.
        """
        shape = (batch_size, self.generator_model.config.latent_dim)
        if not isinstance(latents, Tensor) or not latents.is_floating_point() or tuple(latents.shape) != shape:
            found = (latents.dtype, tuple(latents.shape)) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"{name} must be a float tensor of shape (batch_size, latent_dim) = {shape}, got {found}.")
        if not torch.isfinite(latents).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values.")
        return latents.to(self._execution_device, torch.float32)

    def step_callback(
        self, callback: Callable[..., dict[str, Any] | None] | None, names: list[str] | None
    ) -> Callable[[int, Tensor, Tensor], Tensor] | None:
        """A caller's ``callback_on_step_end``, which gets the tensors of these names, as `run_chain` takes it."""
        names = self.callback_names(callback, names)
        if callback is None:
            return None

        def after_step(step: int, t: Tensor, x: Tensor) -> Tensor:
            changed = callback(self, step, t, dict.fromkeys(names, x))
            return (changed or {}).get("x", x)

        return after_step

    def draw_latents(self, batch_size: int, generator: Any) -> Tensor:
        """``z ~ N(0, I)``, shape (B, Z)."""
        shape = (batch_size, self.generator_model.config.latent_dim)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    def load_images(self, images: Any) -> Tensor:
        """Images of any kind as a float32 tensor in [-1, 1] on the pipeline's device, (B, C, H, W); vectors (B, D)."""
        return images_to_tensor(images, self.sample_shape, self.image_processor).to(self._execution_device)

    def generator_fn(self, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Callable[[Tensor], Tensor]:
        """``z -> g(z, y)`` in float32, shape (B, Z) -> (B, ...), as for sampling, guided with a scale other than 1."""
        generator_model = self.generator_model.for_sampling()
        device, dtype = execution_device(generator_model), generator_model.dtype

        def generate(z: Tensor) -> Tensor:
            sent = z.to(device, dtype)
            if labels is None:
                return generator_model(sent).sample.to(z.device, torch.float32)
            x = generator_model(sent, repeat_rows(labels, z).to(device)).sample
            if guidance_scale != 1.0:
                x_null = generator_model(sent).sample
                x = x_null + guidance_scale * (x - x_null)
                x = x.clamp(-1.0, 1.0) if x.ndim == 4 else x
            return x.to(z.device, torch.float32)

        return generate

    def generate(self, z: Tensor, labels: Tensor | None = None, guidance_scale: float = 1.0) -> Tensor:
        """``g(z)``, or with labels (B,) ``g(z, y)``, in float32, shape (B, Z) -> (B, ...)."""
        return self.generator_fn(labels, guidance_scale)(z)

    def given_labels(self, class_labels: Any, batch_size: int, generator: Any = None) -> Tensor | None:
        """As `resolve_class_labels`, for a batch whose size is known: a `ValueError` for another number of labels."""
        labels, number = self.resolve_class_labels(class_labels, batch_size, generator)
        if number != batch_size:
            raise ValueError(
                f"class_labels must be one label, or one for each of the {batch_size} samples, got {number}; give as "
                "many."
            )
        return labels

    def labels_of(
        self, x: Tensor, class_labels: Any = None, z: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor | None:
        """The label of each image of `x`, shape (B,): those given, or the most likely ones; None without classes.

        Where the energy has class scores, that is the maximum of p(y | x), and where the classes are clusters, the
        nearest centre. Otherwise, and where a part of the images is unknown, each label is tried: the most likely is
        the one under which generator and inference model explain the known pixels best. It has the smallest
        ``posterior_energy`` of the mean of ``q(z | x, y)``, which costs a forward pass of both per class.

        Args:
            x: Shape (B, ...).
            class_labels: As for sampling; None = the most likely ones.
            z: Latents of `x`, shape (B, Z), in place of the means.
            mask: Where true, pixels are unknown.

        Raises:
            ValueError: If the given labels are of another number than the images, or no labels of this model.
        """
        if class_labels is not None or not self.class_names:
            return self.given_labels(class_labels, len(x))
        num_classes = len(self.class_names)
        if mask is None and (labels := most_likely_labels(self.energy_model, x, num_classes)) is not None:
            return labels
        energies = []
        for label in range(num_classes):
            labels = torch.full((len(x),), label, device=x.device)
            z_label = self.posterior(x, labels)[0] if z is None else z
            explained = self.explain(x, labels, mask)
            energies.append(posterior_energy(explained, z_label, x, self.generator_model.config.likelihood_std))
        return torch.stack(energies).argmin(dim=0)

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of ``q(z | x)``, or with labels (B,) of ``q(z | x, y)``, float32, each (B, Z)."""
        inference_model = in_eval(self.inference_model)
        device = execution_device(inference_model)
        given = () if labels is None else (labels.to(device),)
        inferred = inference_model(x.to(device, inference_model.dtype), *given)
        return inferred.mean.to(x.device, torch.float32), inferred.logvar.to(x.device, torch.float32)

    def infer(
        self,
        x: Tensor,
        num_steps: int,
        sample_latents: bool,
        generator: Any,
        output_squared_errors: bool = False,
        output_diagnostics: bool = False,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ChainResult:
        """Latents of `x`: a sample of ``q(z | x)``, or its mean, revised by the z-chain."""
        z, logvar = self.posterior(x, labels)
        if sample_latents:
            noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = z + (0.5 * logvar).exp() * noise
        return self.revise_latents(z, x, num_steps, generator, output_squared_errors, output_diagnostics, mask, labels)

    def revise(
        self,
        x: Tensor,
        num_steps: int,
        generator: Any,
        output_energies: bool = False,
        output_diagnostics: bool = False,
        after_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        known: Callable[[Tensor], Tensor] | None = None,
        watch: Callable[[Tensor], None] = lambda x: None,
        labels: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> ChainResult:
        """The x-chain: `num_steps` updates on the energy, of the labels where it has class scores, from `x`.

        With `output_energies`, `watch` gets the start and the state after each update.

        With `known`, which puts the known pixels in, the chain sees the energy as a function of the others alone, so
        that each sampler is as exact on them as on whole images; the known ones are put back after each step.
        """
        if self.energy_model is None:
            return ChainResult(x)
        energy_model = eval_copy(self.energy_model)
        device, dtype = execution_device(energy_model), energy_model.dtype

        def energy_fn(x: Tensor) -> Tensor:
            sent = (x if known is None else known(x)).to(device, dtype)
            output = energy_model(channels_last_on_cpu(sent))
            energy, logits = output.energy, getattr(output, "logits", None)
            if labels is not None and logits is not None:
                y, tau = repeat_rows(labels, x).to(device), energy_model.config.energy_temperature
                energy = guided_energy(energy, logits, y, tau, guidance_scale)
            return energy.to(x.device)

        def observe(x: Tensor) -> Tensor:
            watch(x)
            return energy_fn(x)

        return run_chain(
            self.scheduler,
            energy_fn,
            x,
            num_steps,
            generator,
            observe=observe if output_energies else None,
            with_diagnostics=output_diagnostics,
            after_step=after_step if known is None else lambda step, t, x: known(x),
            progress_bar=self.until_interrupted,
        )

    def explain(self, x: Tensor, labels: Tensor | None, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        """``z -> g(z, y)``, with the pixels of `x` where `mask` is true, which so have no error."""
        generate = self.generator_fn(labels)

        def explained(z: Tensor) -> Tensor:
            recon = generate(z)
            return recon if mask is None else torch.where(repeat_rows(mask, z), repeat_rows(x, z), recon)

        return explained

    def revise_latents(
        self,
        z: Tensor,
        x: Tensor,
        num_steps: int,
        generator: Any,
        output_squared_errors: bool = False,
        output_diagnostics: bool = False,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ChainResult:
        """The z-chain: `num_steps` updates on the generator's posterior given `x`, with classes and `labels`, from `z`.

        With `mask`, pixels where it is true are unknown and have no error.
        """
        explained = self.explain(x, labels, mask)

        def energy_fn(z: Tensor) -> Tensor:
            return posterior_energy(explained, z, repeat_rows(x, z), self.generator_model.config.likelihood_std)

        def error_fn(z: Tensor) -> Tensor:
            return squared_error(explained(z), x) / x[0].numel()

        return run_chain(
            self.latent_scheduler,
            energy_fn,
            z,
            num_steps,
            generator,
            observe=error_fn if output_squared_errors else None,
            with_diagnostics=output_diagnostics,
            progress_bar=self.progress_bar,
        )

    def finish(
        self, x: Tensor, output_type: str, return_dict: bool, latents: Tensor, **profiles: Any
    ) -> DualMCMCOutput | tuple[Any]:
        """Samples in the form that was asked for, with what belongs to them."""
        images = self.post_process(x, output_type)
        return DualMCMCOutput(images=images, latents=latents, **profiles) if return_dict else (images,)
