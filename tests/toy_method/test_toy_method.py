"""A third method is its own files and its lines in the table of exports: a copy of the package with these, and no more.

The method is denoising score matching on 2-D data. What users do with it is in ``check_dsm.py``, tests that run in a
process of their own, in which the copy is the package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "pytest", *options, "-o", "python_files=check_*.py", str(HERE / "check_dsm.py")]
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
