"""Settings of a training run: one frozen dataclass per script, filled from a YAML file and ``key=value`` arguments.

`RunSettings` has those that every script shares: data, optimisation, machine, records. Unlike OmegaConf, the parser
keeps ``mixed_precision=no`` a word, and expands no environment variables into settings that are saved and pushed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import logging
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_ebm.data.image_processor import EBMImageProcessor, check_crop
from hf_ebm.data.loading import EMBEDDED_NAMES
from hf_ebm.hub.model_card import check_license, public_values
from hf_ebm.hub.upload import check_repo_id, check_visibility, is_private, with_owner
from hf_ebm.utils.files import expand_home, whole_file
from hf_ebm.utils.validation import did_you_mean

SettingsT = TypeVar("SettingsT")
CONFIGS = Path(__file__).parent / "configs"
BOOL = "tag:yaml.org,2002:bool"


class SettingsLoader(yaml.SafeLoader):
    """YAML 1.2 booleans, true and false only: ``mixed_precision: no`` is the word, and not false as in YAML 1.1."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name and place)
        start: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


SettingsLoader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_settings(cls: type[SettingsT], default_config: str, arguments: Sequence[str]) -> SettingsT:
    """Settings from ``[--config FILE] [key=value ...]``; arguments override the file, and the file the defaults.

    A dotted key reaches into a nested setting: ``models.unet.base_channels=32``. Without ``--config`` the
    `default_config` of `shipped_configs` is read. A mistake is a `ValueError`: an unknown key (near names are listed),
    a value of the wrong type, a missing file.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default=default_config)
    try:
        options, pairs = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"--config needs a file name after it ({error}).") from error
    values = read_yaml(find_config(options.config, default_config))
    for pair in pairs:
        key, equals, text = pair.lstrip("-").partition("=")
        if not equals:
            hint = did_you_mean(key.replace("-", "_"), typing.get_type_hints(cls), "--help lists the keys.")
            raise ValueError(f"arguments must be --config FILE or key=value, got {pair!r}; {hint}")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target[parent] = target = target[parent] if isinstance(target.get(parent), dict) else {}
        target[last] = parse_yaml(text, f"setting {key!r}") if text else ""
    return make_settings(cls, values)


def shipped_configs(default_config: str) -> list[Path]:
    """The configs of a script: ``<method>_<data>.yaml`` beside its default one, whose ``<data>`` has no "_"."""
    default = CONFIGS / default_config
    return sorted(default.parent.glob(f"{default.stem.rpartition('_')[0]}_*.yaml"))


def find_config(config: str, default_config: str) -> Path:
    """The file `config`, or the script's shipped one of that name (with or without ``.yaml``)."""
    path, shipped = Path(expand_home(config)), {path.stem: path for path in shipped_configs(default_config)}
    name = path.name.removesuffix(".yaml")
    if path.is_file():
        return path
    if path.parent in (Path("."), Path("training/configs")) and name in shipped:
        return shipped[name]
    near = did_you_mean(name, shipped, f"this script's are {', '.join(shipped)}.")
    raise ValueError(f"--config {config} is not a file; {near}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got {type(values).__name__}.")
    return values


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; an error calls it `name`."""
    try:
        return yaml.load(text, SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from error


def make_settings(cls: type[SettingsT], values: dict[str, Any]) -> SettingsT:
    """`cls` from a mapping, with every key known and every value of its field's type."""
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"unknown setting {key!r}; {did_you_mean(str(key), hints, '--help lists the keys.')}")
    return cls(**{key: convert(key, value, hints[key]) for key, value in values.items()})


