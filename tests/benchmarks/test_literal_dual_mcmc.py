"""Dual-MCMC Teaching's train step against the reference implementation."""

import copy

import pytest
import torch
from accelerate import Accelerator

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models
from hf_ebm.models.resnet_energy import EnergyBlock
from hf_ebm.training.config import make_settings
from hf_ebm.training.train_dual_mcmc import DualMCMCSettings, make_model_settings

TINY = {
    "models": {
        "generator": {"block_out_channels": [8, 8]},
        "energy": {"block_out_channels": [8, 8]},
        "inference": {"block_out_channels": [8, 16]},
    },
    "latent_dim": 4,
}


def tiny_models(settings):
    torch.manual_seed(0)
    return build_dual_mcmc_models(make_model_settings(settings))


def test_the_step_is_the_literal_one(import_benchmark):
    """The check that the benchmark makes before it times anything: equal terms from equal weights and numbers."""
    settings = make_settings(DualMCMCSettings, TINY)
    benchmark, models, x = (
        import_benchmark("dual_mcmc_step"),
        tiny_models(settings),
        to_model_range(load_digits("train")[0])[:8],
    )
    found = benchmark.agreement(models, x, settings, Accelerator(cpu=True))
    assert set(found) == {"energy_data", "energy_revised", "reconstruction", "teaching", "inference"}
    assert max(found[name] for name in ("energy_data", "reconstruction", "teaching", "inference")) < 1e-3


def test_another_step_is_an_error(import_benchmark, monkeypatch):
    """A step that is not the literal one ends the benchmark before it times anything."""
    benchmark = import_benchmark("dual_mcmc_step")
    settings = make_settings(DualMCMCSettings, TINY)
    plain = benchmark.LiteralDualMCMC.z_chain
    monkeypatch.setattr(benchmark.LiteralDualMCMC, "z_chain", lambda side, z, x: 1.01 * plain(side, z, x))
    with pytest.raises(SystemExit, match=r"do not agree: .*inference\. Nothing was timed"):
        benchmark.agreement(
            tiny_models(settings), to_model_range(load_digits("train")[0])[:8], settings, Accelerator(cpu=True)
        )


def test_the_published_chain_moves_spectral_norms_estimate(import_benchmark):
    """As published every chain step is a training forward; without, the chain leaves the estimate as it is."""
    literal = import_benchmark("literal_dual_mcmc")
    settings = make_settings(DualMCMCSettings, {**TINY, "x_num_steps": 2})
    x = to_model_range(load_digits("train")[0])[:8]
    for in_chain in (True, False):
        side = literal.LiteralDualMCMC(copy.deepcopy(tiny_models(settings)), settings, in_chain)
        before = {name: value.clone() for name, value in side.energy.named_buffers()}
        side.x_chain(x)
        moved = [name for name, value in side.energy.named_buffers() if not torch.equal(value, before[name])]
        assert bool(moved) is in_chain
        assert sum(isinstance(module, EnergyBlock) for module in side.energy.modules()) > 0
