"""The command line ``hf-ebm``: one subcommand per module of `COMMANDS`.

A `ValueError` of this package, an `OSError` or an `ImportError` ends a command with one line and the exit code of
`hf_ebm.utils.logging`; any other exception is a bug and shows its traceback. ``--debug`` shows it for all of them.
Heavy libraries are imported when a command runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import hf_ebm
from hf_ebm.utils.files import WriteError
from hf_ebm.utils.logging import CALLERS_MISTAKE, INTERRUPTED, exit_code
from hf_ebm.utils.software import how_to_install

COMMANDS = {  # name -> module with `add_parser` and `run`
    "train": "hf_ebm.cli.train",
    "sample": "hf_ebm.cli.sample",
    "reconstruct": "hf_ebm.cli.reconstruct",
    "score": "hf_ebm.cli.score",
    "calibrate": "hf_ebm.cli.calibrate",
    "eval-ood": "hf_ebm.cli.eval_ood",
    "evaluate": "hf_ebm.cli.evaluate",
    "info": "hf_ebm.cli.info",
    "likelihood": "hf_ebm.cli.likelihood",
    "demo": "hf_ebm.demo.demo_command",
    "convert": "hf_ebm.cli.convert",
    "push": "hf_ebm.cli.push",
    "push-space": "hf_ebm.demo.push_space_command",
}


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of ``hf-ebm`` with the subparsers of all commands."""
    parser_class: Any = functools.partial(  # mypy wants a class
        argparse.ArgumentParser,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # examples are printed as written
        allow_abbrev=False,
    )
    parser = parser_class(
        prog="hf-ebm",
        description="Energy-based generative models: train, sample, score, evaluate, push.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    parser.add_argument("--version", action="version", version=f"hf-ebm {hf_ebm.__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of every error; goes before the command"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=parser_class)
    for module in COMMANDS.values():
        importlib.import_module(module).add_parser(commands)
    return parser


def output_is_closed() -> bool:
    """Whether stdout accepts no more output; it is then replaced, or Python would fail again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def is_bug(error: Exception) -> bool:
    """Whether a library raised `error` as a `ValueError`: those meant for the user are raised in this package."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and not frame.f_globals["__name__"].startswith("hf_ebm.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, or without one print the help."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(CALLERS_MISTAKE)
    try:
        options.run(options)
        sys.stdout.flush()
    except (ValueError, OSError, ImportError) as error:
        closed = output_is_closed()
        if closed and isinstance(error, BrokenPipeError):  # the reader, such as `| head`, has finished
            return
        if options.debug or is_bug(error):
            raise
        error = WriteError("the standard output", error) if closed and isinstance(error, OSError) else error
        missing = f"; {how_to_install('train,eval')}" if isinstance(error, ModuleNotFoundError) else ""
        print(f"hf-ebm: error: {error}{missing}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error
    except KeyboardInterrupt as error:
        if options.debug:
            raise
        print("hf-ebm: stopped by the user.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


if __name__ == "__main__":
    main()
