"""The Dual-MCMC script: its step is the published one, it learns, and its options run."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from hf_ebm import DualMCMCPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.data.loading import Classes
from hf_ebm.evaluation.sample_metrics import auroc
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models
from hf_ebm.training.config import make_settings
from hf_ebm.training.train_dual_mcmc import DualMCMCSettings, make_model_settings, make_train_state, train, train_step
from hf_ebm.training.trainer import TrainingDivergedError, prepare_models

TINY = {
    "latent_dim": 4,
    "models": {
        "generator": {"block_out_channels": [8, 8]},
        "energy": {"block_out_channels": [8, 8]},
        "inference": {"block_out_channels": [8, 16]},
    },
    "batch_size": 8,
    "max_steps": 3,
    "x_num_steps": 3,
    "z_num_steps": 2,
    "log_every": 1,
    "sample_every": 0,
    "checkpoint_every": 0,
    "num_grid_samples": 4,
}


def settings(**changes):
    return make_settings(DualMCMCSettings, {**TINY, **changes})


def literal_step(x, models, s, labels=None):
    """One iteration written out from the paper's Eq. 3, 6, 7, 10 and 15, with gradients by `backward` only.

    With labels, some of which are dropped, the energy is ``E(x) - tau log p(y | x)``, and ``E(x)`` where there is none.
    """
    generator, energy, inference = models
    tau, y = (s.x_noise_std / s.x_step_size) ** 2, None
    if labels is not None:
        y = labels.clone()
        y[torch.rand(len(x)) < s.label_dropout] = -1

    def energies_of(x, y):
        out = energy(x)
        if y is None or out.logits is None:
            return out.energy
        log_p = out.logits.log_softmax(1)
        return torch.stack([e if k < 0 else e - tau * row[k] for e, row, k in zip(out.energy, log_p, y, strict=True)])

    adam = lambda model, rate, decay: torch.optim.Adam(  # noqa: E731
        model.parameters(), lr=rate, betas=(0.0, 0.9), weight_decay=decay
    )
    optimizers = [
        adam(generator, s.generator_learning_rate, 5e-4),
        adam(energy, s.energy_learning_rate, 0.0),
        adam(inference, s.inference_learning_rate, 5e-4),
    ]
    batch = len(x)

    def x_chain(start, y=y):
        energy.eval()
        x = start.detach()
        for _ in range(s.x_num_steps):
            noise = torch.randn_like(x)
            x.requires_grad_(True)
            (grad,) = torch.autograd.grad(energies_of(x, y).sum(), x)
            x = (x - s.x_step_size**2 / 2 * grad + s.x_noise_std * noise).detach()
        energy.train()
        return x

    mean, logvar = inference(x, y, return_dict=False)
    z = torch.randn_like(mean)
    x_gen = generator(z, y).sample
    x_revised = x_chain(x_gen)
    noise = torch.randn_like(mean)
    z_revised = noise if s.z_start == "noise" else (mean + torch.exp(logvar / 2) * noise).detach()
    for _ in range(s.z_num_steps):
        noise = torch.randn_like(z_revised)
        z_revised.requires_grad_(True)
        error = ((generator(z_revised, y).sample - x) ** 2).sum() / s.likelihood_std**2
        (grad,) = torch.autograd.grad(error + (z_revised**2).sum() / 2, z_revised)
        z_revised = (z_revised - s.z_step_size**2 / 2 * grad + s.z_noise_std * noise).detach()

    loss = s.recon_weight * ((generator(z_revised, y).sample - x) ** 2).sum() / batch
    loss = loss + s.sample_weight * ((x_gen - x_revised) ** 2).sum() / batch
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()

    mean_gen, logvar_gen = inference(x_revised, y, return_dict=False)
    nll = lambda z, m, v: (v / 2 + (z - m) ** 2 / (2 * torch.exp(v))).sum() / batch  # noqa: E731
    optimizers[2].zero_grad()
    (nll(z_revised, mean, logvar) + s.latent_weight * nll(z, mean_gen, logvar_gen)).backward()
    optimizers[2].step()

    if s.energy_negatives != "first_chain":
        x_revised = generator(z, y).sample.detach()
    if s.energy_negatives == "second_chain":
        x_revised = x_chain(x_revised)
    if s.noised_negatives:  # half of the negatives are chains from noised data
        std = 1.5 * torch.rand(batch // 2)
        noised = (x[: batch // 2] + std[:, None, None, None] * torch.randn(batch // 2, *x.shape[1:])).clamp(-1, 1)
        x_revised[: batch // 2] = x_chain(noised, None if y is None else y[: batch // 2])
    energies = energies_of(torch.cat([x, x_revised]), None if y is None else torch.cat([y, y]))
    optimizers[1].zero_grad()
    loss = energies[:batch].mean() - energies[batch:].mean()
    squares = (energies[:batch] ** 2).mean() + (energies[batch:] ** 2).mean()
    loss = (loss + s.energy_magnitude_weight * squares) / tau
    if labels is not None and energy.class_scores is not None:
        logits = energy.eval()(x).logits  # without a further power iteration
        given = labels >= 0
        loss = loss - s.classification_weight * logits.log_softmax(1)[given, labels[given]].mean()
    loss.backward()
    optimizers[1].step()
    return optimizers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"z_start": "noise", "recon_weight": 0.3, "sample_weight": 7.0, "latent_weight": 0.5},
        {"energy_negatives": "first_chain", "energy_magnitude_weight": 40.0},
        {"energy_negatives": "generator", "x_num_steps": 0, "z_num_steps": 0},
        {"energy_negatives": "first_chain", "noised_negatives": 0.5},
        {"class_conditional": True, "label_dropout": 0.4},
        {
            "class_conditional": True,
            "label_dropout": 0.4,
            "class_scores": True,
            "classification_weight": 3.0,
            "noised_negatives": 0.5,
            "x_step_size": 3.0,
            "x_noise_std": 3.0,  # temperature 1: the class scores are as large as the energy
        },
    ],
    ids=["published", "noise-weights", "first-chain-magnitude", "no-chains", "noised-negatives", "labels", "scores"],
)
def test_the_step_is_the_published_one(changes):
    """Same noise, same weights: after an iteration all three networks agree with the written-out version."""
    s = settings(**{"x_noise_std": 0.01, "x_step_size": 0.7, **changes})
    labels = torch.tensor([3, 1, -1, 9, 0, 3, 7, 2]) if s.class_conditional else None
    models = build_dual_mcmc_models(make_model_settings(s, None if labels is None else Classes([0.1] * 10)))
    if s.class_scores:
        torch.nn.init.normal_(models[1].class_scores.weight, std=0.3)
    prepare_models(models, s)
    literal = copy.deepcopy(models)
    before = [parameter.clone() for model in models for parameter in model.parameters()]
    state, _ = make_train_state(s, Accelerator(cpu=True), models, steps_per_epoch=1)
    x = to_model_range(load_digits("train")[0][:8])
    torch.manual_seed(1)
    train_step(x, 0, state, s, labels)
    torch.manual_seed(1)
    literal_optimizers = literal_step(x, literal, s, labels)
    # with beta_1 = 0 Adam's first moment is the gradient itself: it sees a wrong factor, which the update does not
    for index, name in enumerate(("generator", "energy", "inference")):
        optimizer, other = getattr(state, f"{name}_optimizer"), literal_optimizers[index]
        got = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in models[index].parameters()])
        want = torch.cat([other.state[p]["exp_avg"].flatten() for p in literal[index].parameters()])
        assert (got - want).norm() < 1e-3 * want.norm(), name
    names = [f"{i}.{name}" for i, model in enumerate(models) for name, _ in model.named_parameters()]
    ours = [parameter for model in models for parameter in model.parameters()]
    theirs = [parameter for model in literal for parameter in model.parameters()]
    for name, a, b, old in zip(names, ours, theirs, before, strict=True):
        assert not torch.equal(a, old), name
        # Adam's first step has the size of the learning rate whatever the gradient's: its sign is what is compared,
        # and where a gradient is nothing but rounding it may differ
        agree = torch.isclose(a, b, rtol=0, atol=1e-6).float().mean()
        assert agree > 0.98 or a.numel() < 10, (name, agree)


def test_training_learns(tmp_path):
    """After 120 small steps reconstructions are better, the z-chain improves them, and noise has a high energy."""
    s = settings(
        output_dir=str(tmp_path / "run"), max_steps=120, batch_size=32, z_num_steps=5, x_step_size=8.0,
        generator_learning_rate=4e-3, energy_learning_rate=2e-3, inference_learning_rate=4e-3, sample_weight=5.0,
        energy_negatives="first_chain", ema_decay=0.9, x_noise_std=0.03,
    )  # fmt: skip
    folder = train(s)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mean = lambda part: sum(line["reconstruction"] for line in part) / len(part)  # noqa: E731
    assert mean(lines[-10:]) < 0.6 * mean(lines[:10])
    pipe = DualMCMCPipeline.from_pretrained(folder)
    assert pipe.scheduler.temperature == pytest.approx(s.temperature) and pipe.latent_scheduler.step_size == 0.1
    pipe.set_progress_bar_config(disable=True)
    digits = load_digits("test")[0][:100]
    random = torch.Generator().manual_seed(0)
    recon = pipe.reconstruct(digits, 10, generator=random, output_type="pt", output_squared_errors=True)
    errors = recon.squared_errors.mean(dim=1)
    assert errors[-1] < 0.8 * errors[0]
    noise = torch.rand(100, 1, 8, 8)
    assert auroc(pipe.score(digits).energies, pipe.score(noise).energies) > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"energy_negatives": "first_chain", "z_start": "noise", "energy_magnitude_weight": 0.1},
        {"energy_negatives": "generator", "learning_rate_schedule": "cosine"},
        {"x_num_steps": 0, "z_num_steps": 0, "max_grad_norm": 1.0, "ema_decay": 0.9},
        {"mixed_precision": "bf16", "channels_last": True, "horizontal_flip": True},
        {
            "preset": "toy",
            "dataset": "25gaussians",
            "num_toy_samples": 1000,
            "models": {"generator": {"hidden_dims": [16]}, "energy": {"hidden_dims": [16]}},
            "latent_dim": None,
            "x_step_size": 0.1,
        },
        {
            "models": {
                "energy": {"power_iteration": "every_forward", "block_out_channels": [8, 8]},
                "generator": {
                    "chain_running_statistics": "updated",
                    "sampling_batch_norm": "batch",
                    "block_out_channels": [8, 8],
                },
            }
        },
    ],
    ids=["published", "reuse-noise", "generator-cosine", "no-chains-clip", "bf16", "vectors", "as-published-code"],
)
def test_every_option_runs(tmp_path, changes):
    folder = train(settings(output_dir=str(tmp_path / "run"), **changes))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert all(torch.isfinite(torch.tensor(float(value))) for value in json.loads(line).values())
    if changes.get("x_num_steps") == 0:
        assert json.loads(line)["teaching"] == 0
    pipe = DualMCMCPipeline.from_pretrained(folder)
    assert torch.isfinite(pipe(2, num_inference_steps=1, output_type="pt").images).all()


def test_saved_batch_norm_fits_the_averaged_weights(tmp_path):
    """Samples in eval mode look like those under their own batch's statistics, though the weights are averages."""
    folder = train(
        settings(output_dir=str(tmp_path / "run"), ema_decay=0.9, max_steps=10, generator_learning_rate=1e-2)
    )
    generator_model = DualMCMCPipeline.from_pretrained(folder).generator_model
    z = torch.randn(4000, 4)
    with torch.no_grad():
        own = generator_model.train()(z).sample
        running = generator_model.eval()(z).sample
    assert (own - running).abs().mean() < 0.02 * own.std()


