"""Output paths that cannot be written are errors before the work, and leave no partial file."""

import contextlib
import errno
import io
import json
import os
import resource
import sys
from pathlib import Path

import PIL.Image
import pytest

from hf_ebm.cli.main import main

COMMANDS = {
    "sample": ["sample", "--model", "MODEL", "--num-images", "36", "--output", "OUTPUT.png"],
    "reconstruct": ["reconstruct", "--model", "DUAL", "PICTURE", "--output", "OUTPUT"],
    "evaluate": ["evaluate", "--model", "MODEL", "--dataset", "digits", "--num-images", "50", "--output", "OUTPUT"],
    "eval-ood": ["eval-ood", "--model", "MODEL", "--id", "digits", "--ood", "noise", "--max-images", "60",
                 "--no-baselines", "--scores", "energy", "--resamples", "2", "--output", "OUTPUT"],
    "score": ["score", "--model", "MODEL", "--dataset", "digits", "--output", "OUTPUT"],
    "calibrate": ["calibrate", "--model", "MODEL", "--dataset", "digits", "--num-images", "100"],
}  # fmt: skip
all_commands = pytest.mark.parametrize("command", sorted(COMMANDS))
with_output = pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"calibrate"}))


@pytest.fixture
def ended(folder, dual_folder, tmp_path, capsys, monkeypatch):
    """Run a command with an output; it returns its exit code and the last line of its errors."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def run(command, output):
        known = {"MODEL": folder, "DUAL": dual_folder, "PICTURE": str(tmp_path / "a.png")}
        arguments = [known.get(argument, argument.replace("OUTPUT", str(output))) for argument in COMMANDS[command]]
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return end.value.code, capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def no_work(monkeypatch):
    """No model is loaded: the output is checked before."""
    from diffusers import DiffusionPipeline

    def load(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)


def files(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@with_output
def test_an_output_whose_parent_is_a_file(ended, no_work, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    code, said = ended(command, tmp_path / "file" / "x" / "out")
    assert code == 2 and f"output {tmp_path}/file/x/out" in said and f"{tmp_path}/file is a file" in said
    assert files(tmp_path) == before


@with_output
def test_an_output_of_the_other_kind(ended, no_work, tmp_path, command):
    (tmp_path / "out").write_text("mine")
    (tmp_path / "out.png").mkdir()
    before = files(tmp_path)
    code, said = ended(command, tmp_path / "out")
    assert code == 2 and "output" in said
    assert "must be a file, and" in said if command == "sample" else "must be a folder, and" in said
    assert files(tmp_path) == before


@pytest.mark.parametrize(("command", "name"), [("sample", "out.png"), ("reconstruct", "out/a.png")])
def test_a_file_of_the_users_is_not_overwritten(ended, folder, dual_folder, no_work, tmp_path, command, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    code, said = ended(command, tmp_path / "out")
    assert (
        code == 2
        and said == f"hf-ebm: error: --output: {path} exists; add --overwrite to replace it, or choose another."
    )
    assert path.read_text() == "mine"


def test_overwrite_replaces_it(folder, tmp_path):
    (tmp_path / "a.png").write_text("mine")
    main(["sample", "--model", folder, "--num-images", "1", "--output", str(tmp_path / "a.png"), "--overwrite"])
    assert PIL.Image.open(tmp_path / "a.png").size == (72, 72)


@with_output
def test_an_output_under_a_link_to_nothing(ended, no_work, tmp_path, command):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    code, said = ended(command, tmp_path / "link" / "out")
    assert code == 2 and f"{tmp_path}/link is a link to nothing; remove it" in said
    assert not (tmp_path / "gone").exists()


@all_commands
@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_an_output_that_the_system_refuses(ended, no_work, tmp_path, command, reason, monkeypatch):
    def refuse(dir):
        raise OSError(reason, os.strerror(reason), f"{dir}/tmp1")

    monkeypatch.setattr("hf_ebm.utils.files.TemporaryFile", refuse)
    before = files(tmp_path)
    code, said = ended(command, tmp_path / "new" / "out")
    assert code == 2 and f"cannot be written: {os.strerror(reason)}" in said and said.startswith("hf-ebm: error: ")
    assert files(tmp_path) == before


@contextlib.contextmanager
def full_disk():
    """Inside, no file can hold more than a byte, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@all_commands
def test_a_disk_that_fills_up_leaves_no_part_of_a_file(ended, folder, tmp_path, command):
    output = tmp_path / "new" / "out"
    with full_disk():
        code, said = ended(command, output)
    written = Path(folder) / "calibration.safetensors" if command == "calibrate" else output
    assert code == 1 and said.startswith(f"hf-ebm: error: {written}") and "cannot be written: File too large" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "tmp" in path.name.split(".")]
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file() and path.stat().st_size]


def test_records_of_one_evaluation_are_replaced_together(ended, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hf_ebm.evaluation.plots.plot_score_histograms", fail)
    output = tmp_path / "out"
    output.mkdir()
    for name in ("ood.json", "roc.png", "histograms.png"):
        (output / name).write_text("old")
    code, said = ended("eval-ood", output)
    assert code == 1 and said == f"hf-ebm: error: {output}/histograms.png cannot be written: No space left on device"
    assert set(files(output).values()) == {b"old"} and len(files(output)) == 3


@pytest.mark.parametrize("name", ["a.psd", "a.txt", "a"])
def test_an_image_format_that_is_only_read_is_refused(folder, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as end:
        main(["sample", "--model", folder, "--output", str(tmp_path / name)])
    assert end.value.code == 2 and "--output must end in .png or another image format" in capsys.readouterr().err


class Output(io.TextIOWrapper):
    """A standard output that takes nothing."""

    def __init__(self, reason, number):
        self.reason, self.number = reason, number
        super().__init__(io.BytesIO())

    def flush(self):
        raise OSError(self.reason, os.strerror(self.reason))

    def fileno(self):
        return self.number


@pytest.mark.parametrize(("reason", "code"), [(errno.ENOSPC, 1), (errno.EPIPE, 0)])
def test_a_standard_output_that_takes_no_more(folder, tmp_path, capsys, monkeypatch, reason, code):
    """A full disk is one line; a pipe whose reader has ended (`| head`) is no error."""
    number = os.open(tmp_path / "output", os.O_CREAT | os.O_WRONLY)  # main redirects it
    monkeypatch.setattr(sys, "stdout", Output(reason, number))
    try:
        main(["info", "--model", folder])
        ended = 0
    except SystemExit as end:
        ended = end.code
    assert ended == code
    said = capsys.readouterr().err
    assert ("hf-ebm: error: the standard output cannot be written: No space left" in said) == (code == 1)


def test_json_of_an_evaluation_is_whole(folder, tmp_path):
    output = tmp_path / "missing" / "parents"
    main(["evaluate", "--model", folder, "--dataset", "digits", "--num-images", "50", "--output", str(output)])
    assert json.loads((output / "evaluate.json").read_text())["metrics"]
