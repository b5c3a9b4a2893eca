"""A training script's entry point: its help, its settings, and how it ends when something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_ebm.exit_codes import FAILURE, INTERRUPTED, exit_code
from hf_ebm.push_errors import PushError
from hf_ebm.training.checkpoints import WriteError
from hf_ebm.training.settings import describe_settings, load_settings, shipped_configs
from hf_ebm.training.stopping import TrainingDivergedError


def run_script(
    doc: str, cls: type[Any], default_config: str, train: Callable[[Any], Path], arguments: Sequence[str] | None
) -> None:
    """Entry point of a script.

    A setting that cannot be used ends it with one clear line and exit code 2, Ctrl-C and a SIGTERM with another one and
    130, a loss that diverges or a full disk with 1.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        configs = ", ".join(path.name for path in shipped_configs(default_config))
        try:
            print(doc, f"Configs: {configs}", sep="\n")
            print(f"Without --config the settings of {default_config} hold (beside the defaults, where they differ).")
            print("What a config leaves out is by default:")
            print(describe_settings(cls, default_config), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; Python would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        train(load_settings(cls, default_config, arguments))
    except KeyboardInterrupt as error:
        say_once(f"hf-ebm: {str(error) or 'stopped by the user.'}")
        raise SystemExit(INTERRUPTED) from error
    except (TrainingDivergedError, WriteError) as error:
        say_once(f"hf-ebm: error: {error}")
        raise SystemExit(FAILURE) from error
    except PushError as error:
        raise SystemExit(f"hf-ebm: error: {error}") from error  # with exit code 1
    except (ValueError, OSError) as error:
        print(f"hf-ebm: error: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error


def say_once(line: str) -> None:
    """Print a line to stderr, by one of several processes."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr)
