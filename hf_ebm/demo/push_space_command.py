"""``hf-ebm push-space``: create a Space for a pushed model."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "push-space",
        help="create a Space, a page on the Hub where a model can be tried",
        description="Create or update a Space, a page on the Hub where a pushed model can be tried.",
        epilog="example: hf-ebm push-space --model user/model --space user/model-demo\n"
        "The token is that of `hf auth login` or HF_TOKEN.",
    )
    parser.add_argument("--model", required=True, help="the Hub id of a pushed model")
    parser.add_argument("--space", required=True, help="the Hub id of the Space, created if it does not exist")
    parser.add_argument(
        "--private", action="store_true", help="make a new Space private, as the Space of a private model always is"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Push, and print the URL."""
    from hf_ebm.demo.push import push_space

    print(f"pushed {push_space(options.model, options.space, options.private)}")
