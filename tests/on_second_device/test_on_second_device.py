"""Code for GPUs runs on a second device emulated in Python (`second_device.py`), with the CPU's results.

The checks are tests, too (`check_*.py`), run in a process of their own: the device stays known to torch until it ends.
"""

from pathlib import Path

import pytest
import torch.utils.backend_registration
from fresh_process import run_in_fresh_process
from small_runs import ROOT

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot make a device in Python",
)
def test_the_checks_pass(tmp_path):
    checks = sorted(map(str, HERE.glob("check_*.py")))
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inside"), "-q"]
    code = "import os, pytest, sys\nos.chdir(sys.argv[1])\nsys.exit(pytest.main(sys.argv[2:]))"
    run_in_fresh_process(code, str(ROOT), *options, "-o", "python_files=check_*.py", *checks)
