"""hf-ebm train starts the method's script and forwards its message and exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_ebm.cli.main import main


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (130, 130), (-2, 130), (-15, 130), (1, 1), (-9, 1), (3, 1)])
@pytest.mark.parametrize("number", [1, 2])
def test_train_ends_with_2_for_a_mistake_130_for_ctrl_c_and_1_for_all_else(monkeypatch, capsys, number, code, expected):
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(options):
        assert options.training_script == "hf_ebm.training.train_ddaebm" and options.training_script_args == ["a=1"]
        if number == 1:
            raise subprocess.CalledProcessError(code, "python")
        raise ChildFailedError("python", {rank: ProcessFailure(rank, 1, code, "no file") for rank in range(number)})

    monkeypatch.setattr(launch, "launch_command", fail)
    with pytest.raises(SystemExit) as end:
        main(["train", "ddaebm", "a=1"])
    assert end.value.code == expected
    said = "hf-ebm: stopped by the user.\n" if code in (-2, -15) else ""  # else the script has said what it was
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            130,
            "hf-ebm: restart the demo with make demo; resume it with "
            "bin/python -m hf_ebm.training.demo ddaebm resume=latest max_steps=1\n",
        ),
        (2, ""),
    ],
)
def test_the_demo_exits_with_the_scripts_code_and_prints_how_to_resume(monkeypatch, tmp_path, capsys, code, said):
    from accelerate.commands import launch

    from hf_ebm.training import demo

    def stop(options):
        assert options.training_script_args[-1] == "max_steps=1"
        raise subprocess.CalledProcessError(code, "python")

    monkeypatch.setattr(launch, "launch_command", stop)
    monkeypatch.chdir(tmp_path)
    for python, named in ((tmp_path / "bin" / "python", "bin/python"), (Path("/elsewhere/python3"), "python")):
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(SystemExit) as end:
            demo.main(["max_steps=1"])
        assert end.value.code == code and capsys.readouterr() == ("", said.replace("bin/python", named))


def test_a_demo_made_again_keeps_the_earlier_run(monkeypatch, tmp_path, capsys):
    from hf_ebm.training import demo, digits_demo

    folder, code = tmp_path / "run", 130

    def stop(method, launcher, arguments):
        assert not any("overwrite" in argument for argument in arguments)
        if code == 130:
            folder.mkdir()
            (folder / "settings.yaml").write_text("new")
        return code

    monkeypatch.setattr(digits_demo, "launch", stop)
    folder.mkdir()
    (folder / "settings.yaml").write_text("old")
    (folder / "model_index.json").write_text("{}")  # it has ended
    (tmp_path / "run-1").mkdir()  # somebody's
    with pytest.raises(SystemExit):
        demo.main([f"output_dir={folder}"])
    assert (tmp_path / "run-2" / "settings.yaml").read_text() == "old" and not any((tmp_path / "run-1").iterdir())
    kept = f"the earlier run of {folder} is kept in {tmp_path / 'run-2'}\n"
    printed = capsys.readouterr()
    assert printed.out == kept and f"use the earlier run in {tmp_path / 'run-2'}\n" in printed.err
    with pytest.raises(SystemExit):
        demo.main([f"output_dir={folder}"])
    assert not (tmp_path / "run-3" / "model_index.json").exists()  # the one that was interrupted has no model
    assert f"use the earlier run in {tmp_path / 'run-2'}\n" in capsys.readouterr().err
    code = 2  # a mistake in the settings: the training did not start
    with pytest.raises(SystemExit):
        demo.main([f"output_dir={folder}"])
    assert (folder / "settings.yaml").read_text() == "new" and not (tmp_path / "run-4").exists()
    kept = f"the earlier run of {folder} is kept in {tmp_path / 'run-4'}\n"
    assert capsys.readouterr() == (f"{kept}the training did not start: {tmp_path / 'run-4'} is {folder} again\n", "")
    (tmp_path / "run-2" / "model_index.json").unlink()
    code = 130
    with pytest.raises(SystemExit):
        demo.main([f"output_dir={folder}"])
    assert "use the earlier run" not in capsys.readouterr().err  # none has ended


def test_ctrl_c_ends_the_demo_with_one_line_also_while_it_imports(monkeypatch, capsys):
    import importlib.abc

    from hf_ebm.training import demo

    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "hf_ebm.training.digits_demo":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "hf_ebm.training.digits_demo", raising=False)
    monkeypatch.delattr("hf_ebm.training.digits_demo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        demo.main([])
    assert end.value.code == 130 and capsys.readouterr() == ("", "hf-ebm: stopped by the user.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_step=3"], "did you mean max_steps"),
        (["max_steps=abc"], "'max_steps' must be int, got 'abc'"),
        (["--config", "nope.yaml"], "--config nope.yaml is not a file"),
        (["models.energy.size=3"], "has no setting 'size'; see its docstring"),
        (["models.unet.image_sise=3"], "UNetEnergyConfig has no setting 'image_sise'; did you mean image_size?"),
        (
            ["models.generator.latent_dims=3"],
            "GeneratorModel has no setting 'latent_dims'; did you mean latent_dim",
        ),
        (["models.inference.latnet=3"], "PairInferenceModel has no setting 'latnet'; did you mean latent_dim"),
        (["dataset=no/such/set"], "dataset 'no/such/set'"),
        ([f"dataset={__file__}"], "is a file; give a folder of parquet or image files, or a Hub id"),
        (["dataset=/no/images"], "dataset '/no/images' (split 'train') cannot be loaded"),
    ],
)
def test_a_mistake_in_the_settings_ends_a_training_script_with_one_line_and_code_2(
    arguments, message, tmp_path, capsys, monkeypatch
):
    from hf_ebm.training import train_ddaebm

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as end:
        train_ddaebm.main([*arguments, f"output_dir={tmp_path / 'run'}"])
    assert end.value.code == 2 and not (tmp_path / "run" / "settings.yaml").exists()
    printed = capsys.readouterr().err
    assert printed.startswith("hf-ebm: error: ") and message in printed and "Traceback" not in printed
