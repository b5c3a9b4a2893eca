"""The behaviour that every pipeline shares with diffusers' own."""

import pytest
import torch
from torch.testing import assert_close


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def pipe(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_is_the_last_state_as_it_is(pipe, dtype):
    """Nothing is clamped or rescaled: what a callback sets is returned."""
    pipe.to(dtype)
    value = torch.linspace(-3, 3, 2 * 64).reshape(2, 1, 8, 8).to(dtype)
    state = pipe(2, output_type="latent", callback_on_step_end=lambda *_: {"x": value.clone()}).images
    assert state.dtype == torch.float32
    assert_close(state, value.float(), rtol=0, atol=0)
