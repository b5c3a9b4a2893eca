"""Copies of networks in eval mode: equal outputs, and an unchanged original."""

from types import MethodType

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import convert_outputs_to_fp32
from tiny_generator import tiny_generator
from torch.nn.utils import parametrize
from torch.testing import assert_close

from hf_ebm import MLPEnergyConfig, MLPEnergyModel, ResNetEnergyConfig, ResNetEnergyModel
from hf_ebm.models.eval_copy import eval_copy, in_eval


def residual_energy(**settings):
    torch.manual_seed(0)
    return ResNetEnergyModel(
        ResNetEnergyConfig(image_size=8, num_channels=1, block_out_channels=(8, 12), num_downsamples=1, **settings)
    )


def state_of(model):
    """All that a call could have changed: modes, flags, values, attributes."""
    return (
        [(module.training, sorted(vars(module)), type(module)) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        {key: value.clone() for key, value in model.state_dict().items()},
    )


def same_state(model, before):
    modes, flags, values = state_of(model)
    return (modes, flags) == before[:2] and all(torch.equal(value, before[2][key]) for key, value in values.items())


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_computes_the_models_eval_output_and_leaves_it_unchanged(training):
    model, x = residual_energy(), torch.randn(3, 1, 8, 8)
    model(x)
    expected = model.eval()(x).energy
    model.train(training).head.requires_grad_(False)
    model.blocks[0].eval()  # frozen and put in eval mode by the user, in part
    before = state_of(model)
    copied = eval_copy(model)
    assert_close(copied(x).energy, expected)
    x.requires_grad_(True)
    torch.autograd.grad(copied(x).energy.sum(), x)
    copied.train().to(torch.float64)
    assert same_state(model, before)


def test_a_copy_shares_memory_and_is_frozen():
    model = MLPEnergyModel(MLPEnergyConfig(num_timesteps=1)).train()
    copied = eval_copy(model)
    assert not any(module.training for module in copied.modules())
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr() and not mine.requires_grad and theirs.requires_grad


def test_weights_of_spectral_norm_are_computed_once():
    model, calls = residual_energy(), []
    for module in model.modules():
        if parametrize.is_parametrized(module):
            module.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    copied, number = eval_copy(model), len(calls)
    assert number == 2 * 3 + 1
    copied(torch.randn(2, 1, 8, 8))
    assert len(calls) == number


def test_a_model_in_eval_mode_needs_no_copy():
    model = tiny_generator().eval()
    assert in_eval(model) is model
    model.norm_out.train()
    assert in_eval(model) is not model


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_forwards_wrapped_by_accelerate_run_on_the_copy(batch_norm):
    """Autocast and device hooks replace ``forward`` by one that is bound to the module."""
    model, z = tiny_generator(sampling_batch_norm=batch_norm).train(), torch.randn(6, 4)
    expected = model.for_sampling()(z).sample
    running = model.norm_out.running_mean.clone()
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    for block in model.blocks:
        add_hook_to_module(block, AlignDevicesHook(execution_device="cpu"))
    assert_close(model.for_sampling()(z).sample, expected, rtol=0, atol=0)
    assert torch.equal(model.norm_out.running_mean, running)

    model = tiny_generator(sampling_batch_norm=batch_norm).train()
    expected = model.for_sampling()(z).sample
    autocast = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(autocast), model)  # as `Accelerator.prepare` does
    found = model.for_sampling()(z).sample
    assert_close(found, expected, rtol=0.1, atol=0.05)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("offload", ["cpu_offload", "cpu_offload_with_hook"])
def test_offloaded_weights_move_in_the_copy(offload):
    model, x = residual_energy(), torch.randn(3, 1, 8, 8)
    expected = model.eval()(x).energy
    getattr(accelerate, offload)(model, execution_device=torch.device("cpu"))
    model.train()
    before = state_of(model) if offload == "cpu_offload_with_hook" else None
    energy = eval_copy(model)(x.requires_grad_(True)).energy
    assert_close(energy, expected)
    torch.autograd.grad(energy.sum(), x)
    assert before is None or same_state(model, before)
    if offload == "cpu_offload":
        assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_layerwise_casting(training):
    """Its hooks hold on to the module, which is itself used in eval mode: batch statistics would have to change it."""
    model, z = tiny_generator().train(), torch.randn(6, 4)
    expected = model.for_sampling()(z).sample
    model.enable_layerwise_casting(torch.bfloat16, torch.float32)
    model.train(training)
    assert_close(model.for_sampling()(z).sample, expected, rtol=0.1, atol=0.05)
    assert not model.training
    model = tiny_generator(sampling_batch_norm="batch")
    model.enable_layerwise_casting(torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="sampling_batch_norm must be 'running' with diffusers' layerwise casting"):
        model.for_sampling()


def test_a_compiled_model_is_copied_without_its_compiled_call():
    model, z = tiny_generator().train(), torch.randn(6, 4)
    expected = eval_copy(model)(z).sample
    model.compile(backend="eager")
    assert_close(eval_copy(model)(z).sample, expected)
    assert_close(eval_copy(torch.compile(model, backend="eager"))(z).sample, expected)


def test_a_model_made_in_inference_mode_has_gradients():
    with torch.inference_mode():
        model, x = residual_energy(), torch.randn(3, 1, 8, 8)
        copied = eval_copy(model)
    x = x.clone().requires_grad_(True)
    assert torch.autograd.grad(copied(x).energy.sum(), x)[0].abs().max() > 0
