"""The baselines train, resume and sample, and match closed forms on small networks."""

import importlib
import json
import sys
from pathlib import Path

import mixed_precision
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.langevin import energy_grad, langevin_chain
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.training import trainer
from hf_ebm.training.checkpointing import list_checkpoints
from hf_ebm.training.config import CONFIGS, make_settings, read_yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = {"batch_size": 8, "max_steps": 4, "log_every": 1, "sample_every": 2, "checkpoint_every": 2, "num_grid_samples": 4}
SCRIPTS = {  # module, its settings, tiny ones
    "ddgan": (
        "DDGANSettings",
        {"models": {"unet": {"base_channels": 8}, "discriminator": {"block_out_channels": [8, 16]}}, "r1_interval": 2},
    ),
    "ddpm": ("DDPMSettings", {"models": {"unet": {"base_channels": 8}}, "num_inference_steps": 3}),
    "short_run": ("ShortRunSettings", {"models": {"energy": {"block_out_channels": [8, 8]}}, "num_steps": 3}),
}


@pytest.fixture(autouse=True)
def _plain_modules(monkeypatch):
    """The benchmarks import each other as plain modules; each run in this process may choose its own precision."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    AcceleratorState._reset_state(reset_partial_state=True)


class Script:
    """One baseline with tiny settings."""

    def __init__(self, name):
        self.name, (settings_class, self.tiny) = name, SCRIPTS[name]
        self.module = importlib.import_module(f"baseline_{name}")
        self.settings_class = getattr(self.module, settings_class)

    def settings(self, output_dir="unused", **changes):
        return make_settings(self.settings_class, {**RUN, **self.tiny, "output_dir": str(output_dir), **changes})

    def train(self, output_dir, **changes):
        return self.module.train(self.settings(output_dir, **changes))

    def sample(self, folder, number=5, batch_size=3, seed=0, num_inference_steps=None):
        return list(self.module.sample_run(folder, number, batch_size, seed, "cpu", num_inference_steps))

    def state(self, settings):
        """Fresh networks and all that a train step needs."""
        torch.manual_seed(0)
        models = self.module.build_models(self.module.make_model_settings(settings))
        return self.module.make_train_state(settings, Accelerator(cpu=True), models, 10)[0]


@pytest.fixture(params=sorted(SCRIPTS))
def script(request):
    return Script(request.param)


def test_a_run_saves_its_pipeline_and_no_card(tmp_path, script):
    folder = script.train(tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model_index.json", "samples.png", "metrics.jsonl", "train_summary.json", "settings.yaml"}
    assert "README.md" not in names
    assert len(list((folder / "samples").iterdir())) == 2
    summary = json.loads((folder / "train_summary.json").read_text())
    assert summary["steps"] == 4 and sum(summary["parameters"].values()) > 1000


def test_draw_is_seeded_and_in_range(tmp_path, script):
    folder = script.train(tmp_path / "run", max_steps=1, sample_every=0)
    batches = script.sample(folder)
    assert [tuple(batch.shape) for batch in batches] == [(3, 1, 8, 8), (2, 1, 8, 8)]
    images = torch.cat(batches)
    assert images.dtype == torch.float32 and images.abs().max() <= 1.0 and images.std() > 0.1
    assert torch.equal(images, torch.cat(script.sample(folder)))
    other = torch.cat(script.sample(folder, seed=1))
    assert not torch.isclose(images, other).flatten(1).all(dim=1).any()
    assert not torch.equal(images[:2], images[3:])  # the second batch continues the random numbers


def test_resume_is_bit_exact(tmp_path, script, monkeypatch):
    """Interrupted after 2 of 4 steps and resumed = never interrupted, to the last bit."""
    whole = script.train(tmp_path / "whole")
    original = trainer.save_checkpoint

    def stop_after(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop_after)
    with pytest.raises(KeyboardInterrupt):
        script.train(tmp_path / "part")
    monkeypatch.setattr(trainer, "save_checkpoint", original)
    assert [path.name for path in list_checkpoints(tmp_path / "part" / "checkpoints")] == ["step_00000002"]
    part = script.train(tmp_path / "part", resume="latest")
    compared = 0
    for path in whole.rglob("*.safetensors"):
        first, second = load_file(path), load_file(part / path.relative_to(whole))
        if "step_00000002" not in str(path):
            assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), path
            compared += len(first)
    assert compared > 20
    metrics = [
        [{**json.loads(line), "steps_per_second": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, part)
    ]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 4


def test_mixed_precision_lasts_beyond_sample_grids(tmp_path, script, monkeypatch):
    record = mixed_precision.record_dtypes(monkeypatch)
    script.train(tmp_path / "run", mixed_precision="bf16", sample_every=1, max_steps=3)
    assert sorted(record) == [0, 1, 2] and len(record[0]) == (2 if script.name == "ddgan" else 1)
    assert all(dtypes == {"bfloat16"} for networks in record.values() for dtypes in networks.values())


def test_mistakes_are_named(tmp_path, script):
    with pytest.raises(ValueError, match="models must map some of"):
        script.train(tmp_path / "run", models={"inference": {"block_out_channels": [8, 16]}})
    with pytest.raises(ValueError, match="preset must be one for images, got 'toy'"):
        script.train(tmp_path / "run", preset="toy", models={})
    with pytest.raises(ValueError, match=r"models: .*widht"):
        part = {"ddgan": "discriminator", "ddpm": "unet", "short_run": "energy"}[script.name]
        script.train(tmp_path / "run", models={part: {"widht": 3}})
    assert not (tmp_path / "run").exists()


def test_a_baseline_is_not_pushed(tmp_path, script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(ValueError, match="push_to_hub must be false"):
        script.train(tmp_path / "run", push_to_hub=True)


def test_ddgan_fakes_of_a_perfect_generator_are_the_real_samples(monkeypatch):
    """Predicting the clean image, with the pair's own posterior noise, ``x_fake = x_t``: no logit separates them."""
    script = Script("ddgan")
    settings = script.settings(coupled_noise=True, noise_at_t0=True)
    state = script.state(settings)
    x = to_model_range(load_digits()[0])[:8]
    monkeypatch.setattr(state.generator_model, "forward", lambda x_next, t, z, return_dict: (x + 0.0 * z.sum(),))
    monkeypatch.setattr(script.module, "update", lambda *arguments: None)
    for step in (0, 1):
        terms = script.module.train_step(x, step, state, settings)
        assert_close(terms["logit_real"], terms["logit_fake"], rtol=0, atol=1e-4)
        assert (terms["gradient_penalty"] > 0) == (step == 0)


