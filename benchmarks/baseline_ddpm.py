"""Baseline: a denoising diffusion model (Ho et al. 2020), made of diffusers' classes, with DDAEBM's U-Net.

    accelerate launch benchmarks/baseline_ddpm.py --config benchmarks/configs/ddpm_digits.yaml key=value ...

`UNet2DModel` predicts the noise of a `DDPMScheduler` (1000 steps, linear betas), the clean image or
the velocity (Salimans & Ho 2022), set by `prediction_type`, with a squared error. The run folder is
a `DDIMPipeline`, which samples in any number of steps. A preset whose U-Net works on patches is
trained on ``pixel_unshuffle(x)``, which permutes the values and leaves the diffusion unchanged.
Without arguments the script trains the digits.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from baselines import CONFIGS, check_parts, sample_batches, save_grid_of
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional as F

from hf_ebm.hub.model_card import SETTINGS
from hf_ebm.models.class_labels import CLASS_SETTINGS
from hf_ebm.models.presets import ddaebm_model_settings
from hf_ebm.models.unet import build_unet
from hf_ebm.models.unet_energy import UNetEnergyConfig
from hf_ebm.models.unet_generator import UNetGeneratorModel
from hf_ebm.models.upsampling import use_upsample
from hf_ebm.training.config import RunSettings, make_settings, read_yaml
from hf_ebm.training.launch import run_script
from hf_ebm.training.trainer import Method, cosine_schedule, run_training, update
from hf_ebm.utils.validation import check_known


@dataclasses.dataclass(frozen=True)
class DDPMSettings(RunSettings):
    """Settings of a run; `generator_learning_rate` is the U-Net's, `energy_learning_rate` is not used."""

    output_dir: str = "outputs/ddpm"
    num_inference_steps: int = 50  # default number of DDIM steps
    timestep_spacing: str = "trailing"  # of DDIM; "leading" omits the noisiest states
    prediction_type: str = "epsilon"  # what the U-Net predicts; or "sample", "v_prediction"

    # optimisation
    generator_learning_rate: float = 2e-4
    adam_betas: tuple[float, ...] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names an invalid setting."""
        super().__post_init__()
        self.check_at_least(1, "num_inference_steps")
        self.check_choice("timestep_spacing", ("leading", "linspace", "trailing"))
        self.check_choice("prediction_type", ("epsilon", "sample", "v_prediction"))


@dataclasses.dataclass
class TrainState:
    """The U-Net, its optimizer and the scheduler of a train step."""

    accelerator: Accelerator
    unet: Any
    optimizer: Any
    scheduler: DDPMScheduler
    patch_size: int

    @property
    def models(self) -> tuple[Any, ...]:
        """The networks that a step updates."""
        return (self.unet,)


def train_step(x: Tensor, step: int, state: TrainState, settings: DDPMSettings) -> dict[str, Tensor]:
    """One iteration: ``mean (target - unet(x_t, t))^2`` over a random t for each image, mean over pixels and batch.

    The target is the noise, or what else the scheduler's `prediction_type` names.

    Args:
        x: Clean images, shape (B, C, H, W).
        step: Iterations done before this one; not used.
        state: The U-Net, its optimizer and the scheduler.
        settings: The run's settings.
    """
    x = F.pixel_unshuffle(x, state.patch_size)
    t = torch.randint(state.scheduler.config.num_train_timesteps, x.shape[:1], device=x.device)
    noise = torch.randn_like(x)
    x_t = state.scheduler.add_noise(x, noise, t)
    if settings.prediction_type == "v_prediction":
        target = state.scheduler.get_velocity(x, noise, t)
    else:
        target = {"epsilon": noise, "sample": x}[settings.prediction_type]
    loss = F.mse_loss(state.unet(x_t, t, return_dict=False)[0].float(), target)
    update(state.accelerator, state.optimizer, loss, state.unet.parameters(), settings)
    return {"squared_error": loss}


def make_model_settings(settings: DDPMSettings) -> dict[str, Any]:
    """Arguments of the U-Net: those of a DDAEBM preset's generator, defaults included."""
    check_parts(settings.models, ("unet", "generator"))
    parts = ddaebm_model_settings(settings.preset, overrides=settings.models)
    if parts["network"] != "unet":
        raise ValueError(f"preset must be one for images, got {settings.preset!r}.")
    known = inspect.signature(UNetGeneratorModel.__init__).parameters.values()
    unet = {parameter.name: parameter.default for parameter in known if parameter.name != "self"}
    unet.update(parts["generator"])
    for name in ("latent_dim", "num_timesteps", *CLASS_SETTINGS):  # no latent, no classes, other steps
        unet.pop(name)
    unet["time_embedding_dim"] = unet.pop("embedding_dim") or 4 * unet["base_channels"]
    return {"unet": unet}


