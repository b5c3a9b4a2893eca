"""A mixed-precision training run on a CPU that records the dtypes of its convolutions.

As a script, ``mixed_precision.py METHOD CONFIG FOLDER``, it trains four steps in each precision, resumes these runs
from their second step, and writes the record of each process to ``FOLDER/<rank>.json``. accelerate does fp16 on GPUs
only: `HalfOnCPU` uses torch's own autocast and `GradScaler`, which work on a CPU as well.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from hf_ebm.training import run_folder, trainer
from hf_ebm.training.config import RunSettings

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


def push_nowhere(monkeypatch):
    """Make ``push_every_checkpoint`` save the pipeline and upload nothing; the folders' files, one list a push."""
    pushed = []

    def push_folder(folder, *_args, **_named):
        pushed.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))

    monkeypatch.setattr(RunSettings, "check_hub", lambda settings: None)
    monkeypatch.setattr(run_folder, "push_folder", push_folder)
    return pushed


if __name__ == "__main__":
    import pytest
    from accelerate.state import AcceleratorState
    from small_runs import SCRIPTS

    name, config, folder = sys.argv[1:]
    patch = pytest.MonkeyPatch()
    patch.setattr(trainer, "Accelerator", HalfOnCPU)
    patch.setattr(HalfOnCPU, "end_training", lambda self: None)  # the next run needs the process group
    push_nowhere(patch)
    record, found = record_dtypes(patch), {}
    for precision in DTYPES:
        whole = Path(folder) / precision
        resume = f"resume={whole / 'checkpoints' / 'step_00000002'}"
        for output_dir, more in ((whole, []), (Path(folder) / f"{precision}-resumed", [resume])):
            AcceleratorState._reset_state(reset_partial_state=True)
            record.clear()
            settings = [f"mixed_precision={precision}", f"output_dir={output_dir}", *more]
            SCRIPTS[name][0].main(["--config", config, *settings])
            found[output_dir.name] = {
                step: {network: sorted(dtypes) for network, dtypes in networks.items()}
                for step, networks in record.items()
            }
    (Path(folder) / f"{HalfOnCPU.made[-1].process_index}.json").write_text(json.dumps(found))