def test_ddgan_discriminator_learns_against_a_standing_generator_and_sees_the_pair():
    script = Script("ddgan")
    settings = script.settings(energy_learning_rate=3e-3, generator_learning_rate=1e-12, r1_weight=0.0)
    state = script.state(settings)
    digits = to_model_range(load_digits()[0])
    terms = [script.module.train_step(digits[8 * i : 8 * i + 64], i, state, settings) for i in range(60)]
    late = {name: sum(term[name].item() for term in terms[-20:]) / 20 for name in terms[0]}
    assert late["logit_real"] > late["logit_fake"] + 0.3 and late["discriminator"] < 1.3 < terms[0]["discriminator"]
    x = digits[:1].expand(2, -1, -1, -1)
    x_next = torch.cat([x[:1], -x[:1]])
    pair = script.module.logit(state.discriminator, x, x_next, torch.zeros(2, dtype=torch.long))
    assert pair.shape == (2,) and pair[0] != pair[1]


def test_ddgan_generator_goes_where_the_logit_rises(monkeypatch):
    """On the fixed logit ``mean x_t`` the generator's images grow brighter."""
    script = Script("ddgan")
    settings = script.settings(generator_learning_rate=1e-3)
    state = script.state(settings)

    def logit(discriminator, x_t, x_next, t):
        return x_t.flatten(1).mean(1) + 0.0 * discriminator.head.bias.sum()

    monkeypatch.setattr(script.module, "logit", logit)
    generator, digits = state.generator_model, to_model_range(load_digits()[0])[:64]
    arguments = (torch.randn_like(digits), torch.zeros(64, dtype=torch.long), torch.randn(64, 8))
    before = generator(*arguments).sample.mean().item()
    for step in range(6):
        script.module.train_step(digits, step, state, settings)
    assert generator(*arguments).sample.mean().item() > before + 0.05


