"""``hf-ebm convert``: convert the checkpoint of a paper's authors into a pipeline folder."""

from __future__ import annotations

import argparse
from typing import Any

from hf_ebm.utils.files import path_option


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "convert",
        help="convert the authors' checkpoint into a pipeline folder",
        description="Convert the checkpoint of a paper's authors into a pipeline folder.",
        epilog="example: hf-ebm convert dual-mcmc cifar10.pth --data cifar10 --output outputs/dual-mcmc-authors",
    )
    parser.add_argument("method", choices=("dual-mcmc",), help="the method of the checkpoint")
    parser.add_argument("checkpoint", type=path_option, help="the authors' file, with netG, netE and netI")
    parser.add_argument("--data", required=True, choices=("cifar10", "celeba64"), help="what it was trained on")
    parser.add_argument("--output", required=True, type=path_option, help="a folder that does not exist yet")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the pipeline folder."""
    from hf_ebm.pipelines.convert_dual_mcmc import convert_to_folder

    folder = convert_to_folder(options.checkpoint, options.data, options.output)
    print(
        f"wrote {folder}/: the pipeline and README.md (the model card). The authors state no licence of their weights: "
        "ask them before you publish or use it."
    )