def convert(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; numbers may be written in any form (``1e-4`` is a string in YAML)."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        kind, inner = typing.get_origin(option) or option, typing.get_args(option)
        if kind is tuple:
            items = [value] if inner[0] is str and isinstance(value, str) else value  # trackers=wandb
            if isinstance(items, list | tuple):
                return tuple(convert(key, item, inner[0]) for item in items)
        elif type(value) is kind:
            return value
        elif kind in (int, float, str) and type(value) in (int, float, str):
            with contextlib.suppress(ValueError, OverflowError):
                if kind is not int or int(value) == value:
                    return kind(value)
    form = " A list is written [1, 2]." if "tuple" in str(hint) else ""
    kinds = inspect.formatannotation(hint).replace("None", "null")
    raise ValueError(f"setting {key!r} must be {kinds}, got {value!r} ({type(value).__name__}).{form}")


def describe_settings(cls: type[Any], config: str) -> str:
    """One line for each setting: its default, the shipped `config`'s value if it differs, and its source comment."""
    sources = "".join(inspect.getsource(part) for part in reversed(cls.__mro__[:-1]))
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", sources, re.MULTILINE))
    defaults, chosen, lines = dataclasses.asdict(cls()), read_yaml(CONFIGS / config), []
    for name, default in defaults.items():
        default = list(default) if isinstance(default, tuple) else default  # as written on the command line
        text = f"  {name} = {default!r}"
        if chosen.get(name, default) != default:
            text += f"; {Path(config).name}: {chosen[name]!r}"
        lines.append(f"{text:<50} {comments.get(name, '')}".rstrip())
    return "\n".join(lines)


def dump_settings(settings: Any, path: Path) -> None:
    """Write all settings, defaults included, as YAML that ``--config`` reads back."""
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False), encoding="utf-8")


