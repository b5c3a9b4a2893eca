"""A mixed-precision training run on a CPU that records the dtypes of its convolutions.

accelerate does fp16 on GPUs only: `HalfOnCPU` uses torch's own autocast and `GradScaler`, which work on a CPU as well.
"""

from collections import defaultdict
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from hf_ebm.training import trainer

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class HalfOnCPU(Accelerator):
    """An `Accelerator` that does fp16 on the CPU as on a GPU."""

    made: ClassVar[list[Accelerator]] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.mixed_precision == "fp16":
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu")
        self.made.append(self)


def record_dtypes(monkeypatch):
    """Make every train step record ``{step: {network: {dtype of a convolution's output}}}``; the record."""
    record, make_train_step = defaultdict(lambda: defaultdict(set)), trainer.make_train_step

    def make(method, settings, state):
        train_step, now = make_train_step(method, settings, state), []

        def watch(network):
            def note(_module, _inputs, output):
                if now:
                    record[now[0]][type(network).__name__].add(str(output.dtype).removeprefix("torch."))

            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(note)

        for model in state.models:
            watch(state.accelerator.unwrap_model(model))

        def recorded(x, step, state, settings):
            now.append(step)
            terms = train_step(x, step, state, settings)
            now.clear()
            return terms

        return recorded

    monkeypatch.setattr(trainer, "make_train_step", make)
    return record
