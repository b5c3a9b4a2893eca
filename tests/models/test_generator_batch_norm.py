"""The generator's batch norm: the statistics used in samples and in chains, and those updated."""

import pytest
import torch
from tiny_generator import tiny_generator
from torch.testing import assert_close

from hf_ebm import ResNetGeneratorModel


def statistics(model):
    return {key: value.clone() for key, value in model.named_buffers()}


def unchanged(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_sampling_uses_the_statistics_of_the_setting_and_moves_none(batch_norm, training):
    model, z = tiny_generator(sampling_batch_norm=batch_norm).train(training), torch.randn(6, 4)
    before, sampler = statistics(model), model.for_sampling()
    together, alone = sampler(z).sample, sampler(z[:3]).sample
    independent = torch.allclose(together[:3], alone, atol=1e-5)
    assert independent == (batch_norm == "running")
    assert model.training == training and unchanged(model, before)
    model.train()(z)
    assert not unchanged(model, before)  # tracked again afterwards


@pytest.mark.parametrize("setting", ["frozen", "updated"])
def test_z_chain_of_training(setting):
    model, z = tiny_generator(chain_running_statistics=setting).train(), torch.randn(6, 4)
    before = statistics(model)
    with model.z_chain():
        in_chain = model(z).sample
    assert unchanged(model, before) == (setting == "frozen")
    assert model.training
    assert_close(model(z).sample, in_chain)  # both by the batch's statistics
    assert not unchanged(model, before)


def test_without_batch_norm_samples_are_independent():
    model, z = ResNetGeneratorModel(8, 1, 4, block_out_channels=(8, 8), batch_norm=False).train(), torch.randn(6, 4)
    assert not list(model.buffers())
    assert_close(model(z).sample[:3], model(z[:3]).sample)
    with model.z_chain():
        assert model(z).sample.shape == model.for_sampling()(z).sample.shape == (6, 1, 8, 8)
