"""The device on which a network computes, with and without offloading hooks."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, CpuOffload, add_hook_to_module
from tiny_generator import tiny_generator

from hf_ebm.utils.torch_utils import execution_device


def whole(model):
    add_hook_to_module(model, CpuOffload("meta"))


def inside(model):
    """As sequential offloading does: the network's own hook names no device."""
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    add_hook_to_module(model.conv_out, AlignDevicesHook("meta"))


def several(model):
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    add_hook_to_module(model, AlignDevicesHook("meta"), append=True)


@pytest.mark.parametrize("hook", [whole, inside, several])
def test_hooks_name_the_device(hook):
    model = tiny_generator()
    assert execution_device(model) == torch.device("cpu")
    hook(model)
    assert execution_device(model) == torch.device("meta")


@pytest.mark.parametrize("offload", [cpu_offload, cpu_offload_with_hook])
def test_offloading_to_compute_on_the_cpu(offload):
    model = tiny_generator()
    offload(model, "cpu")
    assert execution_device(model) == torch.device("cpu")


def test_without_hooks_it_is_where_the_parameters_are():
    assert execution_device(tiny_generator().to("meta")) == torch.device("meta")
