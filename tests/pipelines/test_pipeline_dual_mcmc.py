"""DualMCMCPipeline: the diffusers pipeline contract, its four tasks against the algorithm written out, clear errors."""

import gc
import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ebm import (
    AnnealedLangevinScheduler,
    ConvInferenceModel,
    DualMCMCPipeline,
    HMCScheduler,
    LangevinScheduler,
    MALAScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
)
from hf_ebm.langevin import ChainDivergedError, energy_grad, langevin_step
from hf_ebm.losses.dual_mcmc import posterior_energy
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.energy import EnergyOutput

SAMPLERS = [
    LangevinScheduler,
    MALAScheduler,
    HMCScheduler,
    AnnealedLangevinScheduler,
    PreconditionedLangevinScheduler,
    ReplicaExchangeScheduler,
]
MASK = torch.zeros(8, 8)
MASK[:, 4:] = 1.0  # the right half is to be filled in


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=3):
    return torch.rand(count, 1, 8, 8, generator=seeded(7)) * 2 - 1


def langevin(scheduler, energy_fn, x, num_steps, g, keep=lambda x: x):
    """The chain, written out."""
    for _ in range(num_steps):
        noise = torch.randn(x.shape, generator=g)
        x = keep(langevin_step(x, energy_grad(energy_fn, x), scheduler.step_size, scheduler.noise_std, noise))
    return x


def x_energy(pipe):
    return lambda x: pipe.energy_model(x).energy


def z_energy(pipe, x):
    return lambda z: posterior_energy(lambda z: pipe.generator_model(z).sample, z, x, 0.3)


# --- generate -------------------------------------------------------------------------------------------------------


def test_sampling_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g = tiny_dual_mcmc_pipeline, seeded()
    out = pipe(batch_size=3, generator=seeded(), output_type="pt")
    z = torch.randn(3, 4, generator=g)
    x = langevin(pipe.scheduler, x_energy(pipe), pipe.generator_model(z).sample.detach(), 5, g)
    assert_close(out.images, x.clamp(-1, 1))
    assert_close(out.latents, z)
    assert out.energies is None and out.diagnostics is None


def test_no_steps_are_the_generator_alone(tiny_dual_mcmc_pipeline):
    pipe = tiny_dual_mcmc_pipeline
    expected = pipe.generator_model(torch.randn(2, 4, generator=seeded())).sample.detach()
    pipe.energy_model = None
    images = pipe(2, num_inference_steps=0, generator=seeded(), output_type="pt").images
    assert_close(images, expected)


def test_given_latents(tiny_dual_mcmc_pipeline):
    z = torch.randn(2, 4)
    out = tiny_dual_mcmc_pipeline(2, 0, latents=z, output_type="pt")
    assert_close(out.images, tiny_dual_mcmc_pipeline.generator_model(z).sample.detach())
    assert torch.equal(out.latents, z)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_and_the_energies_of_its_states(tiny_dual_mcmc_pipeline, sampler):
    pipe, seen = tiny_dual_mcmc_pipeline, []
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["x"])

    def sample(**kwargs):
        return pipe(3, 4, generator=seeded(), output_type="pt", **kwargs)

    out = sample(output_energies=True, output_diagnostics=True, callback_on_step_end=callback)
    assert out.energies.shape == (5, 3)
    assert_close(out.images, seen[-1].clamp(-1, 1))
    for energies, x in ((out.energies[0], pipe.generate(out.latents)), (out.energies[-1], seen[-1])):
        assert_close(energies, pipe.energy_model(x).energy.detach())
    evaluations = pipe.scheduler.num_evaluations(4)
    assert len(seen) == out.diagnostics["energy"].shape[0] == evaluations
    assert (out.diagnostics["grad_norm"] > 0).all()
    if evaluations == 4:  # every state is evaluated, and there is nothing to accept
        assert_close(out.diagnostics["energy"], out.energies[:-1])
        assert "acceptance_rate" not in out.diagnostics
    else:
        assert out.diagnostics["acceptance_rate"].shape == (4,)
    assert torch.equal(sample().images, out.images)  # and looking changes nothing


