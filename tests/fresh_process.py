"""Run code in a process where nothing of hf_ebm is imported yet.

It is forked from a server that has imported torch, diffusers and transformers, which take seconds, and nothing else.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "diffusers.models.unets", "diffusers.pipelines", "transformers.pipelines"])


def _run(path, arguments, output, environment):
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    assert not [name for name in sys.modules if name.partition(".")[0] == "hf_ebm"]
    os.environ.update(environment)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def run_in_fresh_process(code, *arguments, **environment):
    """Run `code` with ``sys.argv[1:]`` and variables of its own; returns what it printed.

    Raises:
        AssertionError: If it ended with another exit code than 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, output = Path(folder, "script.py"), Path(folder, "output")
        script.write_text(code)
        process = _CONTEXT.Process(target=_run, args=(str(script), arguments, str(output), environment))
        process.start()
        process.join()
        printed = output.read_text()
    assert process.exitcode == 0, printed[-6000:]
    return printed
