"""``hf-ebm``: train, sample, score and describe from a shell. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import hf_ebm
from hf_ebm.utils.files import WriteError
from hf_ebm.utils.logging import CALLERS_MISTAKE, INTERRUPTED, exit_code
from hf_ebm.utils.software import how_to_install
from hf_ebm.utils.validation import did_you_mean

COMMANDS = {  # command -> module with its ``add_parser`` and ``run``
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
    "push": "hf_ebm.cli.push",
    "push-space": "hf_ebm.demo.push_space_command",
}


class HelpFormatter(argparse.HelpFormatter):
    """argparse's, but for lines that end inside a name or a path that has a hyphen: what is printed can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


class CommandParser(argparse.ArgumentParser):
    """A parser with that help, of `hf-ebm` and of each of its commands, that takes options by their whole names."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)
        self.given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; what was given is kept, for `error`."""
        self.given = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the program; where an option is missing because its name is misspelt, that is what it says."""
        options = list(self._option_string_actions)
        names = [text.partition("=")[0] for text in self.given if text.startswith("--")]
        strange = [name for name in names if name not in options]
        if message.startswith("the following arguments are required") and strange:
            message = f"there is no option {strange[0]}; {did_you_mean(strange[0], options, message)}"
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = CommandParser(
        prog="hf-ebm",
        description="Energy-based generative models: train, sample, score, evaluate, push.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    parser.add_argument("--version", action="version", version=f"hf-ebm {hf_ebm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        importlib.import_module(module).add_parser(commands)
    for listed in commands._get_subactions():
        of_command = commands.choices[listed.dest]
        if of_command.description is None and listed.help:
            of_command.description = f"{listed.help[0].upper()}{listed.help[1:]}."
    return parser


def check_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """End the program with the near names of an unknown command; argparse says them from Python 3.14 on."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS, f"choose from {', '.join(COMMANDS)}.")
        parser.error(f"there is no command {arguments[0]!r}; {near}")


def refuse_unknown(parser: argparse.ArgumentParser, command: str | None, unknown: Sequence[str]) -> None:
    """End the program with the near names of the first option that a command does not know, and its own usage."""
    if command is None:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    (commands,) = parser._subparsers._group_actions  # type: ignore[union-attr]
    of_command: argparse.ArgumentParser = commands.choices[command]  # type: ignore[index]
    name = unknown[0].partition("=")[0]
    if not name.startswith("-"):
        of_command.error(f"unrecognized arguments: {' '.join(unknown)}")
    near = did_you_mean(name, list(of_command._option_string_actions), f"see hf-ebm {command} --help.")
    of_command.error(f"there is no option {name}; {near}")


def cannot_print() -> bool:
    """Whether the standard output takes no more; Python then drops what waits, and does not fail again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what can be foreseen ends it with one line, anything else with Python's traceback.

    Without a command it shows them all.
    """
    parser = make_parser()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    check_command(parser, arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        refuse_unknown(parser, options.command, unknown)
    if options.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(CALLERS_MISTAKE)
    try:
        options.run(options)
        sys.stdout.flush()
    except (ValueError, OSError, ImportError) as error:
        if cannot_print():
            if isinstance(error, BrokenPipeError):  # `| head` has read enough
                return
            error = WriteError("the standard output", error) if isinstance(error, OSError) else error
        missing = f"; {how_to_install('train,eval')}" if isinstance(error, ModuleNotFoundError) else ""
        print(f"hf-ebm: error: {error}{missing}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error
    except KeyboardInterrupt as error:
        print("hf-ebm: stopped by the user.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


if __name__ == "__main__":
    main()
