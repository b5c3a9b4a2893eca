"""Settings: the file, the command line, and errors that name the key."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field

import pytest
import yaml

from hf_ebm.training import train_ddaebm
from hf_ebm.training.config import (
    CONFIGS,
    dump_settings,
    find_config,
    load_settings,
    make_settings,
    read_yaml,
    shipped_configs,
)

DEFAULT = "ddaebm_digits.yaml"


@dataclass(frozen=True)
class Example:
    rate: float = 0.1
    steps: int = 10
    name: str = "a"
    limit: int | None = None
    flag: bool = False
    weights: float | tuple[float, ...] = 1.0
    models: dict[str, dict] = field(default_factory=dict)


def load(tmp_path, text, *arguments):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_settings(Example, "unused.yaml", ["--config", str(path), *arguments])


def test_a_config_in_a_folder_that_is_not_there_is_no_shipped_one():
    for config in ("ddaebm_digits", "training/configs/ddaebm_digits.yaml"):
        assert find_config(config, DEFAULT).name == "ddaebm_digits.yaml"
    with pytest.raises(ValueError, match="is not a file"):
        find_config("mine/ddaebm_digits.yaml", DEFAULT)


def test_a_shipped_config_of_another_method_is_none_of_the_script():
    with pytest.raises(ValueError, match=r"dual_mcmc_cifar10\.yaml is not a file; .*ddaebm_c"):
        load_settings(train_ddaebm.DDAEBMSettings, DEFAULT, ["--config", "dual_mcmc_cifar10.yaml"])
    with pytest.raises(ValueError, match="unknown setting"):
        load_settings(train_ddaebm.DDAEBMSettings, DEFAULT, ["--config", str(CONFIGS / "dual_mcmc_digits.yaml")])
    assert find_config("dual_mcmc_digits", "dual_mcmc_digits.yaml").name == "dual_mcmc_digits.yaml"


def test_a_config_of_ones_own_may_have_any_name(tmp_path):
    own = tmp_path / "dual_mcmc_digits.yaml"
    own.write_text("max_steps: 3\n")
    assert load_settings(train_ddaebm.DDAEBMSettings, DEFAULT, ["--config", str(own)]).max_steps == 3


def test_the_configs_of_a_script_elsewhere_are_those_beside_its_default(tmp_path):
    for name in ("ddgan_digits", "ddgan_faces", "ddpm_digits"):
        (tmp_path / f"{name}.yaml").write_text("steps: 3\n")
    default = str(tmp_path / "ddgan_digits.yaml")
    assert [path.stem for path in shipped_configs(default)] == ["ddgan_digits", "ddgan_faces"]
    assert find_config("ddgan_faces", default) == tmp_path / "ddgan_faces.yaml"


def test_help_describes_the_settings(capsys):
    train_ddaebm.main(["--help"])
    out = capsys.readouterr().out
    assert "lazy R1: the penalty every k-th step" in out
    assert "ddaebm_cifar10.yaml" in out and "dual_mcmc_digits.yaml" not in out
    assert "max_steps = 2000; ddaebm_digits.yaml: 1200" in out and "padding = 0  " in out
    assert all(field.name in out for field in dataclasses.fields(train_ddaebm.DDAEBMSettings))


def test_help_may_be_read_in_part(monkeypatch):
    """As by ``| head``: the reader of the pipe is gone, and closing stdout at the end is no error either."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        train_ddaebm.main(["--help"])


def test_order_of_precedence_and_types(tmp_path):
    settings = load(
        tmp_path, "rate: 1e-4\nsteps: 5\nmodels: {unet: {a: 1}}", "steps=7", "flag=true", "weights=[1, 2e-3]"
    )
    assert settings == Example(rate=1e-4, steps=7, flag=True, weights=(1.0, 2e-3), models={"unet": {"a": 1}})
    assert load(tmp_path, "limit: 3", "limit=null", "name=7").limit is None


def test_dotted_keys_reach_into_nested_settings(tmp_path):
    settings = load(tmp_path, "models: {unet: {a: 1, b: 2}}", "models.unet.a=5", "models.energy.c=[1]")
    assert settings.models == {"unet": {"a": 5, "b": 2}, "energy": {"c": [1]}}


def test_round_trip(tmp_path):
    settings = Example(weights=(0.5, 0.25), models={"unet": {"a": 1}})
    dump_settings(settings, tmp_path / "s.yaml")
    assert make_settings(Example, read_yaml(tmp_path / "s.yaml")) == settings


