"""``hf-ebm push``: push a run folder to the Hub, in one commit."""

from __future__ import annotations

import argparse
from typing import Any

from hf_ebm.utils.files import path_text


def add_parser(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "push",
        help="push a run folder with its model card to the Hub",
        description="Push a run folder with its model card to the Hub, in one commit.",
        epilog="example: hf-ebm push --model outputs/ddaebm-digits --repo-id user/ddaebm-digits\n"
        "The token is that of `hf auth login` or HF_TOKEN.",
    )
    parser.add_argument("--model", required=True, type=path_text, help="a run folder")
    parser.add_argument("--repo-id", required=True, help="user/name; created if it does not exist")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="whether a new repository is private (default: by your account); an existing one must match",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights, shown on the card: an id of the Hub such as mit or cc-by-nc-4.0, or other "
        "(default: the setting license of the run; without it the card states none)",
    )
    parser.add_argument("--license-name", metavar="NAME", help="name of the licence, with --license other")
    parser.add_argument("--branch", help="branch to push to, created if it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--message", help="commit message")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Push, and print the URL."""
    from hf_ebm.hub.model_card import check_license

    check_license("--license", options.license, options.license_name)
    from hf_ebm.hub.upload import push_folder, where_it_is

    commit = push_folder(
        options.model,
        options.repo_id,
        private=options.private,
        revision=options.branch,
        create_pr=options.create_pr,
        commit_message=options.message,
        license=options.license,
        license_name=options.license_name,
    )
    where = where_it_is(commit, options.branch)
    if options.create_pr and commit.pr_url is None:
        print(f"{options.model} has no changes to push, so no pull request was opened: {where}")
    else:
        print(f"{options.model} is on the Hub: {where}")
