"""What a model of Dual-MCMC Teaching can do: generate, reconstruct, interpolate, fill in, score.

    x = g(z), z ~ N(0, I), then the x-chain on the energy                  generate
    z ~ q(z | x), then the z-chain on the generator's posterior, g(z)      reconstruct

Each chain is any sampler of `hf_ebm.schedulers`. Loading finds a component's class only in a module that is imported
already: all that a repository can hold are, here.

Source: Cui & Han, "Learning Energy-based Model via Dual-MCMC Teaching", NeurIPS 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.models.conv_inference import ConvInferenceModel
from hf_ebm.models.energy import check_energy_model
from hf_ebm.models.mlp_energy import MLPEnergyModel
from hf_ebm.models.mlp_inference import MLPInferenceModel
from hf_ebm.models.mlp_latent_generator import MLPLatentGeneratorModel
from hf_ebm.models.resnet_energy import ResNetEnergyModel
from hf_ebm.models.resnet_generator import ResNetGeneratorModel
from hf_ebm.pipelines.dual_mcmc_chains import PATHS, DualMCMCMoves, DualMCMCOutput, repeat_rows
from hf_ebm.pipelines.pipeline_base import Trajectory, task
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.scheduling_annealed_langevin import AnnealedLangevinScheduler
from hf_ebm.schedulers.scheduling_hmc import HMCScheduler
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.schedulers.scheduling_mala import MALAScheduler
from hf_ebm.schedulers.scheduling_preconditioned_langevin import PreconditionedLangevinScheduler
from hf_ebm.schedulers.scheduling_replica_exchange import ReplicaExchangeScheduler
from hf_ebm.scoring.inputs import mask_to_tensor
from hf_ebm.scoring.statistics import ReconstructionError, most_likely_labels
from hf_ebm.utils.validation import check_count


def compute_reconstruction_error(pipe: Any, x: Tensor, seed: int = 0, class_labels: Tensor | None = None) -> Tensor:
    """Mean squared error per pixel of each sample's revised reconstruction g(z_revised), (N,), float32, on the CPU.

    The chains' noise is given by `seed`, the same for each sample, so that its error depends on nothing but itself.
    Without `class_labels` (N,) they are those that the pipeline finds most likely.
    """
    generators = [torch.Generator().manual_seed(seed) for _ in range(len(x))]
    images = to_unit_range(x) if x.ndim == 4 else x
    recon: Any = pipe.reconstruct(
        images,
        sample_latents=False,
        generator=generators,
        output_type="latent",
        output_squared_errors=True,
        class_labels=class_labels,
    )
    return recon.squared_errors[-1].float().cpu()


class DualMCMCPipeline(DualMCMCMoves):
    """Generate, reconstruct, interpolate, fill in and score with Dual-MCMC Teaching (Cui & Han, NeurIPS 2023).

    Arguments that the tasks share:

    - ``num_inference_steps``: updates of the task's chain; None = as many as in training, 0 = none.
    - ``generator``: random number generator, or a list with one per sample.
    - ``output_type``: ``"pil"``, ``"np"`` (an array in [0, 1], (B, H, W, C)) or ``"pt"`` (a tensor in [0, 1],
      (B, C, H, W)); vector data: ``"np"`` or ``"pt"``, (B, D). ``"latent"``: the last state unchanged, a float32
      tensor in the models' own range [-1, 1], not clamped.
    - ``return_dict``: whether to return a `DualMCMCOutput` or a tuple with the images.
    - ``sample_latents``: whether an image's latents are a sample of ``q(z | x)``, as in the paper, or its mean.
    - ``class_labels``, of a model with classes: the number or name of a class, or one per sample. None = a sample's is
      drawn from the class frequencies of the training set, and a given image's is the most likely one: by
      ``p(y | x)`` where the energy has class scores, otherwise as in `DualMCMCMoves.labels_of`.

    Without `energy_model` or `scheduler` the x-chain is left out, with a logged warning: samples are the generator's.
    All raise a `ValueError` that names the argument that cannot be done, or says where a chain diverged
    (`hf_ebm.langevin.ChainDivergedError`). Images are given as `hf_ebm.data.image_processor` takes them.

    Args:
        generator_model: ``z -> x``.
        scheduler: Sampler of the x-chain, needed for it; another one comes from
            ``MALAScheduler.from_config(pipe.scheduler.config)``.
        energy_model: ``x -> energy``; needed to score and for the x-chain.
        inference_model: ``q(z | x)``; needed for the latents of given images.
        latent_scheduler: Sampler of the z-chain, which revises those latents.
        image_processor: Preparation of given images; None = one of the models' size, padded as in training.
    """

    method_name = "Dual-MCMC Teaching"
    sampling_text = """A network generates an image in one call (*start*). Then small steps down the energy, with a
