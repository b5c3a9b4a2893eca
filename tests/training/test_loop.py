"""The training loop's loader and accelerator: unsupported settings are errors, and nothing waits indefinitely."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import TensorDataset

from hf_ebm.training.checkpointing import Position
from hf_ebm.training.trainer import endless_batches, make_accelerator, make_loader, open_data


def dataset(size):
    return TensorDataset(torch.zeros(size, 1))


def of_two_processes(loader):
    """As `Accelerator.prepare_data_loader` makes it in the first of two."""
    return prepare_data_loader(loader, torch.device("cpu"), num_processes=2, process_index=0, use_seedable_sampler=True)


def test_every_process_needs_a_batch():
    message = r"at most the data set's 40 samples, got 30 in each of 2 processes, 60 in all"
    with pytest.raises(ValueError, match=message):
        make_loader(dataset(40), 30, seed=0, num_workers=0, num_processes=2)
    loader = of_two_processes(make_loader(dataset(60), 30, seed=0, num_workers=0, num_processes=2))
    assert len(loader) == 1 and next(endless_batches(loader, Position()))[0].shape == (30, 1)


def test_a_run_counts_its_processes(script, tmp_path):
    settings = script.settings(tmp_path, batch_size=1000)  # of 1,437 digits
    accelerator = SimpleNamespace(num_processes=2, print=print, prepare_data_loader=of_two_processes)
    with pytest.raises(ValueError, match="1437 samples, got 1000 in each of 2 processes"):
        open_data(settings, (1, 8, 8), accelerator)


def test_a_loader_without_a_batch_is_refused():
    loader = of_two_processes(make_loader(dataset(40), 30, seed=0, num_workers=0))
    with pytest.raises(ValueError, match="no batch"):
        next(endless_batches(loader, Position()))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_split_networks_are_refused(tmp_path, script, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"ACCELERATE_USE_{name} must not be set.*accelerate launch --multi_gpu"):
        script.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradient_accumulation_from_the_environment_is_refused(tmp_path, script, monkeypatch):
    """`Accelerator` reads the variable, and it wins over the argument."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be 1 or unset, got '4'"):
        script.train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert make_accelerator("no", (), tmp_path).gradient_accumulation_steps == 1