logger = logging.getLogger(__name__)
NOT_LEARNED_FROM = frozenset(
    {
        "output_dir", "overwrite_output_dir", "num_workers", "max_steps", "max_runtime_seconds", "loss_limit",
        "compile", "channels_last", "cuda_graph", "validate_every", "validation_feature_extractor", "save_best_by",
        "early_stopping_patience", "log_every", "sample_every", "num_grid_samples", "checkpoint_every",
        "checkpoints_total_limit", "resume", "trackers", "push_to_hub", "hub_model_id", "hub_private", "license",
        "license_name",
    }
)  # fmt: skip  # settings that do not change what is learned


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
    crop_box: tuple[int, ...] | None = None  # left, top, right, bottom, of images of the size crop_from
    crop_from: tuple[int, ...] | None = None  # width, height; images of other sizes are centre-cropped square
    horizontal_flip: bool = False
    num_toy_samples: int = 100_000
    num_workers: int = 0

    # labels
    class_conditional: bool = False  # train networks that take a class label
    label_column: str | None = None  # None: the only one of type ClassLabel
    pseudo_labels: int = 0  # label by so many clusters of the training images, where there are no labels
    label_dropout: float = 0.1  # share dropped: trains the null class, for guidance, and the marginal energy
    classification_weight: float = 1.0  # of the cross entropy of p(y | x_t) on real samples

    # models
    preset: str = "digits"  # hf_ebm.models.presets, or dual_mcmc_presets
    models: dict[str, dict] = dataclasses.field(default_factory=dict)  # changes to it, by part: generator, energy, ...
    latent_dim: int | None = None  # None: the preset's

    # optimisation
    max_steps: int = 2000
    max_runtime_seconds: float | None = None  # a longer run ends early, as a pipeline; resume=latest resumes it
    batch_size: int = 64  # per process
    gradient_accumulation_steps: int = 1  # for now only 1 is supported
    energy_learning_rate: float = 1e-4
    generator_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5  # end of the cosine decay, also of a run that is extended
    lr_warmup_steps: int = 0  # linear from 0 to the learning rates; their schedule begins after it
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

    # validation
    validate_every: int = 0  # steps between two validations of the averaged weights; 0: never
    validation_split: str | None = None  # None: a random part of dataset_split, which is then not trained on
    num_validation_images: int = 1000  # held out; at most a tenth of dataset_split
    validation_feature_extractor: str | None = None  # as hf-ebm evaluate's; None: the digits', or principal components
    save_best_by: str | None = None  # e.g. frechet_distance: the pipeline gets the weights with the best one
    early_stopping_patience: int | None = None  # end after so many validations without improvement of save_best_by

    # records
    log_every: int = 10
    sample_every: int = 500  # a grid in samples/; 0: never
    num_grid_samples: int = 64
    checkpoint_every: int = 500  # 0: at the end only
    checkpoints_total_limit: int | None = 2
    resume: str | None = None  # "latest" or a checkpoint folder
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb"

    # Hub; the token is that of `hf auth login` or HF_TOKEN, never a setting
    push_to_hub: bool = False  # pipeline, card, images, metrics when max_steps is reached, in one commit
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
        self.check_at_least(0, "padding", "num_workers", "sample_every", "checkpoint_every", "seed", "pseudo_labels")
        if not 0.0 <= self.label_dropout < 1.0:
            raise ValueError(f"label_dropout must be in [0, 1), got {self.label_dropout}.")
        if self.pseudo_labels == 1 or (self.pseudo_labels and self.class_conditional):
            raise ValueError(
                "pseudo_labels must be 0 or at least 2, and 0 with class_conditional=true, which uses the data set's "
                f"own labels; got {self.pseudo_labels}."
            )
        self.check_at_least(0, "lr_warmup_steps")
        if self.lr_warmup_steps >= self.max_steps:
            raise ValueError(
                f"lr_warmup_steps must be below max_steps={self.max_steps}, got {self.lr_warmup_steps}; the learning "
                "rate would never reach its value."
            )
        self.check_at_least(1, "num_grid_samples", "num_toy_samples", "checkpoints_total_limit")
        self.check_positive("energy_learning_rate", "generator_learning_rate", "loss_limit")
        self.check_positive("max_grad_norm", "max_runtime_seconds")
        self.check_not_negative("final_learning_rate", "classification_weight")
        self.check_choice("mixed_precision", ("no", "bf16", "fp16"))
        self.check_validation()
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1) or null, got {self.ema_decay}.")
        if self.padding and self.dataset in EMBEDDED_NAMES:
            raise ValueError(f"padding must be 0 for the embedded data set {self.dataset!r}, got {self.padding}.")
        check_crop(self.crop_box, self.crop_from)
        if self.crop_box and self.dataset in EMBEDDED_NAMES:
            raise ValueError(f"crop_box must be null for the embedded data set {self.dataset!r}, got {self.crop_box}.")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be under 2**32, got {self.seed}.")
        if len(self.adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.adam_betas):
            raise ValueError(f"adam_betas must be two numbers in [0, 1), got {self.adam_betas}.")
        check_license("license", self.license, self.license_name)

    def check_validation(self) -> None:
        """Raise a `ValueError` if the settings of the validation do not fit each other."""
        self.check_at_least(0, "validate_every")
        self.check_at_least(20, "num_validation_images")
        self.check_at_least(1, "early_stopping_patience")
        if self.save_best_by is not None and not self.validate_every:
            raise ValueError("save_best_by needs validate_every > 0, got 0; say how often to validate.")
        if self.early_stopping_patience is not None and self.save_best_by is None:
            raise ValueError(
                "early_stopping_patience needs save_best_by, the metric that has to improve; got null. Name one, such "
                "as frechet_distance."
            )

    @property
    def repo_id(self) -> str:
        """The repository it pushes to."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def make_image_processor(self, sample_shape: tuple[int, ...]) -> EBMImageProcessor | None:
        """The preparation of images for models of this shape; None for vectors."""
        crop = {"crop_box": self.crop_box, "crop_from": self.crop_from}
        return EBMImageProcessor.for_model(sample_shape, self.padding, **crop)

    def check_hub(self) -> None:
        """Raise a `ValueError` if the run is to push and could not: no login, an impossible id, another visibility."""
        if not self.push_to_hub:
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
                raise ValueError(f"push_to_hub: the Hub does not know this login ({error})") from error
        except httpx.TransportError:
            logger.warning("push_to_hub: the Hub cannot be reached now; the push at the end would fail.")
        check_visibility("hub_private", self.hub_private, found, self.repo_id)

    def check_at_least(self, smallest: int, *names: str) -> None:
        """Raise a `ValueError` if one of the settings `names` is below `smallest`; null is allowed."""
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"{name} must be >= {smallest}, got {getattr(self, name)}.")

    def check_positive(self, *names: str) -> None:
        """Raise a `ValueError` if one of the settings `names` is not a positive, finite number; null is allowed."""
        for name in names:
            if getattr(self, name) is not None and not 0.0 < getattr(self, name) < math.inf:
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


def changed_settings(earlier: dict[str, Any], settings: RunSettings) -> dict[str, Any]:
    """The `earlier` values of settings that decide what is learned and are others now, with public paths."""
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    names = [name for name in now if name in earlier and name not in NOT_LEARNED_FROM]
    return {name: public_values(earlier[name]) for name in names if earlier[name] != now[name]}
