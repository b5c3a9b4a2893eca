"""``hf-ebm``: train, sample, score and describe from a shell. Heavy imports wait until a command needs them.

Exit codes: 0 if all went well, 2 for a mistake of the caller, 1 for any other failure.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from hf_ebm.commands import (
    demo,
    eval_ood,
    evaluate,
    info,
    likelihood,
    push,
    push_space,
    reconstruct,
    sample,
    score,
    train,
)

COMMANDS = (train, sample, reconstruct, score, eval_ood, evaluate, info, likelihood, demo, push, push_space)
CALLERS_MISTAKE, FAILURE = 2, 1
NOT_THE_CALLERS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="hf-ebm",
        description="Energy-based generative models: train, sample, score, evaluate, push.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what can be foreseen ends it with one line, anything else with Python's traceback."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        missing = "; pip install 'hf-ebm[train,eval]'" if isinstance(error, ModuleNotFoundError) else ""
        print(f"hf-ebm: error: {error}{missing}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error


def exit_code(error: Exception) -> int:
    """2 for what the caller can put right in the command, 1 for a full disk, a missing package and the like."""
    is_failure = isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno in NOT_THE_CALLERS)
    return FAILURE if is_failure else CALLERS_MISTAKE


if __name__ == "__main__":
    main()
