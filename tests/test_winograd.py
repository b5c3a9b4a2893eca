"""Winograd's convolutions against PyTorch's in float64: values, gradients, second derivatives, and who gets them."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_ebm import winograd
from hf_ebm.winograd import WinogradConvolutions


@pytest.fixture(autouse=True)
def _as_on_a_cpu_without_avx512(monkeypatch):
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 128)


def largest_difference(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def derivatives(x, weight, bias):
    """The result, its first derivatives, and those of a penalty on the first, as gradient penalties take them."""
    result = F.conv2d(x, weight, bias, padding=1)
    loss = (result * result.sigmoid()).sum()
    grads = torch.autograd.grad(loss, (x, weight, bias), create_graph=True)
    return result, *grads, *torch.autograd.grad(grads[0].square().sum(), (x, weight))


@pytest.mark.parametrize("shape", [(3, 4, 12), (1, 8, 4), (7, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_derivatives_are_those_of_a_direct_convolution(shape, memory_format, monkeypatch):
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 2)  # several pieces, by images and by rows
    torch.manual_seed(0)
    x = torch.randn(shape[0], 192, *shape[1:]).to(memory_format=memory_format).requires_grad_()
    weight = (torch.randn(200, 192, 3, 3) / 40).requires_grad_()
    bias = torch.randn(200, requires_grad=True)
    want = derivatives(*(tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)))
    with WinogradConvolutions():
        got = derivatives(x, weight, bias)
    direct = derivatives(x, weight, bias)
    assert not torch.equal(got[0], direct[0])  # another algorithm did it
    for one, other in zip(got, want, strict=True):
        assert largest_difference(one, other) < 3e-5


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    calls = []
    own = winograd.weight_gradient
    monkeypatch.setattr(winograd, "weight_gradient", lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    layer, x = nn.Conv2d(192, 192, 3, padding=1), torch.randn(8, 192, 8, 8, requires_grad=True)
    with WinogradConvolutions():
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        assert not calls
        grad.sum().backward()
    assert len(calls) == 2 and layer.weight.grad.abs().sum() > 0


def test_a_weight_that_changes_is_transformed_anew_and_one_that_is_gone_forgotten(monkeypatch):
    layer, x = nn.Conv2d(192, 192, 3, padding=1), torch.randn(8, 192, 8, 8)
    calls = []
    get = winograd.TransformedWeight.__init__
    monkeypatch.setattr(winograd.TransformedWeight, "__init__", lambda *a: (calls.append(1), get(*a))[1])
    convolutions = WinogradConvolutions()
    with torch.no_grad(), convolutions:
        first = layer(x)
        assert torch.equal(layer(x), first) and len(calls) == 1
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0, fused=True)  # which raises no tensor's version
    ((layer.weight.square().sum() + layer.bias.square().sum()) / 2).backward()
    optimizer.step()  # w - 2 w
    with torch.no_grad(), convolutions:
        assert largest_difference(layer(x), -first) < 1e-5 and len(calls) == 2
    assert len(convolutions.transformed) == 1
    del layer, optimizer
    gc.collect()
    assert len(convolutions.transformed) == 0


@pytest.mark.parametrize(
    ("size", "weight_shape", "options"),
    [
        ((4, 192, 16, 16), (96, 192, 3, 3), {"padding": 1}),  # narrow
        ((4, 192, 16, 16), (192, 192, 1, 1), {}),
        ((4, 192, 16, 16), (192, 192, 3, 3), {}),
        ((4, 192, 16, 16), (192, 192, 3, 3), {"padding": 1, "stride": 2}),
        ((4, 192, 16, 16), (192, 192, 3, 3), {"padding": 1, "dilation": (1, 2)}),
        ((4, 384, 16, 16), (384, 192, 3, 3), {"padding": 1, "groups": 2}),
        ((4, 192, 14, 16), (192, 192, 3, 3), {"padding": 1}),
        ((1, 192, 16, 16), (192, 192, 3, 3), {"padding": 1}),  # few tiles
        ((192, 16, 16), (192, 192, 3, 3), {"padding": 1}),
        ((4, 192, 16, 16), (192, 192, 3, 3), {"padding": "same"}),
    ],
)
def test_other_convolutions_are_left_to_pytorch(size, weight_shape, options):
    x, weight = torch.randn(size), torch.randn(weight_shape)
    want = F.conv2d(x, weight, **options)
    with WinogradConvolutions():
        assert torch.equal(F.conv2d(x, weight, **options), want)


def test_other_precisions_are_left_to_pytorch():
    x, weight = torch.randn(4, 192, 16, 16), torch.randn(192, 192, 3, 3)
    want = F.conv2d(x.double(), weight.double(), padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = F.conv2d(x, weight, padding=1)
        with WinogradConvolutions():
            assert torch.equal(F.conv2d(x, weight, padding=1), low)
    with WinogradConvolutions():
        assert torch.equal(F.conv2d(x.double(), weight.double(), padding=1), want)
