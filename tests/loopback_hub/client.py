"""A process that imports hf_ebm with the test Hub as its endpoint and runs code.

huggingface_hub reads ``HF_ENDPOINT`` when it is imported: the client cannot live in the tests' own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LOOP = """
import faulthandler, json, os, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05))  # what is tried again is tried at once
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # nothing else may write where the answers go
for line in iter(sys.stdin.readline, "\\n"):  # not until the pipe closes: forked workers hold it, too
    names = json.loads(line)
    faulthandler.dump_traceback_later(120, exit=True)  # where it hangs
    try:
        exec(names.pop("code"), names)
        answer = {"result": names.get("result")}
    except BaseException as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    faulthandler.cancel_dump_traceback_later()  # waiting for the next piece is no hanging
    print(json.dumps(answer), file=answers, flush=True)
"""


def environment(url: str, home: Path, token: str | None) -> dict[str, str]:
    """Variables of a process whose Hub is `url` and whose cache is in `home`."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}  # a bar that cannot be written keeps tqdm's lock
    return {**mine, **hub, **quiet, "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {})}


class ClientError(Exception):
    """What went wrong there: its type's name and its message."""


class Client:
    """The process; ``client("result = 1 + x", x=2)`` is 3."""

    def __init__(self, url: str, home: Path, token: str | None, **variables: str) -> None:
        self.log = (home / "stderr").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            env={**environment(url, home, token), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __call__(self, code: str, **values: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({**values, "code": code}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client process ended: {Path(self.log.name).read_text()[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(f"{answer['error']}: {answer['message']}")
        return answer["result"]

    def close(self) -> None:
        self.process.communicate("\n")
        self.log.close()
