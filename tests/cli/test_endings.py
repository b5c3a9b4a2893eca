"""How commands fail: one line that names what to change, and an exit code."""

import re
import sys

import PIL.Image
import pytest

from hf_ebm.cli.main import main
from hf_ebm.utils.logging import exit_code


def test_exit_codes():
    assert exit_code(ValueError("x")) == exit_code(FileNotFoundError(2, "x")) == exit_code(OSError("no repo")) == 2
    assert exit_code(OSError(28, "No space left on device")) == exit_code(ImportError("no matplotlib")) == 1
    assert exit_code(ConnectionError("the Hub cannot be reached")) == 1


MODEL, SET = ["--model", "FOLDER"], ["--dataset", "digits"]
BAD_SEEDS = [
    ["sample", *MODEL, "--seed", "99999999999999999999"],
    ["sample", *MODEL, "--seed", "-1"],
    ["sample", *MODEL, "--seed", "1.5"],
    ["reconstruct", "--model", "DUAL", "PICTURE", "--seed", "99999999999999999999"],
    ["calibrate", *MODEL, *SET, "--seed", "4294967296"],
    ["eval-ood", *MODEL, "--id", "digits", "--seed", "4294967296"],
    ["evaluate", *MODEL, *SET, "--seed", "4294967296"],
    ["likelihood", *MODEL, *SET, "--seed", "4294967296"],
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--base", "none"], "--base: invalid choice"),
        (["likelihood", "--model", "FOLDER", "--dataset", "25gaussians"], "2-D points"),
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--num-conditionals", "-1"], "--num-conditionals"),
        (["sample", "--model", "FOLDER", "--num-images", "0"], "--num-images"),
        (["sample", "--model", "FOLDER", "--num-inference-steps", "3"], "num_inference_steps must be 4"),
        (["sample", "--model", "DUAL", "--num-inference-steps", "-1"], "num_inference_steps must be a whole"),
        (["calibrate", "--model", "user/name", "--dataset", "digits"], "--model must be a run folder"),
        (["calibrate", "--model", ".", "--dataset", "digits"], "model_index.json"),
        (["calibrate", "--model", "FOLDER", "--dataset", "digits", "--num-images", "0"], "--num-images"),
        (["calibrate", "--model", "DUAL", "--dataset", "digits", "--score", "multiscale"], "--score: this model"),
        (["calibrate", "--model", "FOLDER", "--dataset", "digits", "--target-fpr", "0.001"], "at least 999"),
        (
            ["calibrate", "--model", "FOLDER", "--dataset", "digits", "--target-fpr", "5"],
            "--target-fpr must be between",
        ),
        (["score", "--model", "FOLDER", "no-such-file.png"], "no-such-file.png"),
        (["score", "--model", "FOLDER", "--score", "nll", "a.png"], "--score: invalid choice"),
        (["sample", "--model", "no-such-folder/a/b"], "no-such-folder"),
        (["eval-ood", "--model", "DUAL", "--id", "digits", "--scores", "multiscale"], "'multiscale'"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--max-images", "2"], "max_images"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--resamples", "0"], "--resamples"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--output", "PICTURE"], "--output must be a folder"),
        (["evaluate", "--model", "FOLDER", "--dataset", "digits", "--output", "PICTURE"], "--output must be a folder"),
        (["evaluate", "--model", "FOLDER", "--dataset", "digits", "--num-images", "2"], "num_images"),
        (["evaluate", "--model", "FOLDER", "--dataset", "a/b/c", "--feature-extractor", "digits"], "a/b/c"),
        (["evaluate", "--model", "FOLDER", "--dataset", "a/b/c"], "a/b/c"),  # and not what its extractor would need
        (["evaluate", "--model", "FOLDER", "--dataset", "digits", "--feature-extractor", "no/such/x"], "no/such/x"),
        (["reconstruct", "--model", "FOLDER", "PICTURE"], "does not reconstruct"),
        (["reconstruct", "--model", "FOLDER", "a.png", "--output", "a.txt"], "--output"),
        (["reconstruct", "--model", "FOLDER", "a/1.png", "b/1.png", "--output", "o"], "overwrite each other"),
        (["info", "--model", "."], "model_index.json"),
        *((arguments, "--seed: the seed must be a whole number from 0 to 2**") for arguments in BAD_SEEDS),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(folder, dual_folder, tmp_path, capsys, arguments, message):
    picture = str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8)).save(picture)
    with pytest.raises(SystemExit) as error:
        places = {"FOLDER": folder, "DUAL": dual_folder, "PICTURE": picture}
        main([places.get(argument, argument) for argument in arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hf_ebm.evaluation.samples", None)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--model", "m", "--dataset", "digits"])
    assert end.value.code == 1 and "pip install '.[train,eval]' in a clone of hf-ebm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--model", "FOLDER"],
        ["score", "--model", "FOLDER", "PICTURE"],
        ["score", "--model", "FOLDER", "--dataset", "digits", "--output", "OUTPUT"],
        ["calibrate", "--model", "FOLDER", "--dataset", "digits"],
        ["eval-ood", "--model", "FOLDER", "--id", "digits"],
        ["evaluate", "--model", "FOLDER", "--dataset", "digits"],
        ["reconstruct", "--model", "FOLDER", "PICTURE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_model_is_moved_to_the_device_if_it_is_here(folder, arguments, tmp_path, capsys, monkeypatch):
    from diffusers import DiffusionPipeline

    def move(pipeline, device):
        raise OSError(f"moved to {device}")

    picture = tmp_path / "a.png"
    PIL.Image.new("L", (8, 8)).save(picture)
    monkeypatch.setattr(DiffusionPipeline, "to", move)
    known = {"FOLDER": folder, "PICTURE": str(picture), "OUTPUT": str(tmp_path / "out")}
    arguments = [known.get(argument, argument) for argument in arguments]
    for device, message in (
        ("cpu:0", "moved to cpu:0"),
        ("gpu", "--device must be one that is available here, got 'gpu'"),
        ("meta", "--device must be one that is available here, got 'meta'"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--device", device])
        assert end.value.code == 2 and re.search(message, capsys.readouterr().err.splitlines()[-1])


def run_with(monkeypatch, error, *arguments):
    """`hf-ebm sample` whose loading ends with what `error`, code, raises."""
    scope = {"__name__": "hf_ebm.somewhere" if error.startswith("our") else "library"}
    exec(f"def load(*_): raise {error.removeprefix('our ')}", scope)
    monkeypatch.setattr("hf_ebm.cli.sample.load_image_generator", scope["load"])
    main([*arguments, "sample", "--model", "m"])


@pytest.mark.parametrize(
    ("error", "code"),
    [("our ValueError('no')", 2), ("OSError('no')", 2), ("ConnectionError('no')", 1), ("ImportError('no')", 1)],
)
def test_debug_shows_the_traceback_of_an_error_that_is_otherwise_one_line(monkeypatch, capsys, error, code):
    with pytest.raises(SystemExit) as end:
        run_with(monkeypatch, error)
    assert end.value.code == code and capsys.readouterr().err == "hf-ebm: error: no\n"
    with pytest.raises((ValueError, OSError, ImportError), match=r"^no$"):
        run_with(monkeypatch, error, "--debug")


@pytest.mark.parametrize("error", ["TypeError('no')", "our AttributeError('no')", "ValueError('no')"])
def test_a_bug_shows_its_traceback(monkeypatch, error):
    with pytest.raises((TypeError, AttributeError, ValueError), match=r"^no$"):
        run_with(monkeypatch, error)


def test_ctrl_c_ends_a_command_with_one_line(folder, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ebm.cli.sample.load_image_generator", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["sample", "--model", folder])
    assert end.value.code == 130 and capsys.readouterr().err.endswith("hf-ebm: stopped by the user.\n")