def build_models(settings: dict[str, Any]) -> tuple[UNet2DModel]:
    """The U-Net, freshly initialised (torch's seed).

    Raises:
        ValueError: If the U-Net does not know a setting, or the sizes do not fit.
    """
    check_known("the U-Net", settings["unet"], UNetEnergyConfig().to_dict())
    with torch.device("meta"):
        described = build_unet(SimpleNamespace(**settings["unet"]), settings["unet"]["time_embedding_dim"], None)
    unet = UNet2DModel.from_config(described.config)  # diffusers' own class, which a DDIMPipeline loads
    return (use_upsample(unet),)


def make_train_state(
    settings: DDPMSettings, accelerator: Accelerator, models: tuple[Any], steps_per_epoch: int
) -> tuple[TrainState, list[torch.optim.lr_scheduler.LRScheduler]]:
    """The optimizer, its learning-rate schedule and the scheduler for the U-Net, prepared by `accelerator`."""
    (unet,) = models
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(
        unet.parameters(), lr=settings.generator_learning_rate, betas=settings.adam_betas, fused=fused
    )
    schedules = [cosine_schedule(optimizer, settings)]
    if settings.compile:
        unet.compile()
    patch_size = make_model_settings(settings)["unet"]["patch_size"]
    return TrainState(
        accelerator, *accelerator.prepare(unet, optimizer), make_scheduler(settings), patch_size
    ), schedules


def make_scheduler(settings: DDPMSettings) -> DDPMScheduler:
    """The noise schedule of training."""
    return DDPMScheduler(prediction_type=settings.prediction_type)


def make_pipeline(models: tuple[Any], settings: DDPMSettings) -> DDIMPipeline:
    """A pipeline with the current U-Net."""
    config = make_scheduler(settings).config
    return DDIMPipeline(models[0], DDIMScheduler.from_config(config, timestep_spacing=settings.timestep_spacing))


def sample_images(
    pipeline: DDIMPipeline, number: int, generator: torch.Generator, num_inference_steps: int, patch_size: int
) -> Tensor:
    """`number` images in [-1, 1], shape (number, C, H, W), on the CPU, by DDIM (Song et al. 2021).

    The noise of a step is that of the clipped image. diffusers leaves it as predicted unless asked: image and noise
    then do not make the sample that they came from, and with every step it gets worse.
    """
    pipeline.set_progress_bar_config(disable=True)
    patches = pipeline(
        number,
        generator,
        num_inference_steps=num_inference_steps,
        use_clipped_model_output=True,
        output_type="np",
    ).images
    return F.pixel_shuffle(torch.from_numpy(patches).permute(0, 3, 1, 2) * 2.0 - 1.0, patch_size)


def save_samples(pipeline: DDIMPipeline, folder: Path, step: int, settings: DDPMSettings) -> Path:
    """Save an image grid of samples from fixed noise."""
    patch_size = make_model_settings(settings)["unet"]["patch_size"]
    pipeline.unet.eval()

    def sample(number: int, generator: torch.Generator) -> Tensor:
        return sample_images(pipeline, number, generator, settings.num_inference_steps, patch_size)

    return save_grid_of(sample, folder, step, settings.num_grid_samples, pipeline.device)


def sample_shape(models: Sequence[Any], model_settings: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one image, (C, H, W), before it is cut into patches."""
    unet = model_settings["unet"]
    return unet["num_channels"], unet["image_size"], unet["image_size"]


METHOD = Method(
    name="ddpm",
    make_model_settings=make_model_settings,
    build_models=build_models,
    make_train_state=make_train_state,
    train_step=train_step,
    make_pipeline=make_pipeline,
    shown_terms=("squared_error",),
    num_averaged=1,
    sample_shape=sample_shape,
    save_samples=save_samples,
    write_card=None,
)


def train(settings: DDPMSettings) -> Path:
    """Train and return the run folder; see `hf_ebm.training.trainer.run_training`."""
    return run_training(METHOD, settings)


def sample_run(
    folder: Path, number: int, batch_size: int, seed: int, device: str, num_inference_steps: int | None = None
) -> Iterator[Tensor]:
    """`number` images of a run folder in batches, in [-1, 1], shape (B, C, H, W), on the CPU.

    Args:
        folder: The run folder.
        number: Number of images.
        batch_size: Images per batch.
        seed: Seed of all random numbers.
        device: Where the networks run.
        num_inference_steps: Steps of DDIM; None = the run's setting.
    """
    settings = make_settings(DDPMSettings, read_yaml(Path(folder) / SETTINGS))
    patch_size = make_model_settings(settings)["unet"]["patch_size"]
    num_inference_steps = num_inference_steps or settings.num_inference_steps
    pipeline = DDIMPipeline.from_pretrained(folder).to(device)

    def sample(number: int, generator: torch.Generator) -> Tensor:
        return sample_images(pipeline, number, generator, num_inference_steps, patch_size)

    return sample_batches(sample, number, batch_size, seed, device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    run_script(__doc__ or "", DDPMSettings, str(CONFIGS / "ddpm_digits.yaml"), train, arguments)


if __name__ == "__main__":
    main()
