"""``hf-ebm train``: `accelerate launch` on a method's script."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

METHODS = ("ddaebm", "dual_mcmc")


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "train",
        help="start `accelerate launch` on a training script",
        epilog="example: hf-ebm train ddaebm --config ddaebm_digits.yaml max_steps=100",
    )
    parser.add_argument("method", choices=METHODS, help="whose script is started")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="--config FILE key=value ...; --help lists the keys",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Replace this process by `accelerate launch` on the method's script."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if not Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"), "accelerate").is_dir():
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # else it warns
    os.execv(sys.executable, [*launcher, "-m", f"hf_ebm.training.train_{options.method}", *options.arguments])
