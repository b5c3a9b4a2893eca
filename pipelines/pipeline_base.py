"""What hf_ebm's pipelines share: loading by Hub id, pushing with a card, output formats, scoring by energy."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import CommitInfo
from torch import Tensor

import hf_ebm
from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.hub.download import (
    CODE_FILE,
    HUB_OPTIONS,
    INDEX,
    check_classes,
    check_weights,
    download_pipeline,
    holds_own_code,
    no_pipeline,
    pipeline_code,
    read_index,
    wanted_components,
)
from hf_ebm.hub.saved_weights import PathlessConfig, require_safe_serialization, require_safetensors
from hf_ebm.hub.upload import push_pipeline
from hf_ebm.models.energy import check_energy_model
from hf_ebm.scoring.inputs import images_to_tensor
from hf_ebm.scoring.statistics import ReconstructionError, ScoreOutput, compute_energies, score_samples
from hf_ebm.utils.files import expand_home
from hf_ebm.utils.torch_utils import execution_device, no_grad
from hf_ebm.utils.validation import check_count, is_number

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
KEEP_DTYPES = object()  # the dtype with which `from_pipe` calls `to` where none was given
SCHEDULERS = ("scheduler", "latent_scheduler")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="EBMPipeline")


def task(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Decorate a pipeline's public call: without gradients, and safe to run from several threads.

    `method` gets a `call_copy` of the pipeline, so the schedulers' state and ``num_timesteps``
    belong to the call. It works inside ``torch.inference_mode()`` too.
    """

    @functools.wraps(method)
    @no_grad
    def call(self: T, *args: P.args, **kwargs: P.kwargs) -> R:
        copied = self.call_copy()
        output = method(copied, *args, **kwargs)
        self.__dict__["_num_timesteps"] = copied.num_timesteps
        self.maybe_free_model_hooks()
        return output

    return call


@dataclass(frozen=True)
class Trajectory:
    """Samples and what the sampler passed through, in the models' own range and not clamped, as ``"latent"`` output."""

    samples: Tensor  # shape (N, ...)
    states: Tensor  # of the first samples, at each of K points, ending with `samples`, (K, M, ...), on the CPU
    energies: Tensor  # ``E(x, 0)`` of every sample at these points, low = likely, shape (K, N), on the CPU
    points: list[str]  # names of the K points
    acceptance_rate: float | None = None  # share of accepted proposals, for samplers with proposals


