"""A train step as a CUDA graph: what one iteration launches is recorded once and then launched as a whole.

A step of small networks is thousands of short kernels, and a GPU waits for Python between them. A graph takes that wait
away and changes nothing else: the same kernels, in the same order, with random numbers of the same generator.

Source: PyTorch's "CUDA graphs" notes, whole-network capture; here the optimizers' steps are in the graph as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_ebm.training.config import RunSettings

NUM_EAGER = 3  # iterations of each kind before the recording: libraries choose their kernels, `torch.compile` compiles


def why_no_cuda_graph(settings: RunSettings, accelerator: Accelerator) -> str | None:
    """Why a run of these settings cannot be launched as graphs; None: it can."""
    if accelerator.device.type != "cuda":
        return f"it needs a CUDA GPU, and this run is on {accelerator.device.type!r}"
    if accelerator.num_processes > 1:
        return f"it needs one process, and there are {accelerator.num_processes}"
    if settings.class_conditional or settings.pseudo_labels:
        return "a step with labels is not recorded"
    if settings.mixed_precision == "fp16":
        return "mixed_precision=fp16 decides from step to step whether to update; bf16 does not"
    return None


def with_rates_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """The optimizer's learning rates as tensors on `device`, which a recorded step reads anew at each launch."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        group["capturable"] = True


class GraphedStep:
    """A train step, eager at first, from then on launched as a graph.

    Args:
        train_step: ``(x, step, state, settings) -> terms``, on batches of one shape.
        step_kind: ``(step, settings) -> kind``; the steps of one kind do the same, each kind has its own graph.
        state: As for `train_step`; its optimizers' learning rates become tensors on the device.
        device: Of the models.
    """

    def __init__(
        self,
        train_step: Callable[..., dict[str, Tensor]],
        step_kind: Callable[[int, Any], Hashable],
        state: Any,
        device: torch.device,
    ) -> None:
        self.train_step, self.step_kind = train_step, step_kind
        for value in vars(state).values():
            if isinstance(value, torch.optim.Optimizer):
                with_rates_on_device(value, device)
        self.stream = torch.cuda.Stream(device)
        self.num_eager: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]] = {}

    def __call__(self, x: Tensor, step: int, state: Any, settings: Any) -> dict[str, Tensor]:
        """One iteration; the terms are overwritten by the next one of the same kind."""
        kind = self.step_kind(step, settings)
        if kind not in self.graphs and self.num_eager[kind] < NUM_EAGER:
            self.num_eager[kind] += 1
            current = torch.cuda.current_stream(x.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                terms = self.train_step(x, step, state, settings)
            current.wait_stream(self.stream)
            return terms
        if kind not in self.graphs:
            self.graphs[kind] = self.record(x, step, state, settings)
        graph, given, terms = self.graphs[kind]
        given.copy_(x)
        graph.replay()
        return terms

    def record(
        self, x: Tensor, step: int, state: Any, settings: Any
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]:
        """The graph of one iteration, the tensor it reads its batch from, and those it writes its terms to."""
        given, graph = x.clone(), torch.cuda.CUDAGraph()
        # other threads, which bring the data to the device, may go on meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            terms = self.train_step(given, step, state, settings)
            terms = {name: term.detach() for name, term in terms.items()}
        return graph, given, terms
