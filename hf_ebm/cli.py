"""``hf-ebm``: train, sample, score and describe from a shell. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hf_ebm.commands import demo, eval_ood, push_space, sample, score, train

COMMANDS = (train, sample, score, eval_ood, demo, push_space)


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="hf-ebm",
        description="Energy-based generative models: train, sample, score.",
        epilog="example: hf-ebm sample --model outputs/ddaebm-digits --num-images 64 --output samples.png",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the caller ends it with one line and exit code 2."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"hf-ebm: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
