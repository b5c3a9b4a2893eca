"""DDAEBM's train step against the reference implementation, its options included."""

import copy

import pytest
import torch
from accelerate import Accelerator

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.models.presets import build_ddaebm_models
from hf_ebm.training.config import make_settings
from hf_ebm.training.train_ddaebm import DDAEBMSettings, make_model_settings, make_train_state, train_step

TINY = {"models": {"unet": {"base_channels": 8}, "inference": {"block_out_channels": [8, 16]}}, "latent_dim": 4}


def moments(optimizer):
    """With beta_1 = 0 Adam's first moment is the gradient itself."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.cat([optimizer.state[parameter]["exp_avg"].flatten() for parameter in parameters])


@pytest.mark.parametrize("interval", [1, 3])
def test_the_step_is_the_literal_one(import_benchmark, interval):
    """The same terms and gradients on the same random numbers; a lazy penalty is as many times as heavy."""
    literal = import_benchmark("literal_ddaebm")
    s = make_settings(DDAEBMSettings, {**TINY, "r1_interval": interval, "r1_weight": 0.05, "latent_weight": 0.3})
    torch.manual_seed(0)
    models = build_ddaebm_models(make_model_settings(s))
    torch.nn.init.normal_(models[1].unet.conv_out.weight, std=0.02)  # else the energy does not depend on its weights
    for model in models:
        for module in model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # the two sides would draw other masks
    other = literal.LiteralDDAEBM(
        copy.deepcopy(models),
        make_settings(DDAEBMSettings, {**TINY, "r1_weight": interval * 0.05, "latent_weight": 0.3}),
    )
    state, _ = make_train_state(s, Accelerator(cpu=True), models, steps_per_epoch=1)
    x = to_model_range(load_digits("train")[0])[:8]
    torch.manual_seed(1)
    wanted = other.step(x, literal.draw(x, 4, 4))
    torch.manual_seed(1)
    found = train_step(x, 0, state, s)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name in ("energy", "generator"):
        got, want = (moments(getattr(side, f"{name}_optimizer")) for side in (state, other))
        assert (got - want).norm() < 1e-3 * want.norm(), name
