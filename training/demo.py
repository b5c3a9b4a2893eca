"""The digits demo (``make demo``): train on the embedded digits, evaluate, and plot.

    python -m hf_ebm.training.demo [ddaebm | dual_mcmc] [key=value ...]

It starts ``accelerate launch`` on the method's script, samples from the saved pipeline, and writes ``samples.png``,
``ood.png`` and ``metrics.json`` into the run folder, for Dual-MCMC Teaching also ``chains.png`` and
``reconstructions.png``. ``key=value`` arguments go to the script. An earlier run in the folder is kept: it is moved to
the same name with -1, -2, ... (``resume=latest`` resumes it instead).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_ebm.utils.logging import INTERRUPTED, exit_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, plot; Ctrl-C ends it with one line, also while packages are imported."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    method = arguments.pop(0) if arguments and "=" not in arguments[0] else "ddaebm"
    try:
        from hf_ebm.training.digits_demo import run

        run(method, arguments)
    except KeyboardInterrupt as error:
        print("hf-ebm: stopped by the user.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error
    except OSError as error:  # a full disk, a read-only folder
        print(f"hf-ebm: error: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error


if __name__ == "__main__":
    main()
