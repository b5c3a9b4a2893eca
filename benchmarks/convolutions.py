"""Winograd's 3x3 convolutions (`hf_ebm/winograd.py`) against PyTorch's own on this CPU, layer by layer.

    python benchmarks/convolutions.py
    OMP_NUM_THREADS=1 python benchmarks/convolutions.py --channels 128,256 --sizes 16,32 --batch-size 4

The forward, the input's and the weight's gradient are timed, each on images of so many channels and pixels a side, in
turns with PyTorch's direct convolution and, forward only, with NNPACK's Winograd kernel where there is one. Images are
channels-last, but for NNPACK. The weight's transforms are not timed: a chain makes them once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Times, alternate, ratio, report
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from hf_ebm.winograd import Buffers, TransformedWeight, convolve, weight_gradient


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers."""
    return [int(part) for part in text.split(",")]


@torch.no_grad()
def make_sides(batch_size: int, channels: int, size: int) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """By pass and side, a call that does it; both sides agree to 1e-4 of the largest value, or the script stops."""
    x, grad = (torch.randn(batch_size, channels, size, size).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    laid_out, plain_x = weight.to(memory_format=torch.channels_last), x.contiguous()
    buffer = Buffers()
    transformed = TransformedWeight(weight, buffer)
    sides: dict[str, dict[str, Callable[[], Tensor]]] = {
        "forward": {
            "direct": lambda: F.conv2d(x, laid_out, padding=1),
            "winograd": lambda: convolve(x, transformed.get(False), buffer),
        },
        "input gradient": {
            "direct": lambda: conv2d_input(x.shape, laid_out, grad, padding=1),
            "winograd": lambda: convolve(grad, transformed.get(True), buffer),
        },
        "weight gradient": {
            "direct": lambda: conv2d_weight(x, weight.shape, grad, padding=1),
            "winograd": lambda: weight_gradient(x, grad, buffer),
        },
    }
    for name, pair in sides.items():
        want, got = pair["direct"](), pair["winograd"]()
        difference = ((got - want).abs().max() / want.abs().max()).item()
        if not difference < 1e-4:
            raise SystemExit(f"error: {name} of {channels} channels, {size}x{size}: a difference of {difference:.1e}.")
    if torch._nnpack_available():
        sides["forward"]["nnpack"] = lambda: torch._nnpack_spatial_convolution(plain_x, weight, None, padding=1)
    return sides


def main() -> None:
    """Time all layers, print a table of ratios."""
    parser = argparse.ArgumentParser(description="Winograd's convolutions against PyTorch's own on a CPU.")
    parser.add_argument("--channels", type=whole_numbers, default=[64, 128, 256, 512], help="default: 64,128,256,512")
    parser.add_argument("--sizes", type=whole_numbers, default=[8, 16, 32], help="pixels a side (default: 8,16,32)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.set_defaults(device="cpu")
    arguments = parser.parse_args()
    if min(arguments.channels + arguments.sizes) < 4 or any(size % 4 for size in arguments.sizes):
        parser.error("--channels must be >= 4, --sizes divisible by 4.")
    if min(arguments.batch_size, arguments.repeats) < 1 or arguments.warmup < 0:
        parser.error("--batch-size and --repeats must be >= 1, --warmup >= 0.")

    torch.manual_seed(arguments.seed)
    wall: Times = {}
    cpu: Times = {}
    results: dict[str, Any] = {}
    for channels in arguments.channels:
        for size in arguments.sizes:
            for name, sides in make_sides(arguments.batch_size, channels, size).items():
                with torch.no_grad():
                    times, cpu_times = alternate(sides, arguments.repeats, arguments.warmup, torch.device("cpu"))
                layer = f"{channels} x {size}x{size} {name}"
                wall |= {f"{layer}, {side}": seconds for side, seconds in times.items()}
                cpu |= {f"{layer}, {side}": seconds for side, seconds in cpu_times.items()}
                for side in list(sides)[1:]:
                    results[f"{layer}: {side} times as fast as direct"] = ratio(times, "direct", side)
    report(f"convolutions, batch {arguments.batch_size}", arguments, wall, cpu, results)


if __name__ == "__main__":
    main()
