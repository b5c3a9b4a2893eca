"""Timing of alternatives in alternating rounds, compared round by round.

The sides alternate A B A B ..., so that other load on the machine slows all of them. The result is
the median over rounds of the ratio within a round, with its quartiles. CPU seconds are recorded as
well as wall-clock seconds: with one thread on a shared machine they vary less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_ebm.training.cuda_graph import NUM_EAGER
from hf_ebm.utils.files import path_option

Times = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of a list of numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Median and quartiles of `values`; below four values, the smallest and the largest."""
        if len(values) < 4:
            return cls(statistics.median(values), min(values), max(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    sides: dict[str, Callable[[], Any]], repeats: int, warmup: int, device: torch.device
) -> tuple[Times, Times]:
    """Wall-clock and CPU seconds of each side in each of `repeats` rounds, after `warmup` untimed rounds."""
    wall: Times = {name: [] for name in sides}
    cpu: Times = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, run in sides.items():
            synchronize(device)
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            seconds, seconds_cpu = time.perf_counter() - started, time.process_time() - started_cpu
            if round_ >= warmup:
                wall[name].append(seconds)
                cpu[name].append(seconds_cpu)
    return wall, cpu


def ratio(times: Times, numerator: str, denominator: str) -> Spread:
    """Spread over rounds of `numerator`'s time over `denominator`'s time in the same round."""
    return Spread.of([a / b for a, b in zip(times[numerator], times[denominator], strict=True)])


def make_parser(description: str, batch_sizes: dict[str, int], repeats: int) -> argparse.ArgumentParser:
    """Make a parser with the shared arguments; `batch_sizes` are the presets' defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=sorted(batch_sizes), default=next(iter(batch_sizes)))
    default = ", ".join(f"{name} {size}" for name, size in batch_sizes.items())
    parser.add_argument("--batch-size", type=int, help=f"default: {default}")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=path_option, help="also write the results to this file")
    parser.set_defaults(batch_sizes=batch_sizes)
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of training benchmarks."""
    parser.add_argument("--cuda-graph", action="store_true", help="launch the package's step as a CUDA graph")


def warmup_rounds(arguments: argparse.Namespace) -> int:
    """Number of untimed rounds: with ``--cuda-graph`` at least until the step is recorded."""
    return max(arguments.warmup, NUM_EAGER + 1) if arguments.cuda_graph else int(arguments.warmup)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse and check the arguments; the default batch size is the preset's."""
    arguments = parser.parse_args()
    if arguments.batch_size is None:
        arguments.batch_size = arguments.batch_sizes[arguments.preset]
    if min(arguments.batch_size, arguments.repeats) < 1 or arguments.warmup < 0:
        parser.error("--batch-size and --repeats must be >= 1, --warmup >= 0.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none.")
    return arguments


def machine_facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions, threads, seed and the command line of a result."""
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": arguments.seed,
        "command": shlex.join(["python", *sys.argv]),
    }
    if arguments.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
    return facts


def cpu_name() -> str:
    """The processor's name (Linux)."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(title: str, arguments: argparse.Namespace, wall: Times, cpu: Times, results: dict[str, Any]) -> None:
    """Print the machine, the seconds of each side and the scalar results; write everything to ``--json``."""
    facts = machine_facts(arguments)
    print(f"\n{title}")
    print("\n".join(f"  {name}: {value}" for name, value in facts.items()))
    print(f"\n  {'seconds, median [quartiles]':<40}{'wall clock':<28}CPU")
    for name in wall:
        print(f"  {name:<40}{Spread.of(wall[name])!s:<28}{Spread.of(cpu[name])}")
    print()
    for name, value in results.items():
        if not isinstance(value, dict):
            print(f"  {name}: {value}")
    if arguments.json:
        plain = {key: dataclasses.asdict(v) if isinstance(v, Spread) else v for key, v in results.items()}
        record = {"title": title, "machine": facts, "results": plain, "wall_seconds": wall, "cpu_seconds": cpu}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
