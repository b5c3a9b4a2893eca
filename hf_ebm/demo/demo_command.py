"""``hf-ebm demo``: serve a page to try a model in the browser."""

from __future__ import annotations

import argparse
from typing import Any

from hf_ebm.utils.files import path_text


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "demo",
        help="try a model in the browser",
        description="Serve a page to try a model in the browser.",
        epilog="example: hf-ebm demo --model outputs/ddaebm-digits",
    )
    parser.add_argument("--model", required=True, type=path_text, help="a run folder or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="open a public link through gradio.live")
    parser.add_argument(
        "--device",
        help="where the model runs: cpu, cuda, cuda:1, mps, ...; default: a GPU if available, else cpu",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from hf_ebm.demo.server import serve

    serve(options.model, options.host, options.port, options.share, options.device)
