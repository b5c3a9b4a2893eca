"""Settings of a training run: a frozen dataclass per script, filled from a YAML file and ``key=value`` arguments."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hf_ebm.commands.train import METHODS
from hf_ebm.near_names import did_you_mean
from hf_ebm.user_paths import expand_home
from hf_ebm.whole_files import whole_file

SettingsT = TypeVar("SettingsT")
CONFIGS = Path(__file__).parent / "configs"
MAX_NAMED = 5  # settings of which one may be meant
OF_THE_DIGITS = "_digits"  # how the name of each method's default config ends
BOOL = "tag:yaml.org,2002:bool"


class SettingsLoader(yaml.SafeLoader):
    """YAML whose booleans are true and false alone, as in YAML 1.2: ``mixed_precision: no`` is the word."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name and place)
        start: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


SettingsLoader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_settings(cls: type[SettingsT], default_config: str, arguments: Sequence[str]) -> SettingsT:
    """Settings from ``[--config FILE] [key=value ...]``; later values win over the file's, the file's over defaults.

    A dotted key reaches into a nested setting: ``models.unet.base_channels=32``.

    Args:
        cls: The dataclass.
        default_config: The file that is read when no ``--config`` is given, see `shipped_configs`.
        arguments: The command line without the script's name.

    Raises:
        ValueError: If a key is unknown (near names are listed), a value has the wrong type, or a file is missing or of
            another method.
    """
    config, pairs, rest = default_config, [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--config":
            if not rest:
                raise ValueError("--config needs a file name after it.")
            config = rest.pop(0)
        elif argument.startswith("--config="):
            config = argument.removeprefix("--config=")
        elif "=" in argument:
            pairs.append(argument.lstrip("-"))
        else:
            key, value = argument.lstrip("-").replace("-", "_"), rest[0] if rest else "VALUE"
            known = key in [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
            hint = f"did you mean {key}={value}?" if known else "--help lists the keys."
            raise ValueError(f"arguments must be --config FILE or key=value, got {argument!r}; {hint}")
    values = read_yaml(find_config(config, default_config))
    for pair in pairs:
        key, text = pair.split("=", 1)
        *parents, last = key.split(".")  # models.unet.base_channels=32 changes one entry of a nested setting
        target = values
        for parent in parents:
            inner = target.get(parent)
            target[parent] = dict(inner) if isinstance(inner, dict) else {}
            target = target[parent]
        try:
            target[last] = text if text == "" else yaml.load(text, SettingsLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"setting {key!r} must be a YAML value, got {text!r}: {error}") from error
    return make_settings(cls, values)


def shipped_configs(default_config: str) -> list[Path]:
    """The configs of a script, the ``<method>_<data>.yaml`` beside its default one, which is of the digits.

    Args:
        default_config: ``<method>_digits.yaml`` in ``training/configs``, or the path of such a file elsewhere.
    """
    default = CONFIGS / default_config
    return sorted(default.parent.glob(f"{default.stem.removesuffix(OF_THE_DIGITS)}_*.yaml"))


def find_config(config: str, default_config: str) -> Path:
    """The file `config`, or the shipped one of that name (with or without ``.yaml``).

    Raises:
        ValueError: If there is no such file, or it is the shipped one of another method than `default_config` is of.
    """
    config = expand_home(config)
    own, folder = shipped_configs(default_config), (CONFIGS / default_config).parent
    names, shipped = ", ".join(path.name for path in own), []
    if Path(config).parent in (Path("."), Path("training/configs")):  # any other folder is meant as it is written
        shipped = [folder / Path(config).name, folder / f"{Path(config).name}.yaml"]
    for path in (Path(config), *shipped):
        if path.is_file():
            break
    else:
        near = did_you_mean(Path(config).stem, [path.stem for path in own], f"the shipped ones are {names}.")
        raise ValueError(f"--config {config} is not a file; {near}")
    others = [method for method in METHODS if not Path(default_config).name.startswith(f"{method}_")]
    for method in others if path.resolve().parent == CONFIGS.resolve() else ():
        if path.name.startswith(f"{method}_"):
            raise ValueError(
                f"--config {config} is of the method {method}; start that method's script, or choose one of this "
                f"script's: {names}."
            )
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got {type(values).__name__}.")
    return values


def make_settings(cls: type[SettingsT], values: dict[str, Any]) -> SettingsT:
    """`cls` from a mapping, with every key known and every value of its field's type."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            named = [name for name in names if is_short_for(str(key), name)][:MAX_NAMED]
            otherwise = f"did you mean {', '.join(named)}?" if named else "--help lists the keys."
            hint = did_you_mean(str(key), names, otherwise)
            raise ValueError(f"unknown setting {key!r}; {hint}")
    return cls(**{key: convert(key, value, hints[key]) for key, value in values.items()})


def is_short_for(key: str, name: str) -> bool:
    """Whether `key` is part of a setting's name or of its words' initials, as lr is of ``energy_learning_rate``."""
    return key in name or (len(key) > 1 and key in "".join(word[:1] for word in name.split("_")))


def convert(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, numbers of YAML's odd forms (``1e-4`` is a string there) included."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is dict and isinstance(value, dict):
            return dict(value)
        if origin is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(convert(key, item, inner) for item in value)
        if origin is tuple and typing.get_args(option)[0] is str and isinstance(value, str):
            return (value,)  # one name, as in trackers=wandb
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if option is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if option is str and isinstance(value, str):
            return value
        if option is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    form = " A list is written [1, 2]." if any(typing.get_origin(option) is tuple for option in options) else ""
    raise ValueError(f"setting {key!r} must be {_readable(hint)}, got {value!r} ({type(value).__name__}).{form}")


def _readable(hint: Any) -> str:
    return str(hint.__name__ if isinstance(hint, type) else hint).replace("NoneType", "null")


def describe_settings(cls: type[Any], config: str) -> str:
    """Each setting with its default and the comment beside it in the source, one a line.

    Where the shipped `config` says another value, that is told as well.
    """
    chosen = read_yaml(CONFIGS / config)
    comments: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        for name, comment in re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(part), re.MULTILINE):
            comments[name] = comment
    lines = []
    for item in dataclasses.fields(cls):
        default = item.default if item.default is not dataclasses.MISSING else {}
        default = list(default) if isinstance(default, tuple) else default  # as it is written on the command line
        text = f"  {item.name} = {default!r}"
        if item.name in chosen and chosen[item.name] != default:
            text += f"; {Path(config).name}: {chosen[item.name]!r}"
        lines.append(f"{text:<50} {comments[item.name]}" if item.name in comments else text)
    return "\n".join(lines)


def dump_settings(settings: Any, path: Path) -> None:
    """Write all settings, defaults included, as YAML that ``--config`` reads back."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(settings).items()}
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
