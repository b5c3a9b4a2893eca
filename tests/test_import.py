"""Importing is quick, the command line does not import torch, and nothing imports the top-level folders."""

import subprocess
import sys

import pytest

import hf_ebm

HEAVY = {"torch", "transformers", "diffusers", "datasets", "accelerate", "numpy", "sklearn", "matplotlib"}


def modules_after(code):
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    command = f"{code}\nimport sys; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    return {name.split(".")[0] for name in out.splitlines()[-1].split()}


def test_import_loads_nothing_heavy():
    assert not HEAVY & modules_after("import hf_ebm; dir(hf_ebm)")


def test_help_loads_nothing_heavy():
    code = "import hf_ebm.cli.main as c\ntry: c.main(['--help'])\nexcept SystemExit: pass"
    assert not HEAVY & modules_after(code)


@pytest.mark.parametrize("command", ["score", "reconstruct"])
def test_a_missing_file_is_an_error_before_heavy_imports(command):
    code = f"import hf_ebm.cli.main as c\ntry: c.main([{command!r}, '--model', 'm', 'nowhere.png'])"
    assert not (HEAVY - {"numpy"}) & modules_after(f"{code}\nexcept SystemExit as end: assert end.code == 2")


@pytest.mark.parametrize("name", [n for n in hf_ebm.__all__ if n != "__version__"])
def test_every_export_is_there(name):
    assert getattr(hf_ebm, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError, match="DDAEMBPipeline"):
        _ = hf_ebm.DDAEMBPipeline


@pytest.mark.parametrize("name", ["pipelines", "training", "model_cards"])
def test_top_level_folders_are_the_subpackages(name):
    """hf_ebm/<name> is a link to <name>: one set of files, imported as hf_ebm.<name> only."""
    from pathlib import Path

    root = Path(hf_ebm.__file__).parents[1]
    link = root / "hf_ebm" / name
    assert link.is_symlink() and link.resolve() == root / name
    users = [p for p in root.rglob("*.py") if ".venv" not in p.parts and not link.is_relative_to(p)]
    for path in users:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.strip().startswith((f"import {name}", f"from {name}")), f"{path}: {line}"