def test_the_preset_digits_is_the_small_one():
    settings = make_settings(train_ddaebm.DDAEBMSettings, {"preset": "digits"})
    small = train_ddaebm.make_model_settings(dataclasses.replace(settings, preset="small"))
    assert small == train_ddaebm.make_model_settings(settings)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("rte: 1", [], "unknown setting 'rte'; did you mean rate"),
        ("rate: 1", ["zzz=1"], "unknown setting 'zzz'; --help lists the keys"),
        ("rate: 1", ["weigth=1"], r"did you mean weights\?"),
        ("steps: 1.5", [], "'steps' must be int"),
        ("steps: true", [], "'steps' must be int"),
        ("rate: fast", [], "'rate' must be float"),
        ("flag: 1", [], "'flag' must be bool"),
        ("weights: [a]", [], "'weights' must be float"),
        ("- 1", [], "key: value"),
        ("a: [", [], "not valid YAML"),
        ("", [], "key: value"),
        ("rate: 1", ["steps"], "key=value"),
        ("rate: 1", ["--config"], "--config needs a file name"),
        ("steps: .inf", [], "'steps' must be int"),
        ("limit: true", [], r"'limit' must be int \| null, got True"),
        ("rate: 1", ["--steps", "10"], r"key=value, got '--steps'; did you mean steps\?"),
        ("rate: 1", ["--zzz", "10"], r"got '--zzz'; --help lists the keys"),
    ],
)
def test_mistakes_name_the_key(tmp_path, text, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text, *arguments)


def test_missing_config_lists_the_shipped_ones():
    with pytest.raises(ValueError, match="ddaebm_digits") as end:
        load_settings(Example, DEFAULT, ["--config", "nothing.yaml"])
    assert "dual_mcmc" not in str(end.value)


def test_what_a_misspelt_config_may_mean():
    with pytest.raises(ValueError, match=r"ddaebm_digts\.yaml is not a file; did you mean ddaebm_digits.*\?$"):
        load_settings(train_ddaebm.DDAEBMSettings, DEFAULT, ["--config", "ddaebm_digts.yaml"])


@pytest.mark.parametrize(
    ("name", "epochs", "num_images", "batch_size"),
    [("cifar10", 1300, 50_000, 64), ("celeba64", 600, 162_770, 32), ("lsun128", 500, 120_000, 12)],
)
def test_published_epochs_are_steps_of_four_processes(name, epochs, num_images, batch_size):
    settings = read_yaml(CONFIGS / f"ddaebm_{name}.yaml")
    assert settings["batch_size"] == batch_size
    assert settings["max_steps"] == pytest.approx(epochs * num_images / (4 * batch_size), rel=1e-3)
    if name == "celeba64":
        left, top, right, bottom = settings["crop_box"]
        assert (left, top, right - left, bottom - top) == (15, 40, 148, 148)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("ddaebm_*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_builds(config):
    import torch

    from hf_ebm.models.presets import build_ddaebm_models
    from hf_ebm.training.train_ddaebm import DDAEBMSettings, make_model_settings

    settings = make_settings(DDAEBMSettings, yaml.safe_load(config.read_text()))
    with torch.device("meta"):
        build_ddaebm_models(make_model_settings(settings))
    assert settings.output_dir == f"outputs/{config.stem.replace('_', '-')}"


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        (
            "ddaebm",
            {"generator": {"image_size": 32}},
            r"image_size must be .* 32 of the generator, 8 of .*unet\.image_",
        ),
        ("ddaebm", {"inference": {"num_channels": 3}}, r"3 of the inference; set models\.unet\.num_channels"),
        (
            "dual_mcmc",
            {"energy": {"image_size": 32}},
            r"8 of the generator, 32 of the energy, .*models\.data\.image_size",
        ),
    ],
)
def test_a_size_of_only_one_network_is_an_error(method, overrides, message):
    from hf_ebm.models.dual_mcmc_presets import dual_mcmc_model_settings
    from hf_ebm.models.presets import ddaebm_model_settings

    make = {"ddaebm": ddaebm_model_settings, "dual_mcmc": dual_mcmc_model_settings}[method]
    with pytest.raises(ValueError, match=message):
        make("digits", overrides=overrides)
    everywhere = {part: next(iter(overrides.values())) for part in ("generator", "energy", "inference")}
    assert make("digits", overrides=everywhere)["network"] in ("unet", "resnet")


def test_no_is_a_word_and_true_and_false_are_booleans(tmp_path):
    """YAML 1.1 reads ``no`` as false; it is a value of mixed_precision."""
    config = tmp_path / "config.yaml"
    config.write_text("mixed_precision: no\nchannels_last: True\nhorizontal_flip: false\n")
    settings = load_settings(train_ddaebm.DDAEBMSettings, "ddaebm_digits.yaml", ["--config", str(config)])
    assert (settings.mixed_precision, settings.channels_last, settings.horizontal_flip) == ("no", True, False)
    settings = load_settings(
        train_ddaebm.DDAEBMSettings, "ddaebm_digits.yaml", ["mixed_precision=no", "channels_last=false"]
    )
    assert settings.mixed_precision == "no" and settings.channels_last is False
    dump_settings(settings, config)
    assert load_settings(train_ddaebm.DDAEBMSettings, "ddaebm_digits.yaml", ["--config", str(config)]) == settings
    with pytest.raises(ValueError, match="channels_last"):
        load_settings(train_ddaebm.DDAEBMSettings, "ddaebm_digits.yaml", ["channels_last=no"])


def test_a_value_that_is_no_yaml_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="setting 'timestep_weights' is not valid YAML"):
        load_settings(train_ddaebm.DDAEBMSettings, "ddaebm_digits.yaml", ["timestep_weights=[1,2"])
