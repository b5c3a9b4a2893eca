"""Code for GPUs runs on a second device emulated in Python (`second_device.py`), with the CPU's results.

The checks are tests, too (`check_*.py`), run in a process of their own: the device stays known to torch until it ends.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration
from small_runs import ROOT, SCRIPTS, Script

import hf_ebm

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot make a device in Python",
)


def run_python(*arguments, **environment):
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.mark.parametrize("path", sorted(HERE.glob("check_*.py")), ids=lambda path: path.stem)
def test_the_checks_pass(path, tmp_path):
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inside"), "-q"]
    run_python("-m", "pytest", *options, "-o", "python_files=check_*.py", str(path))


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_training_there_has_the_losses_of_the_cpu(tmp_path, name):
    """A step, a checkpoint, and two more after a start from it: samples, averages, the pipeline that is left behind."""
    script = Script(name)
    program = tmp_path / "train.py"
    program.write_text(
        f"import sys, second_device\nimport hf_ebm.training.train_{name} as script\n"
        "for changes in (['max_runtime_seconds=0.001'], ['resume=latest']):\n    script.main(sys.argv[1:] + changes)\n"
    )
    settings = {"max_steps": 3, "sample_every": 2, "checkpoint_every": 2}
    config = script.config_file(tmp_path, **settings)
    arguments = [str(program), "--config", config, f"output_dir={tmp_path / 'there'}"]
    run_python(*arguments, ACCELERATE_TORCH_DEVICE="second")
    here, there = read_losses(script.train(tmp_path / "cpu", **settings)), read_losses(tmp_path / "there")
    assert len(here) == len(there) == 3
    for expected, found in zip(here, there, strict=True):  # an optimizer's first steps enlarge what rounding does
        assert found == pytest.approx(expected, rel=0.1, abs=0.02)
    pipeline = getattr(hf_ebm, script.pipeline).from_pretrained(tmp_path / "there")
    assert len(pipeline(2).images) == 2