@pytest.mark.parametrize(("sampler", "per_update"), [(MALAScheduler, 1), (HMCScheduler, 5)])
def test_energies_of_samplers_with_proposals_are_those_of_accepted_states(tiny_dual_mcmc_pipeline, sampler, per_update):
    """With a coarse step most proposals are refused: the energy then stays."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.scheduler = sampler(num_train_timesteps=12, step_size=4.0, noise_std=0.7)
    out = pipe(6, generator=seeded(1), output_type="pt", output_energies=True, output_diagnostics=True)
    moved = out.energies[1:] != out.energies[:-1]
    assert_close(moved.float().mean(dim=1), out.diagnostics["acceptance_rate"])
    assert 0 < moved.float().mean() < 1
    proposed = out.diagnostics["energy"][per_update::per_update]
    assert_close(out.energies[1:][moved], proposed[moved])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_per_sample(tiny_dual_mcmc_pipeline, sampler):
    pipe = tiny_dual_mcmc_pipeline
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    both = pipe(2, generator=[seeded(1), seeded(2)], output_type="pt").images
    alone = pipe(1, generator=[seeded(2)], output_type="pt").images
    assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_output_types(tiny_dual_mcmc_pipeline):
    pil = tiny_dual_mcmc_pipeline(batch_size=2, generator=seeded()).images
    array = tiny_dual_mcmc_pipeline(batch_size=2, generator=seeded(), output_type="np").images
    (tensor,) = tiny_dual_mcmc_pipeline(batch_size=2, generator=seeded(), output_type="pt", return_dict=False)
    assert [image.mode for image in pil] == ["L", "L"] and pil[0].size == (8, 8)
    assert array.shape == (2, 8, 8, 1) and array.min() >= 0 and array.max() <= 1
    assert tensor.shape == (2, 1, 8, 8) and tensor.min() < 0
    assert_close(torch.from_numpy(array), (tensor.permute(0, 2, 3, 1) + 1) / 2)


def test_states_are_clamped_at_the_end_alone(tiny_dual_mcmc_pipeline):
    pipe, seen = tiny_dual_mcmc_pipeline, []
    pipe.scheduler = LangevinScheduler(3, step_size=0.1, noise_std=2.0)
    images = pipe(2, output_type="pt", callback_on_step_end=lambda *a: seen.append(a[3]["x"]) or None).images
    assert min(x.abs().max() for x in seen) > 1.5 and images.abs().max() == 1


def test_callback_sees_and_changes_the_state(tiny_dual_mcmc_pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        return {"x": torch.zeros_like(tensors["x"])} if step == 4 else None

    images = tiny_dual_mcmc_pipeline(2, output_type="pt", callback_on_step_end=callback).images
    assert seen == [(k, k, ["x"]) for k in range(5)]
    assert images.abs().max() == 0


def test_global_random_state_is_untouched_with_a_generator(tiny_dual_mcmc_pipeline):
    pipe, state = tiny_dual_mcmc_pipeline, torch.get_rng_state()
    pipe(2, generator=seeded())
    pipe.reconstruct(some_images(), generator=seeded())
    pipe.interpolate(some_images(2), some_images(2), generator=seeded(), num_inference_steps=1)
    pipe.inpaint(some_images(), MASK, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_in_training_stay_as_they_are(tiny_dual_mcmc_pipeline):
    """Samples in the middle of training leave no trace: modes, buffers, what is trainable."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.energy_model.config.power_iteration = "every_forward"
    expected = pipe(2, generator=seeded(), output_type="pt").images
    models = (pipe.generator_model, pipe.energy_model, pipe.inference_model)
    before = [{key: value.clone() for key, value in model.train().state_dict().items()} for model in models]
    assert torch.equal(pipe(2, generator=seeded(), output_type="pt").images, expected)
    pipe.reconstruct(some_images())
    pipe.inpaint(some_images(), MASK)
    for model, state in zip(models, before, strict=True):
        assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_progress_bar(tiny_dual_mcmc_pipeline, capfd):
    tiny_dual_mcmc_pipeline(1)
    assert capfd.readouterr().err == ""
    tiny_dual_mcmc_pipeline.set_progress_bar_config(disable=False)
    tiny_dual_mcmc_pipeline(1)
    assert "5/5" in capfd.readouterr().err


