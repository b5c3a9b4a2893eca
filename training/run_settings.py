"""The settings that every training script has: data, optimisation, machine, records."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_ebm.hub import public_values
from hf_ebm.hub_datasets import EMBEDDED_NAMES
from hf_ebm.hub_names import check_repo_id, check_visibility, is_private, needs_login, with_owner
from hf_ebm.licenses import check_license
from hf_ebm.user_paths import expand_home

logger = logging.getLogger(__name__)
NOT_LEARNED_FROM = frozenset(
    {
        "output_dir", "overwrite_output_dir", "num_workers", "max_steps", "stretch_seconds", "loss_limit", "compile",
        "channels_last", "cuda_graph", "log_every", "sample_every", "num_grid_samples", "checkpoint_every",
        "checkpoints_total_limit", "resume", "trackers", "push_to_hub", "push_every_checkpoint", "hub_model_id",
        "hub_private", "license", "license_name",
    }
)  # fmt: skip  # settings that leave the training's course as it is


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings of a run that do not depend on the method; each script's dataclass adds its own."""

    output_dir: str = "outputs/run"
    overwrite_output_dir: bool = False  # True: replace the run in output_dir; other files stay

    # data
    dataset: str = "digits"  # "digits", "25gaussians", "pinwheel", "swissroll", a Hub id, or a local folder
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str = "train"
    image_column: str | None = None  # None: the only image column
    padding: int = 0  # black pixels on each side: 2 makes 28x28 images 32x32
    horizontal_flip: bool = False
    num_toy_samples: int = 100_000
    num_workers: int = 0

    # models
    preset: str = "digits"  # hf_ebm.models.presets, or dual_mcmc_presets
    models: dict[str, dict] = dataclasses.field(default_factory=dict)  # changes to it, by part: generator, energy, ...
    latent_dim: int | None = None  # None: the preset's

    # optimisation
    max_steps: int = 2000
    stretch_seconds: float | None = None  # a start ends after so much training, as a stretch; resume=latest goes on
    batch_size: int = 64  # per process
    gradient_accumulation_steps: int = 1  # for now only 1 is supported
    energy_learning_rate: float = 1e-4
    generator_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5  # end of the cosine decay, also of a run that is extended
    adam_betas: tuple[float, ...] = (0.0, 0.9)
    max_grad_norm: float | None = None
    ema_decay: float | None = 0.999  # of generator and energy; None: no EMA
    loss_limit: float = 1e7  # a larger loss term stops the run

    # machine
    seed: int = 0
    mixed_precision: str = "no"  # "no" (fp32), "bf16", or "fp16" on a GPU
    compile: bool = False  # torch.compile the networks where the method allows it
    channels_last: bool = False
    cuda_graph: bool = False  # on one GPU, but for fp16: each step launched as a whole, up to 5 times as fast

    # records
    log_every: int = 10
    sample_every: int = 500  # a grid in samples/; 0: never
    num_grid_samples: int = 64
    checkpoint_every: int = 500  # 0: at the end only
    checkpoints_total_limit: int | None = 2
    resume: str | None = None  # "latest" or a checkpoint folder
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb"

    # Hub; the token is that of `hf auth login` or HF_TOKEN, never a setting
    push_to_hub: bool = False  # pipeline, card, pictures, metrics at the end of the last stretch, in one commit
    push_every_checkpoint: bool = False  # to the branch "checkpoints"; other processes wait for it, 6 hours at most
    hub_model_id: str | None = None  # "user/name"; None: the folder's name, in the account of the token
    hub_private: bool | None = None  # of a new repository; None: as the account's default
    license: str | None = None  # of the weights, on the model card: an id of the Hub such as "mit"; None: none stated
    license_name: str | None = None  # of a licence that the Hub has no id for, with license=other

    def __post_init__(self) -> None:
        """Expand ``~`` in paths; raise a `ValueError` that names the setting, before any work."""
        for name in ("output_dir", "dataset", "resume"):
            if value := getattr(self, name):
                object.__setattr__(self, name, expand_home(value))
        if not self.dataset.strip():
            raise ValueError(f"dataset must be the name of a data set or a folder, got {self.dataset!r}.")
        if not self.output_dir.strip():
            raise ValueError(f"output_dir must name a folder, got {self.output_dir!r}.")
        self.check_at_least(1, "max_steps", "batch_size", "log_every")
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps must be 1: a step updates several networks in turn, and accumulated "
                f"gradients would train one of them against an outdated other; got {self.gradient_accumulation_steps}. "
                "Use a larger batch_size, or more processes."
            )
        self.check_at_least(0, "padding", "num_workers", "sample_every", "checkpoint_every", "seed")
        self.check_at_least(1, "num_grid_samples", "num_toy_samples")
        self.check_positive("energy_learning_rate", "generator_learning_rate", "loss_limit")
        self.check_not_negative("final_learning_rate")
        if self.max_grad_norm is not None:
            self.check_positive("max_grad_norm")
        self.check_choice("mixed_precision", ("no", "bf16", "fp16"))
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1) or null, got {self.ema_decay}.")
        if self.padding and self.dataset in EMBEDDED_NAMES:
            raise ValueError(f"padding must be 0 for the embedded data set {self.dataset!r}, got {self.padding}.")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be under 2**32, got {self.seed}.")
        if len(self.adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.adam_betas):
            raise ValueError(f"adam_betas must be two numbers in [0, 1), got {self.adam_betas}.")
        check_license("license", self.license, self.license_name)
        if self.stretch_seconds is not None and not 0.0 < self.stretch_seconds < math.inf:
            raise ValueError(f"stretch_seconds must be positive and finite, or null, got {self.stretch_seconds}.")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError(f"checkpoints_total_limit must be >= 1 or null, got {self.checkpoints_total_limit}.")

    @property
    def repo_id(self) -> str:
        """The repository it pushes to."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def check_hub(self) -> None:
        """Raise a `ValueError` if the run is to push and could not: no login, an impossible id, another visibility."""
        if not (self.push_to_hub or self.push_every_checkpoint):
            return
        check_repo_id("hub_model_id", self.repo_id)
        if get_token() is None:
            raise ValueError("push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN.")
        api, found = HfApi(), None
        try:
            api.whoami(cache=True)
            found = None if self.hub_private is None else is_private(api, with_owner(api, self.repo_id))
        except HfHubHTTPError as error:
            if error.response.status_code == 401:
                raise ValueError(f"push_to_hub: no push is possible. {needs_login(error)}") from error
        except httpx.TransportError:
            logger.warning("push_to_hub: the Hub cannot be reached now; the push at the end would fail.")
        check_visibility("hub_private", self.hub_private, found, self.repo_id)

    def check_at_least(self, smallest: int, *names: str) -> None:
        """Raise a `ValueError` if one of the settings `names` is below `smallest`."""
        for name in names:
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be >= {smallest}, got {getattr(self, name)}.")

    def check_positive(self, *names: str) -> None:
        """Raise a `ValueError` if one of the settings `names` is not a positive, finite number."""
        for name in names:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")

    def check_not_negative(self, *names: str) -> None:
        """Raise a `ValueError` if one of the settings `names` is not a finite number >= 0."""
        for name in names:
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}.")

    def check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        """Raise a `ValueError` if the setting `name` is not among `allowed`."""
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")


def changed_settings(earlier: dict[str, Any], settings: RunSettings) -> list[str]:
    """Settings that decide what is learned and were others before, as ``name value``; none where nothing is known.

    They go on the card, so that of a path only its last part is told.

    Args:
        earlier: By name, from JSON.
        settings: The present ones.
    """
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    names = [name for name in now if name in earlier and name not in NOT_LEARNED_FROM]
    return [f"{name} {public_values(earlier[name])}" for name in names if earlier[name] != now[name]]
