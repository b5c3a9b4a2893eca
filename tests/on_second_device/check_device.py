"""The second device computes, and rejects what a GPU rejects."""

import copy

import pytest
import torch
from second_device import WAITS
from torch import nn
from torch.testing import assert_close

SECOND = torch.device("second", 0)


def test_networks_learn_there_as_on_the_cpu():
    start = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten())
    x = torch.randn(2, 1, 5, 5)

    def learn(device):
        network = copy.deepcopy(start).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(2):
            inputs = x.to(device).requires_grad_()
            (slope,) = torch.autograd.grad(network(inputs).square().sum(), inputs, create_graph=True)
            optimizer.zero_grad()
            slope.square().sum().backward()
            optimizer.step()
        assert {parameter.device.type for parameter in network.parameters()} == {torch.device(device).type}
        return [parameter.detach().cpu() for parameter in network.parameters()]

    for here, there, before in zip(learn("cpu"), learn(SECOND), start.parameters(), strict=True):
        assert_close(here, there)
        assert (here - before).abs().max() > 0.01


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there @ here,
        lambda here, there: torch.stack([there, here]),
        lambda here, there: there.add_(here),
        lambda here, there: there.numpy(),
        lambda here, there: torch.randn(2, generator=torch.Generator(), device=SECOND),
        lambda here, there: torch.randn(2, generator=torch.Generator(SECOND)),
        lambda here, there: nn.Linear(2, 2)(there),
    ],
)
def test_devices_do_not_mix(mix):
    with pytest.raises(RuntimeError):
        mix(torch.ones(2, 2), torch.ones(2, 2, device=SECOND))


def test_views_and_changes_in_place_reach_the_tensor():
    x = torch.zeros(2, 3, device=SECOND)
    x[0] += 1
    x.view(-1)[-1] = 5
    x.unsqueeze_(0)
    assert x.shape == (1, 2, 3) and x.tolist() == [[[1, 1, 1], [0, 0, 5]]]


@pytest.mark.parametrize(
    "read", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.to("cpu")]
)
def test_what_waits_for_the_device_is_counted(read):
    x = torch.ones((), device=SECOND)
    WAITS.clear()
    _ = (x + 1) * 2
    assert not WAITS
    read(x)
    assert sum(WAITS.values()) == 1


@pytest.mark.parametrize("write", [lambda x, value: value.to(SECOND), lambda x, value: x.copy_(value)])
def test_so_is_a_copy_to_it(write):
    x, value = torch.ones((), device=SECOND), torch.zeros(())
    WAITS.clear()
    write(x, value)
    assert sum(WAITS.values()) == 1
