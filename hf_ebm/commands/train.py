"""``hf-ebm train``: `accelerate launch` on a method's script."""

from __future__ import annotations

import argparse
import signal
import subprocess
from pathlib import Path
from typing import Any

from hf_ebm.exit_codes import CALLERS_MISTAKE, FAILURE, INTERRUPTED

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
    """`accelerate launch` on the method's script, as `accelerate config` said, or else on all GPUs of this machine.

    A script that fails ends this process after its own message, with its exit code if that is 2 or 130, else with 1.
    Ctrl-C, which the script gets too, is the script's to answer: this process waits for it.
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launcher = []
    if not Path(default_config_file).is_file():  # the launcher's own choices, which it would warn of
        number = max(1, torch.accelerator.device_count())
        launcher += ["--num_processes", str(number), "--num_machines", "1", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", *(["--multi_gpu"] if number > 1 else [])]
    script = ["-m", f"hf_ebm.training.train_{options.method}", *options.arguments]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a handler, unlike SIG_IGN, is not the script's too
    try:
        launch_command(launch_command_parser().parse_args([*launcher, *script]))
    except subprocess.CalledProcessError as error:  # of one process
        code = error.returncode
    except ChildFailedError as error:  # of several
        code = error.get_first_failure()[1].exitcode
    except SignalException as error:  # of several, whose launcher has its own handler
        code = INTERRUPTED if error.sigval == signal.SIGINT else FAILURE
    else:
        return
    finally:
        signal.signal(signal.SIGINT, before)
    raise SystemExit(code if code in (CALLERS_MISTAKE, INTERRUPTED) else FAILURE)