class ReadsOfNumbers(TorchDispatchMode):
    """Counts how often Python asks a tensor for its number, which on a GPU means to wait for it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_chain_never_waits_for_the_device(tiny_dual_mcmc_pipeline, sampler):
    pipe = tiny_dual_mcmc_pipeline
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    counts = []
    for num_steps in (1, 6):
        with ReadsOfNumbers() as reads:
            pipe(2, num_steps, output_type="pt", output_energies=True, output_diagnostics=True)
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 2


def test_spectral_norm_weights_are_made_once_per_call(tiny_dual_mcmc_pipeline):
    calls = []
    norms = [
        module for name, module in tiny_dual_mcmc_pipeline.energy_model.named_modules() if name.endswith("weight.0")
    ]
    for norm in norms:
        norm.register_forward_hook(lambda *_: calls.append(1))
    tiny_dual_mcmc_pipeline(2)
    assert len(calls) == len(norms) > 0


def test_memory_does_not_grow_with_the_steps(tiny_dual_mcmc_pipeline):
    alive = []

    def callback(pipe, step, timestep, tensors):
        if step in (2, 38):
            gc.collect()
            alive.append(sum(type(o) is torch.Tensor and o.shape == (3, 1, 8, 8) for o in gc.get_objects()))

    tiny_dual_mcmc_pipeline(3, 40, callback_on_step_end=callback)
    assert alive[0] == alive[1] > 0


# --- saving and loading ---------------------------------------------------------------------------------------------


def test_same_results_in_a_fresh_process_with_any_sampler(tiny_dual_mcmc_pipeline, tmp_path):
    """The classes of all samplers are found there too."""
    pipe = tiny_dual_mcmc_pipeline
    expected, pairs = [], [SAMPLERS[i : i + 2] for i in (0, 2, 4)]
    for sampler, latent_sampler in pairs:
        pipe.scheduler = sampler.from_config(pipe.scheduler.config)
        pipe.latent_scheduler = latent_sampler.from_config(pipe.latent_scheduler.config)
        pipe.save_pretrained(tmp_path / sampler.__name__)
        expected.append(pipe(batch_size=2, generator=seeded(5), output_type="pt").images)
        expected.append(pipe.reconstruct(expected[0], generator=seeded(5), output_type="pt").images)
    expected.append(pipe.score(expected[0]).energies)
    code = (
        "import sys, torch; from hf_ebm import DualMCMCPipeline\n"
        "found, g = [], lambda: torch.Generator().manual_seed(5)\n"
        "for name in sys.argv[2:]:\n"
        "    pipe = DualMCMCPipeline.from_pretrained(sys.argv[1] + '/' + name)\n"
        "    found.append(pipe(batch_size=2, generator=g(), output_type='pt').images)\n"
        "    found.append(pipe.reconstruct(found[0], generator=g(), output_type='pt').images)\n"
        "torch.save([*found, pipe.score(found[0]).energies], sys.argv[1] + '/out.pt')"
    )
    names = [sampler.__name__ for sampler, _ in pairs]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *names], check=True)
    found = torch.load(tmp_path / "out.pt")
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_saved_files_are_safetensors_and_module_paths_are_the_format(tiny_dual_mcmc_pipeline, tmp_path):
    """Golden: these paths are in every saved repository; renaming a module would orphan them."""
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DualMCMCPipeline"
    assert {key: value for key, value in index.items() if not key.startswith("_")} == {
        "generator_model": ["hf_ebm.models.resnet_generator", "ResNetGeneratorModel"],
        "energy_model": ["hf_ebm.models.resnet_energy", "ResNetEnergyModel"],
        "inference_model": ["hf_ebm.models.conv_inference", "ConvInferenceModel"],
        "scheduler": ["hf_ebm.schedulers.scheduling_langevin", "LangevinScheduler"],
        "latent_scheduler": ["hf_ebm.schedulers.scheduling_langevin", "LangevinScheduler"],
    }
    weights = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".json", ".md", ".py")]
    assert weights and all(path.suffix == ".safetensors" for path in weights)


def test_variant_dtype_and_missing_components(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path, variant="full")
    pipe = DualMCMCPipeline.from_pretrained(tmp_path, variant="full", dtype=torch.bfloat16)
    assert pipe.energy_model.dtype == pipe.generator_model.dtype == pipe.inference_model.dtype == torch.bfloat16
    images = pipe(2, generator=seeded(), output_type="np").images
    assert images.dtype == np.float32 and pipe.score(images).energies.dtype == torch.float32
    full = tiny_dual_mcmc_pipeline(2, generator=seeded(), output_type="np").images
    assert 0 < np.abs(images - full).max() < 0.05  # the same chain, the networks' rounding apart
    kept = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    filled = pipe.inpaint(kept, MASK, output_type="pt").images
    assert torch.equal(filled[..., :4], kept[..., :4])
    assert len(pipe.reconstruct(images).images) == len(pipe.interpolate(kept[:1], kept[1:], num_frames=2).images) == 2
    missing = {"energy_model": None, "inference_model": None, "latent_scheduler": None}
    bare = DualMCMCPipeline.from_pretrained(tmp_path, variant="full", **missing)
    assert len(bare(2, num_inference_steps=0).images) == 2
    bare.save_pretrained(tmp_path / "bare")
    again = DualMCMCPipeline.from_pretrained(tmp_path / "bare")
    assert again.energy_model is again.inference_model is again.latent_scheduler is None


def test_from_pipe_shares_components(tiny_dual_mcmc_pipeline):
    other = DualMCMCPipeline.from_pipe(tiny_dual_mcmc_pipeline)
    assert all(other.components[name] is part for name, part in tiny_dual_mcmc_pipeline.components.items())


# --- reconstruct ----------------------------------------------------------------------------------------------------


def test_reconstruct_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g, x = tiny_dual_mcmc_pipeline, seeded(), some_images()
    out = pipe.reconstruct(x, generator=seeded(), output_type="pt", output_squared_errors=True)
    with torch.no_grad():
        mean, logvar = pipe.inference_model(x, return_dict=False)
    inferred = mean + (0.5 * logvar).exp() * torch.randn(3, 4, generator=g)
    z = langevin(pipe.latent_scheduler, z_energy(pipe, x), inferred, 3, g)
    assert_close(out.latents, z)
    assert_close(out.images, pipe.generate(z))
    assert out.squared_errors.shape == (4, 3)
    for errors, z_there in ((out.squared_errors[0], inferred), (out.squared_errors[-1], z)):
        assert_close(errors, (pipe.generate(z_there) - x).square().mean(dim=(1, 2, 3)))


def test_reconstruct_without_steps_is_the_inference_model_alone(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    pipe.latent_scheduler = None
    out = pipe.reconstruct(x, 0, sample_latents=False, output_type="pt", output_squared_errors=True)
    assert_close(out.latents, pipe.inference_model(x).mean.detach())
    assert out.squared_errors.shape == (1, 3)


def test_z_chain_from_given_latents_and_what_it_is_for(tiny_dual_mcmc_pipeline):
    """From noise, without an inference model: the error of images that the generator can make falls."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.inference_model, pipe.latent_scheduler = None, LangevinScheduler(100, 0.1, 1e-3)
    x = pipe(4, 0, generator=seeded(1), output_type="pt").images
    noise = torch.randn(4, 4, generator=seeded(2))
    errors = pipe.reconstruct(x, latents=noise, output_squared_errors=True).squared_errors
    assert_close(errors[0], (pipe.generate(noise) - x).square().mean(dim=(1, 2, 3)))
    assert errors[-1].mean() < 0.5 * errors[0].mean()