little noise, make it more likely (a *Langevin chain*). The strip shows intermediate samples of the first images, the
curve shows how the energy falls."""
    samplers: ClassVar[dict[str, Any]] = {
        "Langevin (its own)": LangevinScheduler,
        "Annealed Langevin": AnnealedLangevinScheduler,
        "Preconditioned Langevin": PreconditionedLangevinScheduler,
        "MALA": MALAScheduler,
        "HMC": HMCScheduler,
        "Replica exchange": ReplicaExchangeScheduler,
    }
    reconstruction_components = ("generator_model", "inference_model", "latent_scheduler")
    model_cpu_offload_seq = "inference_model->generator_model->energy_model"
    _optional_components = [  # noqa: RUF012
        "scheduler",
        "energy_model",
        "inference_model",
        "latent_scheduler",
        "image_processor",
    ]
    _callback_tensor_inputs = ["x"]  # noqa: RUF012

    def __init__(
        self,
        generator_model: ResNetGeneratorModel | MLPLatentGeneratorModel,
        scheduler: EnergySampler | None = None,
        energy_model: ResNetEnergyModel | MLPEnergyModel | None = None,
        inference_model: ConvInferenceModel | MLPInferenceModel | None = None,
        latent_scheduler: EnergySampler | None = None,
        image_processor: EBMImageProcessor | None = None,
    ) -> None:
        super().__init__()
        for name, sampler in (("scheduler", scheduler), ("latent_scheduler", latent_scheduler)):
            if sampler is not None:
                self.check_sampler(name, sampler)
        if energy_model is not None:
            check_energy_model(energy_model)
        for name, model in (("energy_model", energy_model), ("inference_model", inference_model)):
            if model is not None and tuple(model.sample_shape) != tuple(generator_model.sample_shape):
                raise ValueError(
                    f"{name} takes samples of shape {tuple(model.sample_shape)} and generator_model makes "
                    f"{tuple(generator_model.sample_shape)}; build both for one size."
                )
        latent_dim = generator_model.config.latent_dim
        if inference_model is not None and inference_model.config.latent_dim != latent_dim:
            raise ValueError(
                f"inference_model has {inference_model.config.latent_dim} latent dimensions and generator_model "
                f"{latent_dim}; build both for one latent_dim."
            )
        num_classes = getattr(generator_model.config, "num_classes", 0)
        for name, model in (("energy_model", energy_model), ("inference_model", inference_model)):
            found = num_classes if model is None else getattr(model.config, "num_classes", 0)
            marginal = name == "energy_model" and not (found and num_classes)  # which needs no labels
            if found != num_classes and not marginal:
                raise ValueError(
                    f"{name} has num_classes={found} and generator_model {num_classes}; build both for the same "
                    "classes."
                )
        self.register_modules(
            generator_model=generator_model,
            scheduler=scheduler,
            energy_model=energy_model,
            inference_model=inference_model,
            latent_scheduler=latent_scheduler,
            image_processor=self.make_image_processor(image_processor, generator_model, energy_model),
        )

    @property
    def tasks(self) -> list[str]:
        """Also "reconstruct", "interpolate" and "inpaint", with what infers and revises latents."""
        has_all = None not in (self.inference_model, self.latent_scheduler)
        return [*super().tasks, *(("reconstruct", "interpolate", "inpaint") if has_all else ())]

    @property
    def step_range(self) -> tuple[int, int, int | None]:
        """The updates of the x-chain; 0 = the generator's samples as they are."""
        return 0, len(self.scheduler), None

    @task
    def trajectory(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_watched: int = 3,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> Trajectory:
        """As for every pipeline; the points are the generator's samples and those after each update of the x-chain.

        With class scores the energies are those of the samples' labels.
        """
        num_steps = self.x_chain_steps(num_inference_steps)
        states: list[Tensor] = []

        def watch(x: Tensor) -> None:
            states.append(x[:num_watched].float().cpu())

        labels, batch_size = self.resolve_class_labels(class_labels, batch_size, generator)
        start = self.generate(self.draw_latents(batch_size, generator), labels)
        chain = self.revise(
            start, num_steps, generator, output_energies=True, output_diagnostics=True, watch=watch, labels=labels
        )
        assert chain.profile is not None  # the energies
        rates = (chain.diagnostics or {}).get("acceptance_rate")
        points = ["start", *(f"step {step}" for step in range(1, len(states)))]
        rate = None if rates is None else float(rates.mean())
        return Trajectory(chain.sample, torch.stack(states), chain.profile.float().cpu(), points, rate)

    @classmethod
    def make_reconstruction_error(cls, components: Mapping[str, Any], seed: int) -> ReconstructionError | None:
        """By the z-chain, under the most likely label: `compute_reconstruction_error`."""
        generator_model, inference_model, scheduler = (components[name] for name in cls.reconstruction_components)
        if None in (generator_model, inference_model, scheduler):
            return None
        num_classes = getattr(generator_model.config, "num_classes", 0)

        @functools.cache
        def make_pipe() -> DualMCMCPipeline:
            pipe = cls(generator_model, None, None, inference_model, scheduler)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        def error(x: Tensor, all_levels: bool = False) -> Tensor:
            labels = most_likely_labels(components["energy_model"], x, num_classes)
            errors = compute_reconstruction_error(make_pipe(), x, seed, labels)
            return errors[:, None] if all_levels else errors

        return error

    @classmethod
    def make_reconstruction(cls, components: Mapping[str, Any], seed: int) -> Callable[[Tensor], Tensor] | None:
        """By the z-chain, with the noise and the labels of the error."""
        generator_model, inference_model, scheduler = (components[name] for name in cls.reconstruction_components)
        if None in (generator_model, inference_model, scheduler):
            return None
        pipe = cls(generator_model, None, None, inference_model, scheduler)
        pipe.set_progress_bar_config(disable=True)
        num_classes = getattr(generator_model.config, "num_classes", 0)

        def reconstruct(x: Tensor) -> Tensor:
            found: Any = pipe.reconstruct(
                to_unit_range(x) if x.ndim == 4 else x,
                sample_latents=False,
                generator=[torch.Generator().manual_seed(seed) for _ in range(len(x))],
                output_type="latent",
                class_labels=most_likely_labels(components["energy_model"], x, num_classes),
            )
            return found.images

        return reconstruct

    @task
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_energies: bool = False,
        output_diagnostics: bool = False,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> DualMCMCOutput | tuple[Any]:
        """Draw samples: the generator's, revised by the x-chain.

        Args:
            batch_size: How many.
            num_inference_steps: Updates of the x-chain; 0 = the generator only.
            latents: z to generate from, shape (batch_size, latent_dim), instead of a draw.
            generator, output_type, return_dict: See the class.
            output_energies: Whether to return the energies along the chain; costs a forward per update.
            output_diagnostics: Whether to return what the sampler reports.
            class_labels: See the class; a sequence sets the batch size.
            guidance_scale: s of ``g(z) + s (g(z, y) - g(z))``, a heuristic, and of ``E(x) + s (E(x, y) - E(x))`` in the
                x-chain of an energy with class scores; 1 = no guidance, which costs nothing.
            callback_on_step_end: ``f(pipe, step, timestep, tensors) -> tensors or None``, after each gradient. Its
                ``x`` is where the next one is taken: the chain's state, or with MALA and HMC a proposal. Its
                ``pipe`` is a shallow copy of this pipeline with the call's own schedulers; ``pipe._interrupt = True``
                ends the chain after the step, and its last state is returned.
            callback_on_step_end_tensor_inputs: Which tensors it gets; default ``["x"]``, the only one there is.

        Returns:
            `DualMCMCOutput` with ``images`` and ``latents``.
        """
        labels, batch_size = self.resolve_class_labels(class_labels, batch_size, generator)
        self.check_common_inputs(batch_size, generator, output_type)
        self.check_guidance(guidance_scale, labels)
        num_steps = self.x_chain_steps(num_inference_steps)
        if output_energies:
            self.check_has("energy_model", "output_energies")
        after_step = self.step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)

        # 1. draw latents and generate
        if latents is None:
            z = self.draw_latents(batch_size, generator)
        else:
            z = self.check_latents("latents", latents, batch_size)
        x = self.generate(z, labels, guidance_scale)

        # 2. revise the samples by the x-chain
        by_class: dict[str, Any] = {"labels": labels, "guidance_scale": guidance_scale}
        chain = self.revise(x, num_steps, generator, output_energies, output_diagnostics, after_step, **by_class)
        found = {"energies": chain.profile, "diagnostics": chain.diagnostics, "class_labels": labels}
        return self.finish(chain.sample, output_type, return_dict, z, **found)

    @task
    def reconstruct(
        self,
        images: Any,
        num_inference_steps: int | None = None,
        latents: Tensor | None = None,
        sample_latents: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_squared_errors: bool = False,
        output_diagnostics: bool = False,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> DualMCMCOutput | tuple[Any]:
        """Infer the latents of images, revise them by the z-chain, and generate from them.

        Args:
            images: PIL images, arrays, or tensors in [0, 1], prepared by the image processor; vectors (B, D).
            num_inference_steps: Updates of the z-chain; 0 = the inference model only.
            latents: z to start the z-chain from, shape (B, latent_dim), instead of inferring; noise, say.
            sample_latents, generator, output_type, return_dict: See the class.
            output_squared_errors: Whether to return the errors along the chain; costs a forward per update.
            output_diagnostics: Whether to return what the z-chain's sampler reports.
            class_labels: See the class.

        Returns:
            `DualMCMCOutput` with the reconstructions as ``images`` and their ``latents``.
        """
        x = self.load_images(images)
        self.check_common_inputs(x.shape[0], generator, output_type)
        num_steps = self.z_chain_steps("num_inference_steps", num_inference_steps)

        wanted = (output_squared_errors, output_diagnostics)
        if latents is None:
            self.check_has("inference_model", "reconstruct without latents")
            labels = self.labels_of(x, class_labels)
            chain = self.infer(x, num_steps, sample_latents, generator, *wanted, labels=labels)
        else:
            z = self.check_latents("latents", latents, x.shape[0])
            labels = self.labels_of(x, class_labels, z)
            chain = self.revise_latents(z, x, num_steps, generator, *wanted, labels=labels)
        x = self.generate(chain.sample, labels)
        found = {"squared_errors": chain.profile, "diagnostics": chain.diagnostics, "class_labels": labels}
        return self.finish(x, output_type, return_dict, chain.sample, **found)

    @task
    def interpolate(
        self,
        a: Any,
        b: Any,
        num_frames: int = 8,
        num_inference_steps: int | None = 0,
        latent_inference_steps: int | None = None,
        path: str = "spherical",
        sample_latents: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> DualMCMCOutput | tuple[Any]:
        """Generate along paths of latents, from each of `a` to its partner in `b`, both ends included.

        Args:
            a: Latents, a tensor of shape (B, latent_dim) or (latent_dim,); or images, whose latents are inferred and
                revised as in `reconstruct`. For vector data a tensor of such a shape is latents: give arrays.
            b: As many latents or images.
            num_frames: Frames per pair >= 2.
            num_inference_steps: Updates of the x-chain of every frame; 0 = the generator only.
            latent_inference_steps: Updates of the z-chain of given images; None = as many as in training.
            path: ``"spherical"``, which keeps the latents' norm (Gaussian latents lie on a sphere), or ``"linear"``.
            sample_latents, output_type, return_dict: See the class.
            generator: Random number generator, or a list with one per pair.
            class_labels: See the class: one per pair, of all its frames. None = each frame has the label of the nearer
                end, and those of latents are one sampled label per pair.

        Returns:
            `DualMCMCOutput` with ``images`` and ``latents`` of B * num_frames frames, one pair after the other.
        """
        check_count("num_frames", num_frames, 2, ", as both ends are included")
        if path not in PATHS:
            raise ValueError(f"path must be one of {sorted(PATHS)}, got {path!r}.")
        num_steps = self.x_chain_steps(num_inference_steps)
        (start, a_is_latents), (end, b_is_latents) = self.load_end("a", a), self.load_end("b", b)
        if len(start) != len(end):
            raise ValueError(
                f"a and b must hold the same number of latents or images, got {len(start)} and {len(end)}."
            )
        self.check_common_inputs(len(start), generator, output_type)
        latent_steps = 0
        if not (a_is_latents and b_is_latents):
            self.check_has("inference_model", "interpolate between images")
            latent_steps = self.z_chain_steps("latent_inference_steps", latent_inference_steps)

        # 1. the labels and latents of both ends, and the latents on the path between them
        of_latents = None
        if class_labels is not None or a_is_latents or b_is_latents:
            of_latents = self.given_labels(class_labels, len(start), generator)
        is_given = class_labels is not None
        start_labels = of_latents if is_given or a_is_latents else self.labels_of(start)
        end_labels = of_latents if is_given or b_is_latents else self.labels_of(end)
        if not a_is_latents:
            start = self.infer(start, latent_steps, sample_latents, generator, labels=start_labels).sample
        if not b_is_latents:
            end = self.infer(end, latent_steps, sample_latents, generator, labels=end_labels).sample
        z = PATHS[path](start, end, torch.linspace(0.0, 1.0, num_frames, device=start.device)).flatten(0, 1)
        labels = None
        if start_labels is not None and end_labels is not None:
            is_start = torch.arange(num_frames, device=start.device) < (num_frames + 1) // 2
            labels = torch.where(is_start, start_labels[:, None], end_labels[:, None]).flatten()

        # 2. generate, and revise each frame by the x-chain
        if isinstance(generator, list):
            generator = [one for one in generator for _ in range(num_frames)]
        chain = self.revise(self.generate(z, labels), num_steps, generator, labels=labels)
        return self.finish(chain.sample, output_type, return_dict, z, class_labels=labels)

    @task
    def inpaint(
        self,
        images: Any,
        mask: Any,
        num_inference_steps: int | None = None,
        latent_inference_steps: int | None = None,
        sample_latents: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_energies: bool = False,
        output_diagnostics: bool = False,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> DualMCMCOutput | tuple[Any]:
        """Fill in the masked part of images: from latents that explain the rest, then by the x-chain on it only.

        The latents are inferred from the images with the masked part at 0 (mid gray) and revised by the z-chain on the
        known pixels' squared error; without an inference model they are a plain draw. The start is ours: the paper does
        not fill in.

        Args:
            images: As for `reconstruct`; the values in the masked part are not used.
            mask: 1 (white) = to be filled in, see `hf_ebm.scoring.inputs.mask_to_tensor`.
            num_inference_steps: Updates of the x-chain; 0 = the generator's pixels as they are.
            latent_inference_steps: Updates of the z-chain; None = as many as in training.
            sample_latents, generator, output_type, return_dict: See the class.
            output_energies: Whether to return the energies along the x-chain; costs a forward per update.
            output_diagnostics: Whether to return what the x-chain's sampler reports.
            class_labels: See the class. The most likely label is the one that explains the known pixels best; without
                an inference model labels are sampled.

        Returns:
            `DualMCMCOutput` with ``images``, equal to the given ones where the mask is 0.
        """
        x = self.load_images(images)
        unknown = mask_to_tensor(mask, x.shape[0], self.sample_shape).to(x.device)
        unknown = unknown.expand(x.shape[0], *unknown.shape[1:])
        self.check_common_inputs(x.shape[0], generator, output_type)
        num_steps = self.x_chain_steps(num_inference_steps)
        latent_steps = 0
        if self.inference_model is not None or latent_inference_steps:
            self.check_has("inference_model", f"latent_inference_steps={latent_inference_steps}")
            latent_steps = self.z_chain_steps("latent_inference_steps", latent_inference_steps)
        if output_energies:
            self.check_has("energy_model", "output_energies")

        # 1. latents that explain the known pixels
        if self.inference_model is None:
            labels = self.given_labels(class_labels, x.shape[0], generator)
            z = self.draw_latents(x.shape[0], generator)
        else:
            gray = x.masked_fill(unknown, 0.0)
            labels = self.labels_of(gray, class_labels, mask=unknown)
            z = self.infer(gray, latent_steps, sample_latents, generator, mask=unknown, labels=labels).sample

        # 2. the x-chain on the unknown pixels, the others put back after each step
        def known(x_filled: Tensor) -> Tensor:
            return torch.where(repeat_rows(unknown, x_filled), x_filled, repeat_rows(x, x_filled))

        start = known(self.generate(z, labels))
        chain = self.revise(
            start, num_steps, generator, output_energies, output_diagnostics, known=known, labels=labels
        )
        found = {"energies": chain.profile, "diagnostics": chain.diagnostics, "class_labels": labels}
        return self.finish(chain.sample, output_type, return_dict, z, **found)

    def load_end(self, name: str, value: Any) -> tuple[Tensor, bool]:
        """One end of `interpolate`: latents (B, latent_dim) and True, or images and False.

        Raises:
            ValueError: If it is neither, naming it.
        """
        latent_dim = self.generator_model.config.latent_dim
        no_vectors = len(self.sample_shape) == 3
        if isinstance(value, Tensor) and value.ndim in (1, 2) and (no_vectors or value.shape[-1] == latent_dim):
            value = value[None] if value.ndim == 1 else value
            return self.check_latents(name, value, max(1, value.shape[0])), True
        try:
            return self.load_images(value), False
        except ValueError as error:
            raise ValueError(f"{name} (as images): {error}") from error
