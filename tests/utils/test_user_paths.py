"""A leading ~ is the home folder in every setting, option and call, and no folder named ~ is created."""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_ebm import DDAEBMPipeline, EnergyScoringPipeline
from hf_ebm.cli.main import main, make_parser
from hf_ebm.data.image_files import open_image
from hf_ebm.data.loading import DatasetName, load_training_data
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.training.config import find_config, load_settings
from hf_ebm.training.train_ddaebm import DDAEBMSettings
from hf_ebm.training.train_dual_mcmc import DualMCMCSettings
from hf_ebm.utils.files import expand_home

# what an option that is no path holds: the name of a repository, of a score, ...
NO_PATHS = {
    "--seed",
    "--license",
    "--license-name",
    *("--split", "--config-name", "--revision", "--image-column", "--id-column", "--score", "--scores", "--metrics"),
    *("--device", "--repo-id", "--branch", "--message", "--space", "--host", "--on-error", "--base", "--reverse-from"),
    *("method", "arguments", "--ood", "--class", "--data"),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


def test_paths_with_and_without_a_home(home):
    assert (
        expand_home("~/x") == f"{home}/x" and expand_home(Path("~/x")) == home / "x" and expand_home("~") == str(home)
    )
    for path in ("x/~", "./~", "/a/~/b", "user/name", "https://a/~b", ""):
        assert expand_home(path) == path
    with pytest.raises(ValueError, match="'~no-such-user/x' starts with ~no-such-user, and there is no home folder"):
        expand_home("~no-such-user/x")


def test_a_file_whose_name_starts_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~backup.png").touch()
    assert expand_home("~backup.png") == "~backup.png"


@pytest.mark.parametrize("cls", [DDAEBMSettings, DualMCMCSettings])
def test_settings(home, cls):
    settings = cls(output_dir="~/run", dataset="~/images", resume="~/run/checkpoints/step_00000001")
    assert settings.output_dir == f"{home}/run" and settings.dataset == f"{home}/images"
    assert settings.resume == f"{home}/run/checkpoints/step_00000001"
    for dataset in ("", " "):
        with pytest.raises(ValueError, match="dataset must be the name of a data set or a folder, got"):
            cls(dataset=dataset)


def test_config_files(home):
    (home / "mine.yaml").write_text("max_steps: 7\n")
    assert find_config("~/mine.yaml", "ddaebm_digits.yaml") == home / "mine.yaml"
    assert load_settings(DDAEBMSettings, "ddaebm_digits.yaml", ["--config", "~/mine.yaml"]).max_steps == 7


def options_of_commands():
    (commands,) = make_parser()._subparsers._group_actions
    for name, parser in commands.choices.items():
        for action in parser._actions:
            takes_text = action.nargs != 0 and action.type not in (int, float)
            option = action.option_strings[0] if action.option_strings else action.dest
            if takes_text and option not in NO_PATHS and (name, option) != ("push-space", "--model"):
                yield name, option, action.type


def test_options(home):
    """Every option that takes text expands ~, or is listed here as no path."""
    found = list(options_of_commands())
    assert {"--model", "--dataset", "--output", "--id", "images"} <= {option for _, option, _ in found}
    for command, option, kind in found:
        assert kind is not None and str(kind("~/x")) == f"{home}/x", (command, option)
        with pytest.raises(argparse.ArgumentTypeError, match="must not be empty"):
            kind("")


def test_calls_from_python(home, tiny_pipeline):
    tiny_pipeline.save_pretrained("~/model")
    assert (home / "model" / "model_index.json").is_file()
    assert DDAEBMPipeline.from_pretrained("~/model").name_or_path == str(home / "model")
    scorer = EnergyScoringPipeline.from_pretrained(Path("~/model"))
    scorer.set_progress_bar_config(disable=True)
    energy = type(scorer.energy_model).from_pretrained("~/model/energy_model")
    assert energy.sample_shape == (1, 8, 8)

    (home / "images").mkdir()
    for number in range(9):
        PIL.Image.fromarray(np.full((8, 8), number * 20, np.uint8)).save(home / "images" / f"{number}.png")
    assert len(load_training_data("~/images", (1, 8, 8))) == 9
    assert DatasetName.parse("~/images@train") == DatasetName(f"{home}/images", None, "train")
    assert open_image("~/images/0.png").size == (8, 8)
    scorer.calibrate([f"~/images/{number}.png" for number in range(9)], target_fpr=0.1).save("~/model")
    assert Calibration.load("~/model").num_samples == 9


def test_commands(home, tiny_pipeline):
    tiny_pipeline.save_pretrained(home / "model")
    (home / "images").mkdir()
    PIL.Image.fromarray(np.full((8, 8), 20, np.uint8)).save(home / "images" / "0.png")
    main(["score", "--model", "~/model", "--dataset", "~/images", "--output", "~/scores"])
    assert (home / "scores" / "summary.json").is_file()
    main(["sample", "--model", "~/model", "--num-images", "1", "--output", "~/samples.png"])
    assert (home / "samples.png").is_file()
    main(["score", "--model", "~/model", "~/images/0.png"])
