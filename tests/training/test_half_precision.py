"""Training in fp16 with a scaled loss: one scaler for the optimizers of all networks.

accelerate does it on GPUs alone; torch's autocast and its `GradScaler` do the same on a CPU, and are put in here.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from mixed_precision import HalfOnCPU
from small_runs import all_weights, assert_same_run

from hf_ebm.training import trainer
from hf_ebm.training.checkpointing import list_checkpoints
from hf_ebm.training.trainer import update


@pytest.fixture
def half_on_cpu(monkeypatch):
    """Makes accelerate do fp16 on the CPU as on a GPU; the accelerators that were made."""
    HalfOnCPU.made.clear()
    monkeypatch.setattr(trainer, "Accelerator", HalfOnCPU)
    return HalfOnCPU.made


def last_terms(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_cpu_refuses_it_instead_of_training_in_fp32(tmp_path, script):
    with pytest.raises(ValueError, match=r"mixed_precision must be 'no' or 'bf16' on 'cpu', got 'fp16'"):
        script.train(tmp_path / "run", mixed_precision="fp16")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 1.0}])
def test_it_learns_as_in_fp32(tmp_path, script, half_on_cpu, monkeypatch, changes):
    changes = {"max_steps": 12, "checkpoint_every": 0, "ema_decay": None, **changes}
    half = script.train(tmp_path / "half", mixed_precision="fp16", **changes)
    scale = half_on_cpu[0].scaler.get_scale()
    monkeypatch.setattr(trainer, "Accelerator", Accelerator)
    AcceleratorState._reset_state(reset_partial_state=True)
    full = script.train(tmp_path / "full", **changes)
    got, wanted = last_terms(half), last_terms(full)
    for name in ("reconstruction", "energy_real" if script.name == "ddaebm" else "energy_data"):
        assert got[name] == pytest.approx(wanted[name], rel=0.1), name
        assert got[name] != wanted[name]  # it is not fp32
    # The first updates overflow and are left out, until the scale fits; Dual-MCMC's energy loss is over a temperature
    # of 4e-6.
    smallest, largest = (2.0**8, 2.0**15) if script.name == "ddaebm" else (2.0**-6, 2.0**6)
    assert smallest <= scale <= largest
    weights = all_weights(half).values()
    assert all(tensor.isfinite().all() for tensor in weights)
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float32}


def test_a_killed_run_resumes_bit_for_bit_with_its_scale(tmp_path, script, half_on_cpu):
    changes = {"mixed_precision": "fp16", "checkpoint_every": 2}
    whole = script.train(tmp_path / "whole", max_steps=4, **changes)
    part = script.train(tmp_path / "part", max_steps=4, max_runtime_seconds=1e-9, **changes)
    first = list_checkpoints(part / "checkpoints")[-1]
    assert (first / "scaler.pt").is_file()
    resumed = script.train(tmp_path / "part", max_steps=4, resume="latest", **changes)
    assert_same_run(whole, resumed)
    assert half_on_cpu[-1].scaler.get_scale() == half_on_cpu[0].scaler.get_scale()


def test_clipping_unscales_the_optimizer_that_steps_and_no_other(half_on_cpu):
    """The second optimizer's gradients stay scaled while the first steps: in fp16 each is clipped as in fp32."""
    settings = SimpleNamespace(max_grad_norm=1e9)  # which clips nothing

    def gradients(mixed_precision):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = trainer.Accelerator(cpu=True, mixed_precision=mixed_precision)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if mixed_precision == "fp16" else None
        torch.manual_seed(0)
        models = [torch.nn.Linear(3, 1, bias=False) for _ in range(2)]
        optimizers = [torch.optim.Adam(model.parameters(), betas=(0.0, 0.9)) for model in models]
        prepared = accelerator.prepare(*models, *optimizers)
        for _ in range(2):
            x = torch.randn(4, 3)
            for model, optimizer in zip(prepared[:2], prepared[2:], strict=True):
                update(accelerator, optimizer, model(x).square().mean(), model.parameters(), settings)
        return [optimizer.state[model.weight]["exp_avg"] for model, optimizer in zip(models, optimizers, strict=True)]

    for half, full in zip(gradients("fp16"), gradients("no"), strict=True):
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.01)
