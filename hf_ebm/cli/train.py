"""``hf-ebm train``: run `accelerate launch` on a method's training script."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_ebm.training import METHODS


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "train",
        help="start `accelerate launch` on a training script",
        description="Start `accelerate launch` on the training script of a method.",
        epilog="example: hf-ebm train ddaebm --config ddaebm_digits.yaml max_steps=100",
    )
    parser.add_argument("method", choices=METHODS, help="the method to train")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="--config FILE key=value ...; --help lists the keys",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """`accelerate launch` on the method's script, as configured by `accelerate config`, or else on all GPUs.

    If the script fails, this process exits with its code if that is 2 or 130, else with 1.
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file

    from hf_ebm.training.launch import launch

    launcher = []
    if not Path(default_config_file).is_file():  # the launcher's defaults, which it would warn about
        number = max(1, torch.accelerator.device_count())
        launcher += ["--num_processes", str(number), "--num_machines", "1", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", *(["--multi_gpu", "--main_process_port", "0"] if number > 1 else [])]
    if code := launch(options.method, launcher, options.arguments):
        raise SystemExit(code)
