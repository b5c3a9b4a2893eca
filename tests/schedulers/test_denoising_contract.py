"""Which schedulers follow a DDAEBM's denoising chain, and the warning for one that does not."""

import logging
import re

import diffusers
import pytest
import torch

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
from hf_ebm.schedulers.denoising_contract import contract_violation

CHAINS = [(4, "vp_uniform"), (4, "vp_quadratic"), (4, "vp_dense_start"), (8, "vp_uniform")]


def made(name, chain=(4, "vp_uniform"), **settings):
    num_timesteps, schedule = chain
    base = DDAEBMScheduler(num_timesteps, beta_schedule=schedule)
    return base if name == "ours" else getattr(diffusers, name).from_config(base.config, **settings)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize(
    "name", ["ours", "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"]
)
def test_ancestral_sampling_and_ddim_follow_the_chain(name, chain):
    for ndim, bound in ((3, 1.0), (1, 3.0)):
        assert contract_violation(made(name, chain), chain[0], ndim, bound) is None
    if name != "ours":
        assert contract_violation(made(name, chain), chain[0] // 2) is None


@pytest.mark.parametrize("settings", [{"clip_sample": True}, {"thresholding": True}])
def test_clipping_is_a_violation_only_beyond_the_range_of_the_data(settings):
    assert contract_violation(made("DDIMScheduler", **settings), 4) is None
    assert contract_violation(made("DDIMScheduler", **settings), 4, bound=3.0) is not None


@pytest.mark.parametrize(
    ("name", "settings", "num_steps", "violation"),
    [
        ("HeunDiscreteScheduler", {}, 2, r"timesteps are \[3.0, 0.0, 0.0\]"),
        ("HeunDiscreteScheduler", {}, 4, "timesteps"),
        ("EulerDiscreteScheduler", {}, 4, "another distribution"),
        ("LMSDiscreteScheduler", {}, 4, "another distribution"),
        ("DEISMultistepScheduler", {}, 2, "last step"),
        ("SASolverScheduler", {}, 2, "last step"),
        ("DPMSolverMultistepScheduler", {}, 4, "timesteps"),
        ("UniPCMultistepScheduler", {}, 4, "timesteps"),
        ("IPNDMScheduler", {}, 4, "timesteps"),
        ("CogVideoXDDIMScheduler", {}, 4, "another distribution"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, 4, "another distribution"),
        ("DDIMScheduler", {"set_alpha_to_one": False}, 4, "last step"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2, 0.3, 0.999]}, 4, "another distribution"),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 3, "another distribution"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, 2, "another distribution"),
    ],
)
def test_what_does_not_follow_the_chain(name, settings, num_steps, violation):
    assert re.search(violation, contract_violation(made(name, **settings), num_steps))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_solvers_that_mix_predictions_of_several_timesteps(name):
    """Their timesteps and their last step are right: only the earlier predictions in a step are not."""
    for num_steps in (3, 5):
        assert "another distribution" in contract_violation(made(name, (8, "vp_uniform")), num_steps)


def test_betas_of_another_kind():
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=4, prediction_type="sample")
    assert contract_violation(scheduler, 4) == "its betas are not those of a DDAEBM's chain"


def test_the_scheduler_itself_is_not_touched():
    scheduler = made("DPMSolverMultistepScheduler")
    before = {key: str(value) for key, value in vars(scheduler).items()}
    contract_violation(scheduler, 4)
    assert {key: str(value) for key, value in vars(scheduler).items()} == before


def test_a_pipeline_warns_of_a_scheduler_once(tiny_pipeline, caplog):
    def warnings():
        found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        return [message for message in found if "will not follow the model's denoising posterior" in message]

    ours = tiny_pipeline.scheduler
    for stock in ("DDPMScheduler", "DDIMScheduler"):
        tiny_pipeline.scheduler = getattr(diffusers, stock).from_config(ours.config)
        tiny_pipeline(2, num_inference_steps=2)
    assert warnings() == []
    state = torch.get_rng_state()
    tiny_pipeline.scheduler = diffusers.HeunDiscreteScheduler.from_config(ours.config)
    tiny_pipeline(2, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    (message,) = warnings()
    assert torch.equal(torch.get_rng_state(), state)
    assert "HeunDiscreteScheduler" in message and "DDAEBMScheduler, DDPMScheduler and DDIMScheduler do" in message
    tiny_pipeline(2, num_inference_steps=2)
    assert warnings() == []
    tiny_pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    tiny_pipeline(2, num_inference_steps=2)
    other = DDAEBMPipeline.from_pipe(tiny_pipeline)
    other(2, num_inference_steps=2)
    assert ["Euler" in message for message in warnings()] == [True, True]


def test_a_call_warns_once_if_it_skips_the_noisiest_level(tiny_pipeline, caplog):
    def warnings():
        found = [record.getMessage() for record in caplog.records if "noisiest level" in record.getMessage()]
        caplog.clear()
        return found

    tiny_pipeline(2)
    tiny_pipeline.scheduler = diffusers.DDIMScheduler.from_config(tiny_pipeline.scheduler.config)
    tiny_pipeline(2)
    assert warnings() == []
    for num_steps, first in ((3, 2), (2, 2), (1, 0)):
        tiny_pipeline(2, num_inference_steps=num_steps)
        (message,) = warnings()
        assert message.startswith(f"num_inference_steps={num_steps}: the timesteps of DDIMScheduler begin at {first}, ")
        assert "pass num_inference_steps=4" in message
