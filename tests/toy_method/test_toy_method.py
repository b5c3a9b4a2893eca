"""A third method is its own files and its lines in the table of exports: a copy of the package with these, and no more.

The method is denoising score matching on 2-D data. What users do with it is in ``check_dsm.py``, tests that run in a
process of their own, in which the copy is the package.
"""

import os
import shutil
from pathlib import Path

import pytest
from fresh_process import run_in_fresh_process
from small_runs import ROOT

HERE = Path(__file__).parent
FOLDERS = ("hf_ebm", "pipelines", "training", "model_cards")
EXPORTS = {"DSMEnergyModel": "hf_ebm.models.dsm_energy", "DSMPipeline": "hf_ebm.pipelines.pipeline_dsm"}


@pytest.fixture
def copy(tmp_path):
    """The package with the method's files added and one line for each of its classes."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, symlinks=True, ignore=ignored)
        for path in (HERE / name).rglob("*"):
            target = tmp_path / "copy" / path.relative_to(HERE)
            if path.is_file() and "__pycache__" not in path.parts:
                assert not target.exists() and target.parent.is_dir()
                shutil.copyfile(path, target)
    table = tmp_path / "copy" / "hf_ebm" / "__init__.py"
    lines = table.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("EXPORTS = {")) + 1
    lines[start:start] = [f'    "{name}": "{module}",\n' for name, module in EXPORTS.items()]
    table.write_text("".join(lines))
    return tmp_path / "copy"


def test_a_third_method_needs_no_change_elsewhere(copy, tmp_path):
    options = ["-q", "--show-capture=no", "-p", "no:xdist", "-p", "no:cacheprovider"]
    options += ["--basetemp", str(tmp_path / "inside")]
    paths = os.pathsep.join([str(copy), str(ROOT / "tests")])
    options += ["-o", "python_files=check_*.py", str(HERE / "check_dsm.py")]
    code = "import os, pytest, sys\nos.chdir(sys.argv[1])\nsys.path.insert(0, sys.argv[1])\n"
    code += "import hf_ebm\nassert hf_ebm.__file__.startswith(sys.argv[1])\nsys.exit(pytest.main(sys.argv[2:]))"
    run_in_fresh_process(code, str(copy), *options, PYTHONPATH=paths, ACCELERATE_USE_CPU="true")