class Oracle(UNet2DModel):
    """Knows the one image that all data are, so it knows the noise of every state, and the velocity."""

    def __init__(self, patches, prediction_type="epsilon"):
        super().__init__(
            sample_size=patches.shape[-1], in_channels=len(patches), out_channels=len(patches), norm_num_groups=4,
            block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        )  # fmt: skip
        self.patches, self.alphas_cumprod = patches, DDPMScheduler().alphas_cumprod
        self.prediction_type = prediction_type

    def forward(self, sample, timestep, return_dict=True, **_):
        abar = self.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
        noise = (sample - abar.sqrt() * self.patches) / (1 - abar).sqrt()
        clean = self.patches.expand_as(sample)
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
        answer = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[self.prediction_type]
        return type("Output", (), {"sample": answer}) if return_dict else (answer,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddpm_with_an_oracle_has_no_error_and_samples_its_image(monkeypatch, prediction_type):
    script = Script("ddpm")
    image = to_model_range(load_digits()[0])[:1]
    settings = script.settings(prediction_type=prediction_type)
    state = script.state(settings)
    state.unet = Oracle(F.pixel_unshuffle(image, 2)[0], prediction_type)
    monkeypatch.setattr(script.module, "update", lambda *arguments: None)
    terms = script.module.train_step(image.expand(8, -1, -1, -1), 0, state, settings)
    assert terms["squared_error"].item() < 1e-8
    pipeline = script.module.make_pipeline((state.unet,), settings)
    assert pipeline.scheduler.config.prediction_type == prediction_type
    for num_steps in (1, 4):
        drawn = script.module.sample_images(pipeline, 3, torch.Generator().manual_seed(0), num_steps, patch_size=2)
        assert_close(drawn, image.expand(3, -1, -1, -1), rtol=0, atol=1e-3)


def test_ddpm_samples_with_the_noise_of_the_clipped_image():
    """Where what is predicted leaves [-1, 1], image and noise of each step still make the sample they came from."""
    script = Script("ddpm")
    oracle = Oracle(F.pixel_unshuffle(to_model_range(load_digits()[0])[:1], 2)[0])
    oracle.forward = lambda sample, timestep, **_: type("Output", (), {"sample": 0.3 * sample})
    scheduler = DDIMScheduler.from_config(DDPMScheduler().config, timestep_spacing="trailing")
    pipeline = DDIMPipeline(oracle, scheduler)
    drawn = script.module.sample_images(pipeline, 3, torch.Generator().manual_seed(0), 5, patch_size=2)
    abars = scheduler.alphas_cumprod[[999, 799, 599, 399, 199]].tolist()
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for abar, cleaner in zip(abars, [*abars[1:], 1.0], strict=True):
        clean = ((x - (1 - abar) ** 0.5 * 0.3 * x) / abar**0.5).clamp(-1, 1)
        noise = (x - abar**0.5 * clean) / (1 - abar) ** 0.5
        x = cleaner**0.5 * clean + (1 - cleaner) ** 0.5 * noise
    assert_close(drawn, F.pixel_shuffle(x, 2).clamp(-1, 1), rtol=0, atol=1e-3)


def test_ddpm_has_the_generators_unet_and_any_number_of_steps(tmp_path):
    """Width, depth, attention and size are those of DDAEBM's generator; only z's way in is missing."""
    script = Script("ddpm")
    for preset in ("digits", "cifar10"):
        settings = script.settings(preset=preset, models={})
        (unet,) = script.module.build_models(script.module.make_model_settings(settings))
        generator = build_ddaebm_models(ddaebm_model_settings(preset))[0].unet
        different = {key for key, value in unet.config.items() if generator.config[key] != value}
        assert different == {"class_embed_type"}
    folder = script.train(tmp_path / "run", max_steps=1, sample_every=0)
    draws = [torch.cat(script.sample(folder, num_inference_steps=steps)) for steps in (None, 3, 5)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


def test_generator_only_trains_as_dual_mcmc_whose_energy_teaches_nothing(tmp_path):
    """The same generator and inference model to the last bit; the energy stays as it was."""
    from hf_ebm.training import train_dual_mcmc

    alone = importlib.import_module("baseline_generator_only")
    config = read_yaml(CONFIGS / "dual_mcmc_digits.yaml") | RUN | {"sample_every": 0}
    folders = {}
    for name, train, changes in (
        ("alone", alone.train, {}),
        ("idle", train_dual_mcmc.train, {"x_num_steps": 0, "energy_negatives": "generator", "noised_negatives": 0.0}),
    ):
        settings = config | {"output_dir": str(tmp_path / name)} | changes
        folders[name] = train(make_settings(train_dual_mcmc.DualMCMCSettings, settings))
    for part, same in (("generator_model", True), ("inference_model", True), ("energy_model", False)):
        first, second = (load_file(next((folder / part).glob("*.safetensors"))) for folder in folders.values())
        assert all(torch.equal(first[key], second[key]) for key in first) is same, part


def test_short_run_samples_with_its_training_chain(tmp_path):
    script = Script("short_run")
    folder = script.train(tmp_path / "run", max_steps=1, sample_every=0, num_steps=4, step_size=2.0, noise_std=0.05)
    pipeline = script.module.EnergyScoringPipeline.from_pretrained(folder)
    energy, random = pipeline.energy_model.eval(), torch.Generator().manual_seed(3)
    start = 2 * torch.rand(6, 1, 8, 8, generator=random) - 1
    chain = langevin_chain(start, lambda x: energy_grad(lambda x: energy(x).energy, x), 4, 2.0, 0.05, random)
    assert_close(script.sample(folder, 6, 6, seed=3)[0], chain.clamp(-1, 1))
    assert not torch.equal(script.sample(folder, 6, 6, seed=3, num_inference_steps=2)[0], chain.clamp(-1, 1))


def test_short_run_learns_low_energies_for_data_and_revises_noise(monkeypatch):
    """The gap falls below zero against fresh noise, and the negatives are ends of the chain, not the noise itself."""
    script = Script("short_run")
    settings = script.settings(energy_learning_rate=1e-3, num_steps=5, step_size=2.0, data_noise_std=0.0)
    state, digits, seen = script.state(settings), to_model_range(load_digits()[0]), []

    def chain(start, grad_fn, num_steps, step_size, noise_std):
        end = langevin_chain(start, grad_fn, num_steps, step_size, noise_std)
        seen.append((start, end, (num_steps, step_size, noise_std)))
        return end

    monkeypatch.setattr(script.module, "langevin_chain", chain)
    terms = [script.module.train_step(digits[8 * i : 8 * i + 64], i, state, settings) for i in range(60)]
    start, end, arguments = seen[-1]
    assert arguments == (5, 2.0, settings.noise_std)
    assert start.abs().max() <= 1 and start.std().item() == pytest.approx(3**-0.5, rel=0.05)
    energy = state.energy_model.eval()
    with torch.no_grad():
        assert energy(end).energy.mean() < energy(start).energy.mean()
        assert energy(digits).energy.mean() < energy(start).energy.mean()
    assert all(torch.isfinite(term["energy_gap"]) for term in terms)
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in energy.parameters())


@pytest.mark.parametrize("config", sorted(path.name for path in (BENCHMARKS / "configs").glob("*.yaml")))
def test_the_shipped_configs_train(config):
    """Their networks are built, fit the data's size, and take a step."""
    from benchmark_data import DATA

    script = Script(next(name for name in SCRIPTS if config.startswith(f"{name}_")))
    settings = make_settings(script.settings_class, read_yaml(BENCHMARKS / "configs" / config))
    state, model_settings = script.state(settings), script.module.make_model_settings(settings)
    shape = script.module.METHOD.sample_shape(state.models, model_settings)
    assert shape == next(data.sample_shape for name, data in DATA.items() if config == f"{script.name}_{name}.yaml")
    terms = script.module.train_step(2 * torch.rand(2, *shape) - 1, 0, state, settings)
    assert all(torch.isfinite(term) for term in terms.values())
