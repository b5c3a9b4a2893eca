"""DDAEBMScheduler: the diffusers contract, and the posterior it samples."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.testing import assert_close

from hf_ebm import DDAEBMScheduler, DiffusionCoefficients


def test_contract_and_config_round_trip(tmp_path):
    scheduler = DDAEBMScheduler(num_train_timesteps=3, beta_end=10.0, beta_schedule="vp_dense_start")
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [2, 1, 0] and len(scheduler) == 3
    scheduler.save_pretrained(tmp_path)
    again = DDAEBMScheduler.from_pretrained(tmp_path)
    assert_close(again.coefficients.betas, scheduler.coefficients.betas, rtol=0, atol=0)
    assert "trained_betas" in json.loads((tmp_path / "scheduler_config.json").read_text())


def test_step_samples_the_posterior():
    scheduler, q = DDAEBMScheduler(), DiffusionCoefficients.vp(4)
    x0_pred, x_next = torch.full((100_000, 1), 0.3), torch.full((100_000, 1), -0.8)
    for t in (3, 1):
        out = scheduler.step(x0_pred, t, x_next, generator=torch.Generator().manual_seed(t))
        ts = torch.full((1,), t)
        mean = q.posterior_mean(x0_pred[:1], x_next[:1], ts).item()
        std = q.posterior_variance[t].sqrt().item()
        assert abs(out.prev_sample.mean().item() - mean) < 4 * std / 100_000**0.5
        assert abs(out.prev_sample.std().item() / std - 1) < 0.01
    last = scheduler.step(x0_pred, 0, x_next, return_dict=False)[0]
    assert_close(last, q.posterior_mean(x0_pred, x_next, torch.zeros(100_000, dtype=torch.long)))


@pytest.mark.parametrize("t", [0, 1, 3])
def test_step_is_the_chains_own_posterior_to_the_bit(t):
    scheduler, random = DDAEBMScheduler(), torch.Generator().manual_seed(0)
    x0_pred, x_next = torch.randn(2, 5, 7, generator=random)
    out = scheduler.step(x0_pred, torch.tensor(t), x_next, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(out, scheduler.coefficients.posterior_sample(x0_pred, x_next, torch.full((5,), t), noise))


def test_generators_one_per_sample_and_one_for_all():
    scheduler, x = DDAEBMScheduler(), torch.zeros(2, 3)
    one = [torch.Generator().manual_seed(s) for s in (1, 2)]
    batch = scheduler.step(x, 2, x, generator=one).prev_sample
    alone = scheduler.step(x[1:], 2, x[1:], generator=[torch.Generator().manual_seed(2)]).prev_sample
    assert_close(batch[1:], alone)


@pytest.mark.parametrize("stock", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("schedule", ["vp_uniform", "vp_dense_start"])
def test_stock_schedulers_get_our_chain(stock, schedule):
    """Index t of a stock scheduler is our pair (t, t + 1): its alphas_cumprod[t] is our abar_{t+1}."""
    ours = DDAEBMScheduler(beta_schedule=schedule)
    theirs = stock.from_config(ours.config)
    assert_close(theirs.alphas_cumprod, ours.coefficients.alphas_cumprod[1:], rtol=1e-4, atol=1e-7)
    assert theirs.config.prediction_type == "sample" and not theirs.config.clip_sample
    theirs.set_timesteps(4)
    assert theirs.timesteps.tolist() == [3, 2, 1, 0]
    back = DDAEBMScheduler.from_config(theirs.config)
    assert_close(back.coefficients.betas, ours.coefficients.betas, rtol=0, atol=0)


def test_ddpm_step_is_our_posterior_away_from_the_first_noise():
    """DDPM lacks only the noise of our cleanest state (std 0.0105): its step agrees to that."""
    ours = DDAEBMScheduler()
    ddpm = DDPMScheduler.from_config(ours.config)
    x0_pred, x_next = torch.randn(4, 2).tanh(), torch.randn(4, 2)
    for t in (3, 2, 1, 0):
        a = ours.step(x0_pred, t, x_next, generator=torch.Generator().manual_seed(0)).prev_sample
        b = ddpm.step(x0_pred, t, x_next, generator=torch.Generator().manual_seed(0)).prev_sample
        assert_close(a, b, rtol=0, atol=2e-3)


@pytest.mark.parametrize("num_inference_steps", [1, 3, 5, 50])
def test_steps_it_cannot_do(num_inference_steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        DDAEBMScheduler().set_timesteps(num_inference_steps)


def test_bad_arguments():
    with pytest.raises(ValueError, match="prediction_type"):
        DDAEBMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match="beta_schedule"):
        DDAEBMScheduler(beta_schedule="cosine")
    with pytest.raises(ValueError, match="timestep"):
        DDAEBMScheduler().step(torch.zeros(1, 2), 4, torch.zeros(1, 2))
