"""The DDAEBM script: it learns, and its options run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_ebm import DDAEBMPipeline, DiffusionCoefficients
from hf_ebm.hub.model_card import TOY_METRICS
from hf_ebm.training.checkpointing import list_checkpoints
from hf_ebm.training.config import CONFIGS, make_settings, read_yaml
from hf_ebm.training.train_ddaebm import DDAEBMSettings, reconstruction_log_variance, train

ROOT = Path(__file__).parents[2]
TINY = {
    "preset": "digits",
    "models": {
        "unet": {"base_channels": 8},
        "generator": {"latent_dim": 4},
        "inference": {"block_out_channels": [8, 16]},
    },
    "batch_size": 8,
    "max_steps": 4,
    "log_every": 1,
    "sample_every": 0,
    "checkpoint_every": 2,
    "num_grid_samples": 4,
}


def settings(output_dir, **changes):
    return make_settings(DDAEBMSettings, {**TINY, "output_dir": str(output_dir), **changes})


def test_training_learns(tmp_path):
    """After 40 tiny steps the generator reconstructs better and the energy separates noise from digits."""
    folder = train(
        settings(
            tmp_path / "run", max_steps=40, batch_size=16, energy_learning_rate=4e-3, generator_learning_rate=4e-3,
            checkpoint_every=0, ema_decay=0.9,
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mean = lambda key, part: sum(line[key] for line in part) / len(part)  # noqa: E731
    floor = 64 * DiffusionCoefficients.vp().posterior_variance.mean().item()  # the noise that nothing can predict
    assert mean("reconstruction", lines[-12:]) - floor < 0.85 * (mean("reconstruction", lines[:12]) - floor)
    from hf_ebm.data.digits import load_digits
    from hf_ebm.evaluation.sample_metrics import auroc

    pipe = DDAEBMPipeline.from_pretrained(folder)
    noise = torch.rand(360, 1, 8, 8)
    assert auroc(pipe.score(load_digits("test")[0]).energies, pipe.score(noise).energies) > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reconstruction_latent": "prior", "r1_interval": 2, "r1_include_transition": False},
        {"reconstruction_loss": "lsun_nll", "spacing": "dense_start", "reconstruction_min_variance": "posterior_t1"},
        {"reconstruction_loss": "gaussian_nll", "num_timesteps": 2, "r1_weight": [0.1, 0.2], "max_grad_norm": 1.0},
        {
            "preset": "toy",
            "dataset": "pinwheel",
            "num_toy_samples": 1000,
            "models": {"generator": {"hidden_dims": [16]}, "energy": {"hidden_dims": [16]}},
            "spacing": "quadratic",
            "noise_at_t0": True,
            "energy_magnitude_weight": 0.1,
            "reconstruction_loss": "gaussian_nll",
        },
        {"coupled_noise": True, "kl_weight": 0.5, "timestep_weights": [2.0, 1.0, 1.0, 0.0]},
        {"latent_dim": 0, "models": {"unet": {"base_channels": 8}}, "adversarial_weight": 0.0},
        {"horizontal_flip": True, "channels_last": True, "ema_decay": None, "mixed_precision": "bf16"},
    ],
    ids=["default", "prior-lazy", "lsun", "nll-T2-clip", "vectors", "coupled", "no-latent", "flip-bf16"],
)
def test_every_option_runs(tmp_path, changes):
    folder = train(settings(tmp_path / "run", max_steps=2, checkpoint_every=0, **changes))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert all(torch.isfinite(torch.tensor(float(value))) for value in record.values())
        if changes.get("r1_interval"):
            assert (record["gradient_penalty"] > 0) == (record["step"] == 1)  # penalised at steps 0, 2, ...


@pytest.mark.parametrize(("dataset", "figure"), [("pinwheel", "mass_near_data"), ("25gaussians", "mass_at_modes")])
def test_a_2d_run_computes_its_metrics_and_its_card_includes_them(tmp_path, dataset, figure):
    toy = {
        "preset": "toy",
        "dataset": dataset,
        "num_toy_samples": 1000,
        "models": {"generator": {"hidden_dims": [16]}, "energy": {"hidden_dims": [16]}},
        "noise_at_t0": True,
        "reconstruction_loss": "gaussian_nll",
    }
    folder = train(settings(tmp_path / "run", max_steps=1, checkpoint_every=0, **toy))
    metrics, card = json.loads((folder / "metrics.json").read_text()), (folder / "README.md").read_text()
    assert 0.0 <= metrics[figure] <= 1.0
    for name, value in metrics.items():
        assert f"| {TOY_METRICS[name]} | {value:.4g} |" in card
    assert "of shape (B, 2)" in card and "pixels" not in card and "`hf-ebm calibrate`" not in card


def test_lsun_clamps_the_reconstruction_variance_at_the_posteriors_second_entry():
    """The published setting: 0.212 for the times of ``dense_start``; larger variances stay."""
    lsun = make_settings(DDAEBMSettings, read_yaml(CONFIGS / "ddaebm_lsun128.yaml"))
    q = DiffusionCoefficients.vp(lsun.num_timesteps, lsun.beta_min, lsun.beta_max, lsun.spacing)
    variance = reconstruction_log_variance(q, lsun.reconstruction_min_variance).exp()
    expected = q.posterior_variance.clone()
    expected[0] = expected[1]
    torch.testing.assert_close(variance, expected)
    assert variance[:2].tolist() == pytest.approx([0.212, 0.212], abs=5e-4) and variance[2:].min() > 0.212
    torch.testing.assert_close(reconstruction_log_variance(q, 0.3).exp(), q.posterior_variance.clamp(min=0.3))


def test_saved_weights_are_the_emas(tmp_path):
    """With decay d the saved weights are the running average of the trained ones; without, the trained ones."""
    plain = train(
        settings(tmp_path / "plain", ema_decay=None, max_steps=3, checkpoint_every=1, checkpoints_total_limit=None)
    )
    averaged = train(settings(tmp_path / "ema", ema_decay=0.5, max_steps=3, checkpoint_every=0))
    key, average = "unet.conv_in.weight", torch.zeros(())
    for step, checkpoint in enumerate(list_checkpoints(plain / "checkpoints"), start=1):
        weight = load_file(checkpoint / "model.safetensors")[key]
        decay = 0.0 if step == 1 else min(0.5, step / (9 + step))  # EMAModel's warm-up
        average = decay * average + (1 - decay) * weight
    saved = load_file(averaged / "generator_model" / "diffusion_pytorch_model.safetensors")[key]
    torch.testing.assert_close(saved, average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved, weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5000}, "batch_size must be at most the data set's 1437"),
        ({"batch_size": 0}, "batch_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1.*got 2. Use a larger batch_size"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"reconstruction_loss": "l1"}, "reconstruction_loss"),
        ({"r1_weight": [0.1, 0.2]}, "r1_weight"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"timestep_weights": [1.0, 1.0]}, "timestep_weights"),
        ({"adam_betas": [0.9]}, "adam_betas"),
        ({"trackers": ["comet"]}, "trackers"),
        ({"spacing": "cosine"}, "spacing"),
        ({"dataset": "25gaussians"}, "samples of shape"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit"),
        ({"max_runtime_seconds": 0.0}, "max_runtime_seconds"),
        ({"padding": -1}, "padding must be >= 0"),
        ({"padding": 2}, "padding must be 0 for the embedded data set 'digits'"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"energy_learning_rate": float("nan")}, "energy_learning_rate must be positive"),
        ({"generator_learning_rate": -1.0}, "generator_learning_rate must be positive"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": 2**32}, "seed must be under"),
        ({"num_timesteps": 0}, "num_timesteps must be >= 1"),
        ({"adam_betas": [0.0, 1.5]}, "adam_betas must be two numbers in"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"final_learning_rate": -1.0}, "final_learning_rate must be >= 0"),
        ({"r1_weight": float("nan")}, "r1_weight must be"),
        ({"latent_weight": -1.0}, "latent_weight must be >= 0"),
        ({"kl_weight": float("inf")}, "kl_weight must be >= 0"),
        ({"reconstruction_min_variance": -1.0}, "reconstruction_min_variance must be positive"),
        (
            {"reconstruction_min_variance": "first"},
            "reconstruction_min_variance must be a positive number or 'posterior_t1'",
        ),
        ({"reconstruction_min_variance": "posterior_t1", "num_timesteps": 1}, "needs num_timesteps >= 2, got 1"),
        ({"beta_min": 30.0}, "beta_min < beta_max"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