# --- interpolate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_interpolate_between_latents(tiny_dual_mcmc_pipeline, path):
    pipe, a, b = tiny_dual_mcmc_pipeline, torch.randn(2, 4), torch.randn(2, 4)
    out = pipe.interpolate(a, b, num_frames=5, path=path, output_type="pt")
    frames = out.latents.unflatten(0, (2, 5))  # pair by pair
    assert torch.equal(frames[:, 0], a) and torch.equal(frames[:, -1], b)
    assert_close(out.images, pipe.generate(out.latents))
    if path == "linear":
        assert_close(frames[:, 1], 0.75 * a + 0.25 * b)
    one = pipe.interpolate(a[1], b[1], num_frames=5, path=path, output_type="pt")
    assert_close(one.images, out.images[5:], rtol=1e-5, atol=1e-5)


def test_interpolate_between_images_infers_and_revises_them(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images(2)
    g = seeded()
    ends = [pipe.reconstruct(x[i : i + 1], generator=g).latents for i in range(2)]
    out = pipe.interpolate(x[:1], x[1:], num_frames=3, generator=seeded())
    assert len(out.images) == 3
    assert torch.equal(out.latents[0], ends[0][0]) and torch.equal(out.latents[2], ends[1][0])
    mixed = pipe.interpolate(ends[0], x[1:], num_frames=2, latent_inference_steps=0, sample_latents=False)
    assert torch.equal(mixed.latents[0], ends[0][0])
    assert_close(mixed.latents[1], pipe.inference_model(x[1:]).mean[0].detach())


def test_every_frame_may_be_revised(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images(4)
    both = pipe.interpolate(x[:2], x[2:], 3, 2, generator=[seeded(1), seeded(2)], output_type="pt").images
    alone = pipe.interpolate(x[1:2], x[3:], 3, 2, generator=seeded(2), output_type="pt")
    assert_close(both[3:], alone.images, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone.images, pipe.generate(alone.latents), atol=1e-3)


# --- inpaint --------------------------------------------------------------------------------------------------------


def test_inpaint_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g, x = tiny_dual_mcmc_pipeline, seeded(), some_images()
    out = pipe.inpaint(x, MASK, generator=seeded(), output_type="pt", output_energies=True)
    left, unknown = x[..., :4], MASK.bool()
    with torch.no_grad():
        mean, logvar = pipe.inference_model(x * (1 - MASK), return_dict=False)
    z = mean + (0.5 * logvar).exp() * torch.randn(3, 4, generator=g)

    def left_error(z):
        return posterior_energy(lambda z: pipe.generator_model(z).sample[..., :4], z, left, 0.3)

    z = langevin(pipe.latent_scheduler, left_error, z, 3, g)
    assert_close(out.latents, z)
    start = torch.where(unknown, pipe.generate(z), x)
    end = langevin(pipe.scheduler, x_energy(pipe), start, 5, g, keep=lambda new: torch.where(unknown, new, x))
    assert_close(out.images, end.clamp(-1, 1))
    assert_close(out.energies[0], pipe.energy_model(start).energy.detach())
    assert_close(out.energies[-1], pipe.energy_model(end).energy.detach())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpaint_keeps_known_pixels_exactly_and_looks_at_no_other(tiny_dual_mcmc_pipeline, sampler):
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    pipe.latent_scheduler = sampler.from_config(pipe.latent_scheduler.config)
    masks = torch.stack([MASK, MASK.T, 1 - MASK])
    filled = pipe.inpaint(x, masks, generator=seeded(), output_type="pt").images
    unknown = masks[:, None].bool()
    assert torch.equal(filled[~unknown], x[~unknown])
    assert (filled[unknown] != x[unknown]).all()
    other = torch.where(unknown, -x, x)
    assert torch.equal(pipe.inpaint(other, masks, generator=seeded(), output_type="pt").images, filled)


@pytest.mark.parametrize("sampler", [MALAScheduler, HMCScheduler])
def test_exact_samplers_stay_exact_on_the_masked_part(tiny_dual_mcmc_pipeline, sampler):
    """E = sum (x - 0.5 m)^2 / 2, m the mean of the known half: the rest is Gaussian, mean m/2, variance T."""
    pipe = tiny_dual_mcmc_pipeline
    unknown = MASK.bool()

    def forward(x, timestep=None):
        m = x[..., ~unknown].mean(dim=-1)[..., None, None]
        return EnergyOutput(energy=0.5 * (x - 0.5 * m).square().flatten(1).sum(dim=1))

    pipe.energy_model.forward = forward
    pipe.scheduler = sampler(num_train_timesteps=40, step_size=0.8, noise_std=0.16)
    x = some_images(1)
    out = pipe.inpaint(x.expand(400, 1, 8, 8), MASK, generator=seeded(), output_type="pt", output_diagnostics=True)
    filled = out.images[..., unknown]
    assert 0.3 < out.diagnostics["acceptance_rate"][10:].mean() < 0.995
    mean, var = 0.5 * x[..., ~unknown].mean(), 0.04
    assert abs(filled.mean() - mean) < 4 * (var / filled.numel()) ** 0.5
    assert abs(filled.var() - var) < 5 * var * (2 / filled.numel()) ** 0.5


def test_inpaint_without_inference_model_starts_from_a_draw(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images(2)
    pipe.inference_model = pipe.latent_scheduler = None
    out = pipe.inpaint(x, MASK, 0, generator=seeded(), output_type="pt")
    z = torch.randn(2, 4, generator=seeded())
    assert_close(out.images[..., 4:], pipe.generate(z)[..., 4:])
    with pytest.raises(ValueError, match="latent_inference_steps=2 needs"):
        pipe.inpaint(x, MASK, latent_inference_steps=2)


def test_all_kinds_of_masks_and_images_fill_alike(tiny_dual_mcmc_pipeline):
    pipe = tiny_dual_mcmc_pipeline
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    pil = [PIL.Image.fromarray(image[..., 0]) for image in pixels]
    gray = PIL.Image.fromarray((MASK.numpy() * 155 + 60).astype(np.uint8))  # rounded to black and white

    def inpaint(images, mask, output_type="pt"):
        return pipe.inpaint(images, mask, generator=seeded(), output_type=output_type).images

    expected = inpaint(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, MASK)
    masks = [
        MASK.bool(),
        MASK.long(),
        MASK.numpy(),
        MASK.numpy().astype(np.uint8),
        MASK[None],
        MASK[None, None],
        MASK.expand(2, 8, 8),
        MASK.expand(2, 1, 8, 8),
        gray,
        gray.point(lambda v: 255 * (v > 99), mode="1"),
        [gray, gray],
    ]
    for mask in masks:
        assert_close(inpaint(pixels, mask), expected, rtol=1e-4, atol=1e-4)
    filled = np.stack([np.asarray(image) for image in inpaint(pil, gray, "pil")])
    assert (filled[:, :, :4] == pixels[:, :, :4, 0]).all()


# --- vectors --------------------------------------------------------------------------------------------------------


def test_everything_on_vectors(tmp_path):
    models = build_dual_mcmc_models(dual_mcmc_model_settings("toy"))
    pipe = DualMCMCPipeline(models[0], LangevinScheduler(4, 0.05), models[1], models[2], LangevinScheduler(3, 0.05))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    pipe = DualMCMCPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    points = pipe(5, generator=seeded(), output_type="np", output_energies=True)
    assert points.images.shape == (5, 2) and points.energies.shape == (5, 5)
    assert_close(pipe.score(points.images).energies, points.energies[-1])
    out = pipe.reconstruct(points.images * 3.0, output_type="pt", output_squared_errors=True)
    assert out.images.shape == (5, 2) and out.squared_errors.shape == (4, 5)
    a, b = points.images[:2], points.images[2:4]  # arrays are data; tensors of latent_dim columns are latents
    between = pipe.interpolate(a, b, num_frames=3, latent_inference_steps=0, sample_latents=False, output_type="pt")
    assert_close(between.latents[0], pipe.inference_model(torch.from_numpy(a)).mean[0].detach())
    assert torch.equal(pipe.interpolate(torch.ones(2), torch.zeros(2), 2, output_type="pt").latents[0], torch.ones(2))
    filled = pipe.inpaint(points.images, torch.tensor([0, 1]), output_type="np").images
    assert (filled[:, 0] == points.images[:, 0]).all() and (filled[:, 1] != points.images[:, 1]).all()
    with pytest.raises(ValueError, match="output_type"):
        pipe(2)


# --- trouble --------------------------------------------------------------------------------------------------------


def test_a_diverging_chain_names_its_step_and_keeps_the_last_state(tiny_dual_mcmc_pipeline):
    """E = -1e3 sum x^4: the update's size grows as the cube of the state, so the step is found by hand."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.energy_model.forward = lambda x, t=None: EnergyOutput(energy=-1e3 * x.pow(4).flatten(1).sum(1))
    with pytest.raises(ChainDivergedError, match="diverged at step") as caught:
        pipe(2, 30, generator=seeded(3), output_type="pt")
    g = seeded(3)
    x = pipe.generate(torch.randn(2, 4, generator=g))
    states = [x] + [x := langevin(pipe.scheduler, x_energy(pipe), x, 1, g) for _ in range(30)]
    first = next(i for i, x in enumerate(states) if not torch.isfinite(x.sum()))
    assert caught.value.step == first
    assert_close(caught.value.last_state, states[first - 1])


def test_an_energy_of_the_wrong_shape(tiny_dual_mcmc_pipeline):
    pipe = tiny_dual_mcmc_pipeline
    pipe.energy_model.forward = lambda x, t=None: EnergyOutput(energy=x.square().mean())
    with pytest.raises(ValueError, match="one number per sample"):
        pipe(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": 2, "generator": [torch.Generator()]}, "batch_size=2"),
        ({"output_type": "jpg"}, "output_type"),
        ({"num_inference_steps": -1}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_inference_steps": True}, "num_inference_steps"),
        ({"latents": torch.zeros(2, 4)}, r"latents must .* \(1, 4\)"),
        ({"latents": torch.zeros(1, 5)}, "latents"),
        ({"latents": torch.zeros(1, 4, dtype=torch.long)}, "latents"),
        ({"latents": np.zeros((1, 4))}, "latents"),
        ({"latents": torch.full((1, 4), float("nan"))}, "latents must be finite"),
        ({"callback_on_step_end_tensor_inputs": ["z"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_call_refuses(tiny_dual_mcmc_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_dual_mcmc_pipeline(**arguments)


X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("reconstruct", {"images": torch.zeros(2, 3, 8, 8)}, "images must have shape"),
        ("reconstruct", {"images": torch.zeros(2, 1, 9, 9)}, "images must have shape"),
        ("reconstruct", {"images": X + 2}, r"images .* \[-1, 1\]"),
        ("reconstruct", {"images": X, "num_inference_steps": -1}, "num_inference_steps"),
        ("reconstruct", {"images": X, "latents": torch.zeros(2, 4)}, "latents"),
        ("reconstruct", {"images": X, "output_type": "jpg"}, "output_type"),
        ("reconstruct", {"images": X, "generator": [torch.Generator()] * 2}, "generator"),
        ("interpolate", {"a": X, "b": X, "num_frames": 1}, "num_frames"),
        ("interpolate", {"a": X, "b": X, "num_frames": 2.0}, "num_frames"),
        ("interpolate", {"a": X, "b": X, "path": "cubic"}, "path"),
        ("interpolate", {"a": X, "b": torch.zeros(2, 4)}, "a and b"),
        ("interpolate", {"a": torch.zeros(5), "b": X}, "a must be"),
        ("interpolate", {"a": X, "b": torch.zeros(0, 4)}, "b must be"),
        ("interpolate", {"a": X, "b": X + 2}, r"b \(as images\): images .* \[-1, 1\]"),
        ("interpolate", {"a": X, "b": X, "latent_inference_steps": -1}, "latent_inference_steps"),
        ("interpolate", {"a": X, "b": X, "num_inference_steps": "2"}, "num_inference_steps"),
        ("inpaint", {"images": X, "mask": torch.ones(9, 9)}, r"mask .* shapes \(8, 8\).* got \(9, 9\)"),
        ("inpaint", {"images": X, "mask": torch.ones(2, 8, 8)}, "mask .* shapes"),
        ("inpaint", {"images": X, "mask": torch.ones(1, 3, 8, 8)}, "mask .* shapes"),
        ("inpaint", {"images": X, "mask": PIL.Image.new("L", (9, 8))}, "mask .* shapes"),
        ("inpaint", {"images": X, "mask": MASK * 0.5}, "mask must hold only 0"),
        ("inpaint", {"images": X, "mask": MASK * 2 - 1}, "mask must hold only 0"),
        ("inpaint", {"images": X, "mask": MASK / MASK}, "mask must hold only 0"),
        ("inpaint", {"images": X, "mask": (MASK.numpy() * 255).astype(np.uint8)}, "mask must hold only 0"),
        ("inpaint", {"images": X, "mask": PIL.Image.new("RGB", (8, 8))}, r"mask.convert\('L'\)"),
        ("inpaint", {"images": X, "mask": [PIL.Image.new("L", (8, 8)), PIL.Image.new("L", (9, 9))]}, "mask images"),
        ("inpaint", {"images": X, "mask": [MASK]}, "mask as a list"),
        ("inpaint", {"images": X, "mask": "left half"}, "mask must be a PIL image"),
        ("inpaint", {"images": X, "mask": []}, "mask must be a PIL image"),
        ("inpaint", {"images": X + 2, "mask": MASK}, r"images .* \[-1, 1\]"),
        ("inpaint", {"images": X, "mask": MASK, "num_inference_steps": -1}, "num_inference_steps"),
        ("inpaint", {"images": X, "mask": MASK, "latent_inference_steps": 1.5}, "latent_inference_steps"),
        ("score", {"images": X + 2}, r"\[-1, 1\]"),
    ],
)
def test_tasks_refuse(tiny_dual_mcmc_pipeline, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_dual_mcmc_pipeline, method)(**arguments)


@pytest.mark.parametrize(
    ("missing", "call", "message"),
    [
        ("energy_model", lambda p: p(2), "num_inference_steps=None needs energy_model"),
        ("energy_model", lambda p: p(2, 3), "num_inference_steps=3 needs energy_model"),
        ("energy_model", lambda p: p(2, 0, output_energies=True), "output_energies needs energy_model"),
        ("energy_model", lambda p: p.inpaint(X, MASK), "needs energy_model"),
        ("energy_model", lambda p: p.inpaint(X, MASK, 0, output_energies=True), "output_energies needs energy_model"),
        ("energy_model", lambda p: p.interpolate(X, X, num_inference_steps=1), "needs energy_model"),
        ("energy_model", lambda p: p.score(X), "needs energy_model"),
        ("inference_model", lambda p: p.reconstruct(X), "needs inference_model"),
        ("inference_model", lambda p: p.interpolate(X, X), "needs inference_model"),
        ("latent_scheduler", lambda p: p.reconstruct(X), "num_inference_steps=None needs latent_scheduler"),
        ("latent_scheduler", lambda p: p.interpolate(X, X), "latent_inference_steps=None needs latent_scheduler"),
        ("latent_scheduler", lambda p: p.inpaint(X, MASK), "latent_inference_steps=None needs latent_scheduler"),
    ],
)
def test_missing_components_are_named(tiny_dual_mcmc_pipeline, missing, call, message):
    setattr(tiny_dual_mcmc_pipeline, missing, None)
    with pytest.raises(ValueError, match=message):
        call(tiny_dual_mcmc_pipeline)


def test_constructor_refuses_what_does_not_fit(tiny_dual_mcmc_pipeline):
    parts = dict(tiny_dual_mcmc_pipeline.components)
    wrong = [
        ({"scheduler": DDPMScheduler()}, "scheduler must be a sampler of energies, got DDPMScheduler"),
        ({"scheduler": None}, "scheduler must be a sampler"),
        ({"latent_scheduler": DDPMScheduler()}, "latent_scheduler must be a sampler"),
        ({"inference_model": ConvInferenceModel(8, 1, latent_dim=5, block_out_channels=(4, 4))}, "latent_dim"),
        (
            {"inference_model": ConvInferenceModel(16, 1, latent_dim=4, block_out_channels=(4, 4))},
            "inference_model takes",
        ),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            DualMCMCPipeline(**{**parts, **change})
    tiny_dual_mcmc_pipeline.scheduler = DDPMScheduler()  # swapped in afterwards
    with pytest.raises(ValueError, match="scheduler must be a sampler"):
        tiny_dual_mcmc_pipeline(1)
