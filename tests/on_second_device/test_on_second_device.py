"""Code for GPUs runs on a second device emulated in Python (`second_device.py`), with the CPU's results.

The checks are tests, too (`check_*.py`), run in a process of their own: the device stays known to torch until it ends.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration
from small_runs import ROOT

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot make a device in Python",
)
def test_the_checks_pass(tmp_path):
    checks = sorted(map(str, HERE.glob("check_*.py")))
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inside"), "-q"]
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, "-o", "python_files=check_*.py", *checks]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