def randn_uniform(number: int, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Uniform numbers in [0, 1), shape (number,), one of each generator of a list."""
    if isinstance(generator, list):
        return torch.stack([torch.rand((), generator=one, device=one.device).cpu() for one in generator])
    device = "cpu" if generator is None else generator.device
    return torch.rand(number, generator=generator, device=device).cpu()


class EBMPipeline(PathlessConfig, DiffusionPipeline):
    """Base of the generation pipelines: component names, Hub id loading, output formats and ``score``."""

    _optional_components = ["energy_model", "inference_model", "image_processor"]  # noqa: RUF012 (diffusers' own form)
    _loads_any = False  # whether other pipelines' repositories can be loaded
    _extra_files: tuple[str, ...] = ()  # fetched beside the components, where they are there
    # what a method answers about itself, see docs/adding_a_method.md
    method_name = ""  # in texts
    sampling_text = ""  # how it samples, for readers who know no energy-based models
    samplers: ClassVar[dict[str, Any]] = {}  # description -> class of the schedulers to choose from, its own first
    reconstruction_components: tuple[str, ...] = ()  # which scores with a reconstruction need, beside the scheduler

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute or component; a model that is not an energy cannot become ``energy_model``."""
        if name == "energy_model" and value is not None:
            check_energy_model(value)
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or by Hub id, as every diffusers pipeline, from safetensors and JSON only.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            kwargs: As for every diffusers pipeline (``revision``, ``variant``, ``dtype``, ``token``,
                ``cache_dir``, ``local_files_only``, components, ...), and ``subfolder``, where in it the pipeline is.

        Raises:
            ValueError: If what is there cannot be used: another pipeline, classes of other libraries, weights that are
                no safetensors or damaged.
            OSError: If nothing is found, or the Hub cannot be reached.
        """
        pretrained_model_name_or_path = expand_home(pretrained_model_name_or_path)
        require_safetensors(kwargs)
        for name, component in cls.given(kwargs).items():
            if component is None and name not in cls._optional_components:
                raise ValueError(
                    f"{name} must not be None: {cls.__name__} does nothing without it; leave it out to load the saved "
                    "one, or give your own. EnergyScoringPipeline loads only what scores need."
                )
        folder = cls.find_folder(pretrained_model_name_or_path, kwargs)
        trusted = kwargs.pop("trust_remote_code", False)
        index = read_index(folder / INDEX, trusted)
        found = index["_class_name"]
        if not cls._loads_any and found in hf_ebm.__all__ and found not in {base.__name__ for base in cls.__mro__}:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {found}, not a {cls.__name__}; load it with "
                f"hf_ebm.{found}.from_pretrained."
            )
        components = wanted_components(index, cls.component_names(), kwargs)
        required = [name for name in cls.component_names() if name not in cls._optional_components]
        if missing := [name for name in required if name not in components and name not in kwargs]:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {found} without {missing}, which {cls.__name__} needs; give "
                "another model, or pass what is missing as arguments."
            )
        check_classes(index, components)
        check_weights(folder, components, kwargs.get("variant"))
        # our own lines in a clone need diffusers' leave; code that the caller names is no such thing
        trusted = trusted or (kwargs.get("custom_pipeline") is None and holds_own_code(folder, index, components))
        pipeline = super().from_pretrained(folder, trust_remote_code=trusted, **kwargs)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        if index.get("image_processor") == [None, None]:  # it was left out, not saved before there was one
            pipeline.image_processor = kwargs.get("image_processor")
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Share another pipeline's components, as every diffusers pipeline, with the dtypes that they have.

        Args:
            pipeline: Where they are.
            kwargs: Components in place of its own, and ``dtype``, which converts the shared networks. Without it
                diffusers would convert them to float32.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = KEEP_DTYPES
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Convert the dtype, the device or both, as every diffusers pipeline."""
        return self if kwargs.get("dtype") is KEEP_DTYPES else super().to(*args, **kwargs)

    @classmethod
    def find_folder(cls, name: Any, kwargs: dict[str, Any]) -> Path:
        """The pipeline's folder, on disk or fetched from the Hub; takes what concerns the Hub out of `kwargs`."""
        options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        subfolder = kwargs.pop("subfolder", None)
        if Path(name).is_dir():
            folder = Path(name) / (subfolder or "")
            if not (folder / INDEX).is_file():
                raise OSError(no_pipeline(folder))
            return folder
        wanted = {key: kwargs.get(key) for key in ("variant", "trust_remote_code") if kwargs.get(key) is not None}
        return Path(cls.download(str(name), subfolder=subfolder, **wanted, **options, **cls.given(kwargs)))

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch the files of a pipeline repository into the cache and return their folder.

        diffusers' own method knows only components of its libraries. Components that are given (or None) are not
        fetched; see `hf_ebm.hub.download.download_pipeline` for the other arguments.
        """
        options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        chosen = {name: kwargs[name] for name in ("subfolder", "variant") if kwargs.get(name) is not None}
        folder = download_pipeline(
            pretrained_model_name,
            names=cls.component_names(),
            given=cls.given(kwargs),
            extra_files=cls._extra_files,
            trust_remote_code=kwargs.get("trust_remote_code") or False,
            **chosen,
            **options,
        )
        return str(folder)

    @classmethod
    def component_names(cls) -> list[str]:
        """What the pipeline is made of, by its constructor."""
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    @classmethod
    def given(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The components among `kwargs`: made already, or None, that is not wanted."""
        return {name: kwargs[name] for name in cls.component_names() if name in kwargs}

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as every diffusers pipeline, with ``pipeline.py`` for those who load without our class.

        Weights of the same variant that were in the folder are replaced, and those of other variants stay.

        Args:
            save_directory: The folder.
            safe_serialization: Must be True: only safetensors are written and read.
            variant: Of the weights' file names, for example ``"fp16"``.
            max_shard_size: Largest size of one weight file, such as ``"5GB"``; None = the libraries' defaults.
            push_to_hub: Whether to push the pipeline too.
            use_flashpack: Must be False.
            kwargs: With `push_to_hub`, further arguments of `push_to_hub`; ``repo_id`` defaults to the folder's name.

        Raises:
            ValueError: If another format is asked for.
            TypeError: If an argument is unknown.
        """
        require_safe_serialization(safe_serialization, use_flashpack)
        unknown = set(kwargs) - set(inspect.signature(self.push_to_hub).parameters)
        if unknown:
            raise TypeError(f"save_pretrained and push_to_hub take no arguments {sorted(unknown)}.")
        save_directory = expand_home(save_directory)
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        if self.image_processor is not None and self.energy_model is not None:
            self.image_processor.save_pretrained(Path(save_directory) / "energy_model")
        (Path(save_directory) / CODE_FILE).write_text(pipeline_code(type(self).__name__), encoding="utf-8")
        self.save_extra_files(Path(save_directory))
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).name)
            self.push_to_hub(variant=variant, **kwargs)

    def save_extra_files(self, folder: Path) -> None:
        """Save what a subclass keeps beside its components."""

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> CommitInfo:
        """Push weights, configs, card and what the run folder it was loaded from knows, in one commit.

        Args:
            repo_id: Such as ``"user/name"``; created if it does not exist.
            commit_message: Default: the pipeline's name.
            private: Whether a new repository is private; None = as the account's default.
            token: None = that of ``hf auth login`` or ``HF_TOKEN``.
            create_pr: Whether to open a pull request instead of a commit.
            safe_serialization: Must be True: only safetensors are written and read.
            variant: Of the weights' file names, for example ``"fp16"``.
            subfolder: Folder of the repository to push to; then no card is written, as in diffusers. It loads with
                ``from_pretrained(repo_id, subfolder=...)``.
            revision: Branch to push to, created if it does not exist; None = ``main``.

        Raises:
            PushError: If it failed; what was there is as it was.
            ValueError: If an argument cannot be used.
        """
        require_safe_serialization(safe_serialization, use_flashpack=False)
        return push_pipeline(
            self,
            repo_id,
            variant=variant,
            commit_message=commit_message,
            private=private,
            token=token,
            create_pr=create_pr,
            subfolder=subfolder,
            revision=revision,
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        generator_model = getattr(self, "generator_model", None)
        return (self.energy_model if generator_model is None else generator_model).sample_shape

    @staticmethod
    def make_image_processor(image_processor: EBMImageProcessor | None, *models: Any) -> EBMImageProcessor | None:
        """Return `image_processor`, or with None one for the models of a pipeline; None for models of vectors.

        The default pads as the energy's config says, which training writes.
        """
        models = tuple(model for model in models if model is not None)
        if (sample_shape := getattr(models[0], "sample_shape", None)) is None:
            return image_processor  # not one of our models, which the pipeline refuses
        sample_shape = tuple(sample_shape)
        if image_processor is None:
            padding = max(getattr(getattr(model, "config", None), "padding", 0) for model in models)
            return EBMImageProcessor.for_model(sample_shape, padding)
        if tuple(image_processor.sample_shape) != sample_shape:
            raise ValueError(
                f"image_processor prepares images of shape {image_processor.sample_shape}, and the models take "
                f"{sample_shape}; make it with EBMImageProcessor(size={sample_shape[-1]}, "
                f"num_channels={sample_shape[0]})."
            )
        return image_processor

    @property
    def _execution_device(self) -> torch.device:
        """Where noise is drawn and states are: where the generator computes, or the energy if there is no generator."""
        generator_model = getattr(self, "generator_model", None)
        return execution_device(self.energy_model if generator_model is None else generator_model)

    @property
    def tasks(self) -> list[str]:
        """What it can do with the components that it has: "generate", "score" and names of further methods of it."""
        return ["generate"] if self.energy_model is None else ["generate", "score"]

    @property
    def step_range(self) -> tuple[int, int, int | None]:
        """Smallest, default and largest ``num_inference_steps`` with the present scheduler; None = no limit."""
        return 1, len(self.scheduler), None

    def trajectory(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_watched: int = 3,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> Trajectory:
        """Sample as `__call__`, and keep the states and energies after each step.

        Args:
            batch_size, num_inference_steps, generator, class_labels: As for sampling.
            num_watched: Samples whose states are kept.
        """
        states, energies = [], []

        def watch(_: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> None:
            states.append(tensors["x"][:num_watched].float().cpu())
            energies.append(compute_energies(self.energy_model, tensors["x"]))

        samples = self(
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type="latent",
            callback_on_step_end=watch,
            **({} if class_labels is None else {"class_labels": class_labels}),
        ).images
        points = [f"step {step}" for step in range(1, len(states) + 1)]
        return Trajectory(samples, torch.stack(states), torch.stack(energies), points)

    @property
    def temperature(self) -> float:
        """T of the density ``p(x) ~ exp(-E(x, 0) / T)``: that of the sampler; 1 for schedulers that are none."""
        return getattr(self.scheduler, "temperature", 1.0)

    @property
    def data_noise_std(self) -> float:
        """Standard deviation of the noise on the data that the energy at t = 0 was trained on: the sampler's."""
        return getattr(self.scheduler, "noise_std", 0.0)

    @classmethod
    def make_reconstruction_error(cls, components: Mapping[str, Any], seed: int) -> ReconstructionError | None:
        """``x -> mean squared error per pixel of the model's reconstruction``, shape (B,), for OOD scores.

        With ``all_levels=True`` the errors from every noise level, shape (B, T); a method without levels has T = 1.

        Args:
            components: Some pipeline's, by name; those that it lacks are None.
            seed: Of the noise, the same for each sample.

        Returns:
            None if these components do not reconstruct by this method.
        """
        return None

    @classmethod
    def make_reconstruction(cls, components: Mapping[str, Any], seed: int) -> Callable[[Tensor], Tensor] | None:
        """``x -> the model's reconstruction of x``, in the model's range, shape of `x`, for heat maps.

        Arguments and None as for `make_reconstruction_error`.
        """
        return None

    def check_common_inputs(self, batch_size: int, generator: Any, output_type: str) -> None:
        """Raise a `ValueError` for a batch size, generator list or output type that cannot be done."""
        check_count("batch_size", batch_size, 1)
        generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
        for one in generators:
            if not isinstance(one, torch.Generator):
                raise ValueError(
                    f"generator must be a torch.Generator, a list of them, or None, got {one!r}; from a seed: "
                    "torch.Generator().manual_seed(0)."
                )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"generator must be one torch.Generator or a list of batch_size={batch_size} of them, got a list of "
                f"{len(generator)}."
            )
        allowed = OUTPUT_TYPES[0 if len(self.sample_shape) == 3 else 1 :]  # vectors make no PIL images
        if output_type not in allowed:
            raise ValueError(f"output_type must be one of {allowed} for this model, got {output_type!r}.")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, their numbers as text where they have none; empty for a model without classes."""
        config = getattr(getattr(self, "generator_model", None), "config", None)
        names = getattr(config, "class_names", None)
        return list(names or map(str, range(getattr(config, "num_classes", 0))))

    def resolve_class_labels(self, class_labels: Any, batch_size: int, generator: Any) -> tuple[Tensor | None, int]:
        """The label of each sample, shape (B,), and the batch size; None for a model without classes.

        Args:
            class_labels: A number or name, or a sequence of them, which sets the batch size; None = sampled from the
                class frequencies of the training set.
            batch_size: For a single label, or none.
            generator: Random number generator, or a list with one per sample.
        """
        names = self.class_names
        if not names:
            if class_labels is not None:
                raise ValueError(
                    f"class_labels must be None: this model has no classes; got {class_labels!r}. Train one with "
                    "class_conditional=true."
                )
            return None, batch_size
        if class_labels is None:
            self.check_common_inputs(batch_size, generator, "latent")
            prior = getattr(self.generator_model.config, "class_prior", None) or [1.0 / len(names)] * len(names)
            each = generator if isinstance(generator, list) else None
            uniform = randn_uniform(batch_size, each or generator)
            labels = torch.searchsorted(torch.tensor(prior).cumsum(0), uniform).clamp(max=len(names) - 1)
            return labels.to(self._execution_device), batch_size
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        many = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        given = list(class_labels) if many else [class_labels] * batch_size
        numbers = {name: number for number, name in enumerate(names)}
        found = [numbers.get(label, label) if isinstance(label, str) else label for label in given]
        wrong = [
            label
            for label in found
            if isinstance(label, bool | str) or not isinstance(label, int) or not 0 <= label < len(names)
        ]
        if wrong or not found:
            raise ValueError(
                f"class_labels must be numbers from 0 to {len(names) - 1} or names among {names}, got "
                f"{wrong[0] if wrong else given!r}."
            )
        return torch.tensor(found, device=self._execution_device), len(found)

    def check_guidance(self, guidance_scale: Any, labels: Tensor | None) -> None:
        """Raise a `ValueError` for a guidance scale that cannot be used."""
        if not is_number(guidance_scale) or not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale!r}; 1.0 is no guidance.")
        if guidance_scale != 1.0 and labels is None:
            raise ValueError(
                f"guidance_scale must be 1.0 for a model without classes, got {guidance_scale}; train one with "
                "class_conditional=true."
            )
        if guidance_scale != 1.0 and not getattr(self.generator_model.config, "null_class", True):
            raise ValueError(
                f"guidance_scale must be 1.0 for a model without a null class, got {guidance_scale}; train one with "
                "label_dropout=0.1."
            )

    def call_copy(self) -> Self:
        """A shallow copy for one call: the schedulers are copied, all else is shared.

        Schedulers keep state (timesteps, a waiting proposal, a running mean), which calls from
        other threads must not change. ``callback_on_step_end`` gets this copy as its pipeline.
        """
        copied = copy.copy(self)
        copied.__dict__.pop("_num_timesteps", None)
        copied.__dict__["_interrupt"] = False
        for name in SCHEDULERS:
            if self.__dict__.get(name) is not None:
                # `__dict__`, because diffusers' __setattr__ writes to the config, which is shared
                copied.__dict__[name] = copy.deepcopy(self.__dict__[name])
        return copied

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps in the last call's loop; in a callback, in the loop of its own call."""
        last: int | None = self.__dict__.get("_num_timesteps")
        if last is not None:
            return last
        return 0 if self.scheduler is None else len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether the loop ends after the current step, as in diffusers: a callback sets ``pipe._interrupt = True``."""
        return self.__dict__.get("_interrupt", False)

    def until_interrupted(self, timesteps: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield `timesteps` with the progress bar, until a callback interrupts the loop."""
        for t in self.progress_bar(timesteps):
            if self.interrupt:
                return
            yield t

    def callback_names(self, callback: Any, names: list[str] | None) -> list[str]:
        """Which tensors a ``callback_on_step_end`` gets: the ``tensor_inputs`` of one of diffusers' objects."""
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            names = callback.tensor_inputs
        names = ["x"] if names is None else names
        unknown = set(names) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {self._callback_tensor_inputs}, got "
                f"{sorted(unknown)}."
            )
        return names

    def post_process(self, x: Tensor, output_type: str) -> Any:
        """States as PIL images, arrays (B, H, W, C) in [0, 1], or tensors (B, C, H, W) in [0, 1].

        Vector data stay as they are, as an array or a tensor of shape (B, D). ``"latent"`` returns the models' raw
        state: a float32 tensor in their own range, not clamped.
        """
        if output_type == "latent":
            return x.float()
        if len(self.sample_shape) == 1:
            return x if output_type == "pt" else x.float().cpu().numpy()
        if output_type == "pt":
            return to_unit_range(x)
        array = VaeImageProcessor.pt_to_numpy(to_unit_range(x.float()))
        if output_type == "np":
            return array
        number, height, width, channels = array.shape  # all as one image, and cut: half the time for small ones
        (strip,) = VaeImageProcessor.numpy_to_pil(array.reshape(1, number * height, width, channels))
        return [strip.crop((0, top, width, top + height)) for top in range(0, number * height, height)]

    def score(self, images: Any, all_timesteps: bool = False, batch_size: int = 256) -> ScoreOutput:
        """Energies of images, low = likely: deterministic, in eval mode, no noise added.

        Args:
            images: PIL images, arrays, or tensors in [0, 1], prepared by the image processor; vectors (B, D).
            all_timesteps: Also return ``E(x, t)`` of every noise level, shape (B, T).
            batch_size: Images per forward pass.

        Returns:
            `ScoreOutput` with ``energies`` = ``E(x, 0)``, shape (B,).

        Raises:
            ValueError: If the pipeline has no energy model, or the images do not fit it.
        """
        if self.energy_model is None:
            raise ValueError("score needs energy_model, and this pipeline was loaded without one.")
        x = images_to_tensor(images, self.energy_model.sample_shape, self.image_processor)
        output = score_samples(self.energy_model, x, all_timesteps, batch_size)
        self.maybe_free_model_hooks()
        return output
