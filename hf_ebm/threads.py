"""How threads of the CPU wait for each other."""

from __future__ import annotations

import os


def let_waiting_threads_sleep() -> None:
    """Have threads that wait for each other give the processor to other programs at once, not after milliseconds.

    On a busy machine a small network is then tens of times as fast, on a quiet one as fast as before (docs/results.md).
    GNU's OpenMP reads this when torch is imported, processes that are started inherit it; who has chosen otherwise
    keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