def test_the_published_decay_is_per_epoch():
    s = settings(learning_rate_decay=0.5)
    models = build_dual_mcmc_models(make_model_settings(s))
    _, schedules = make_train_state(s, Accelerator(cpu=True), models, steps_per_epoch=3)
    rates = []
    for _ in range(7):
        rates.append([schedule.get_last_lr()[0] for schedule in schedules])
        for schedule in schedules:
            schedule.optimizer.step()
            schedule.step()
    start = torch.tensor([s.generator_learning_rate, s.energy_learning_rate, s.inference_learning_rate])
    expected = torch.stack([start * 0.5 ** (step // 3) for step in range(7)])
    assert_close(torch.tensor(rates), expected)


def test_a_runaway_energy_gap_stops_the_run(tmp_path):
    expected = r"'energy_gap' passed its limit of 1e-09.*a smaller x_step_size and x_noise_std"
    with pytest.raises(TrainingDivergedError, match=expected):
        train(settings(output_dir=str(tmp_path / "run"), energy_gap_limit=1e-9))


def test_a_chain_that_diverges_stops_the_run(tmp_path):
    expected = r"training diverged at step 0: the z-chain left .* at its step \d+ \(z_step_size.*restart with a smaller"
    with pytest.raises(TrainingDivergedError, match=expected):
        train(settings(output_dir=str(tmp_path / "run"), z_step_size=20.0, z_num_steps=60))


def test_trained_without_a_chain_it_samples_without_one(tmp_path):
    pipe = DualMCMCPipeline.from_pretrained(train(settings(output_dir=str(tmp_path / "run"), x_num_steps=0)))
    pipe.set_progress_bar_config(disable=True)
    draw = lambda *steps: pipe(2, *steps, generator=torch.Generator().manual_seed(0), output_type="pt").images  # noqa: E731
    assert torch.equal(draw(), draw(0)) and not torch.equal(draw(), draw(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_step_size": 0.0}, "x_step_size"),
        ({"x_noise_std": float("nan")}, "x_noise_std"),
        ({"z_noise_std": -1.0}, "z_noise_std"),
        ({"z_step_size": float("inf")}, "z_step_size"),
        ({"likelihood_std": 0.0}, "likelihood_std"),
        ({"x_step_size": 1e25}, "x_step_size must be from 1e-19 to"),
        ({"sample_weight": -1.0}, "sample_weight must be >= 0"),
        ({"recon_weight": float("nan")}, "recon_weight must be >= 0"),
        ({"weight_decay": float("inf")}, "weight_decay must be >= 0"),
        ({"x_num_steps": -1}, "x_num_steps"),
        ({"noised_negatives": 1.5}, r"noised_negatives must be a share in \[0, 1\]"),
        ({"noised_negatives_max_std": 0.0}, "noised_negatives_max_std"),
        ({"z_start": "data"}, "z_start"),
        ({"energy_negatives": "none"}, "energy_negatives"),
        ({"learning_rate_schedule": "linear"}, "learning_rate_schedule"),
        ({"models": {"energy": {"width": 3}}}, "has no setting"),
        ({"models": {"energy": {"power_iteration": "never"}}}, "power_iteration"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(output_dir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()
