"""DualMCMCPipeline with classes: labels, guidance, the most likely label, and invalid input."""

import pytest
import torch
from dual_mcmc_chains import MASK, SAMPLERS, langevin, seeded, some_images, unit, x_energy
from torch.testing import assert_close

from hf_ebm import DualMCMCPipeline, EnergyScoringPipeline, LangevinScheduler
from hf_ebm.losses.dual_mcmc import posterior_energy
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.pipelines.pipeline_dual_mcmc import compute_reconstruction_error

K = 3
NAMES = ["cat", "dog", "owl"]
TAU = 0.5
SCORES = pytest.mark.parametrize("class_scores", [True, False])


def make_models(class_scores=True, num_classes=K, **energy):
    torch.manual_seed(0)
    overrides = {
        "generator": {"block_out_channels": (8, 8), "patch_size": 1},
        "energy": {"block_out_channels": (8, 8), "patch_size": 1, "class_scores": class_scores, **energy},
        "inference": {"block_out_channels": (8, 16)},
    }
    prior, names = [0.2, 0.8, 0.0][:num_classes], NAMES[:num_classes]
    given = (num_classes, prior, names, TAU) if num_classes else ()
    models = build_dual_mcmc_models(dual_mcmc_model_settings("digits", 4, overrides, *given))
    if models[1].class_scores is not None:
        torch.nn.init.normal_(models[1].class_scores.weight, std=0.3)
    for model in (models[0], models[2]):
        if num_classes:
            model.class_embedding.weight.data *= 3.0
    return [model.eval() for model in models]


def make_pipe(class_scores=True, num_classes=K, **energy):
    generator_model, energy_model, inference_model = make_models(class_scores, num_classes, **energy)
    pipe = DualMCMCPipeline(
        generator_model,
        LangevinScheduler(num_train_timesteps=5, step_size=0.7, noise_std=0.5),
        energy_model,
        inference_model,
        LangevinScheduler(num_train_timesteps=3, step_size=0.1, noise_std=0.1),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, *arguments, **options):
    return pipe(*arguments, generator=seeded(), output_type="latent", **options).images


@SCORES
def test_guided_sampling_is_the_algorithm(class_scores):
    """g(z) + s (g(z, y) - g(z)), clamped, then the x-chain on E_y + (s - 1)(E_y - E) where the energy has labels."""
    pipe, labels, s, g = make_pipe(class_scores), torch.tensor([2, 0, 1]), 1.7, seeded()
    z = torch.randn(3, 4, generator=g)
    with torch.no_grad():
        x_class, x_null = (pipe.generator_model(z, y).sample for y in (labels, None))

    def energy(x):
        by_class, marginal = (pipe.energy_model(x, class_labels=y).energy for y in (labels, None))
        return by_class + (s - 1) * (by_class - marginal)

    start = (x_null + s * (x_class - x_null)).clamp(-1, 1)
    expected = langevin(pipe.scheduler, energy, start, 5, g)
    out = pipe(class_labels=["owl", "cat", "dog"], guidance_scale=s, generator=seeded(), output_type="latent")
    assert_close(out.images, expected)
    assert torch.equal(out.class_labels, labels) and torch.equal(out.latents, z)
    s, g = 1.0, seeded()
    torch.randn(3, 4, generator=g)
    unguided = sample(pipe, class_labels=labels)
    assert_close(unguided, langevin(pipe.scheduler, energy, x_class, 5, g))
    assert not torch.allclose(unguided, out.images, atol=1e-2)


def test_guidance_keeps_vectors_unclamped():
    torch.manual_seed(0)
    settings = dual_mcmc_model_settings("toy", None, {"energy": {"class_scores": False}}, 2)
    generator_model, energy_model, inference_model = build_dual_mcmc_models(settings)
    pipe, z = DualMCMCPipeline(generator_model, None, energy_model, inference_model), torch.randn(2, 2)
    found = pipe(num_inference_steps=0, latents=z, class_labels=[0, 1], guidance_scale=50.0, output_type="pt").images
    with torch.no_grad():
        x_class, x_null = (generator_model(z, y).sample for y in ([0, 1], None))
    assert_close(found, x_null + 50 * (x_class - x_null))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_the_labels_energy(sampler):
    """The energies along the chain are those of the labels, also where a sampler runs several chains per sample."""
    pipe, labels = make_pipe(), torch.tensor([2, 0, 1])
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    out = pipe(3, 4, class_labels=labels, generator=seeded(), output_type="latent", output_energies=True)
    energies = pipe.energy_model(out.images, class_labels=labels).energy
    assert_close(out.energies[-1], energies.detach())
    assert not torch.allclose(out.energies[-1], x_energy(pipe)(out.images), atol=1e-3)


@SCORES
def test_without_labels_they_are_drawn_from_the_class_frequencies(class_scores):
    pipe = make_pipe(class_scores)
    out = pipe(400, 0, generator=seeded(), output_type="latent")
    share = torch.bincount(out.class_labels, minlength=K) / 400
    assert share[2] == 0 and abs(share[0] - 0.2) < 0.06
    again = pipe(400, 0, latents=out.latents, class_labels=out.class_labels, output_type="latent")
    assert torch.equal(again.images, out.images)
    found = pipe.trajectory(3, 2, generator=seeded())
    assert torch.equal(found.samples, pipe(3, 2, generator=seeded(), output_type="latent").images)
    assert torch.equal(
        pipe.trajectory(2, 2, generator=seeded(), class_labels="owl").samples, sample(pipe, 2, 2, class_labels=[2, 2])
    )


def test_callbacks_and_a_generator_per_sample():
    pipe, seen = make_pipe(), []

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["x"])
        pipe._interrupt = step == 1

    options = {"class_labels": ["dog", 0], "guidance_scale": 1.5, "output_type": "latent"}
    images = pipe(generator=[seeded(1), seeded(2)], callback_on_step_end=callback, **options).images
    assert len(seen) == 2 and torch.equal(images, seen[-1])
    both = pipe(generator=[seeded(1), seeded(2)], **options).images
    alone = pipe(generator=[seeded(2)], **{**options, "class_labels": [0]}).images
    assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_the_most_likely_label_is_that_of_the_class_scores():
    pipe, x = make_pipe(), some_images(6)
    labels = pipe.energy_model(x).logits.argmax(dim=1)
    assert len(labels.unique()) > 1
    given, found = (
        pipe.reconstruct(unit(x), class_labels=y, generator=seeded(), output_type="latent") for y in (labels, None)
    )
    assert torch.equal(found.class_labels, labels) and torch.equal(found.images, given.images)
    null = pipe.generator_model(found.latents).sample
    assert not torch.allclose(found.images, null, atol=1e-2)  # never the null class
    assert_close(found.images, pipe.generator_model(found.latents, labels).sample.detach())


def test_without_class_scores_it_is_the_label_that_explains_the_image():
    pipe, x = make_pipe(class_scores=False), some_images(6)
    energies = []
    with torch.no_grad():
        for y in range(K):
            z = pipe.inference_model(x, y).mean
            energies.append(posterior_energy(lambda z, y=y: pipe.generator_model(z, y).sample, z, x, 0.3))
        z = torch.randn(6, 4)
        errors = [(pipe.generator_model(z, y).sample - x).square().sum(dim=(1, 2, 3)) for y in range(K)]
    labels = torch.stack(energies).argmin(dim=0)
    assert len(labels.unique()) > 1
    assert torch.equal(pipe.reconstruct(unit(x), output_type="latent").class_labels, labels)
    found = pipe.reconstruct(unit(x), latents=z, output_type="latent")
    assert torch.equal(found.class_labels, torch.stack(errors).argmin(dim=0))
    pipe.energy_model = None
    assert torch.equal(pipe.reconstruct(unit(x), output_type="latent").class_labels, labels)


def test_clusters_are_those_of_the_nearest_centre():
    centres = torch.linspace(-1, 1, K)[:, None].repeat(1, 64)
    pipe = make_pipe(class_scores=False, pseudo_label_centres=centres.tolist())
    x = torch.tensor([0.9, -0.8, 0.1])[:, None, None, None].expand(3, 1, 8, 8)
    assert pipe.reconstruct(unit(x), output_type="pt").class_labels.tolist() == [2, 0, 1]


@SCORES
def test_reconstruction_scores_use_the_most_likely_label(class_scores):
    pipe, x = make_pipe(class_scores), some_images(4)
    scoring = EnergyScoringPipeline(**pipe.components)
    labels = pipe.reconstruct(unit(x), output_type="latent").class_labels
    expected = compute_reconstruction_error(pipe, x, 0, labels)
    assert_close(scoring(unit(x), score="reconstruction").scores, expected, check_dtype=False)
    other = compute_reconstruction_error(pipe, x, 0, (labels + 1) % K)
    assert not torch.allclose(other, expected, rtol=1e-3)
    assert torch.equal(pipe.score(unit(x)).energies, pipe.energy_model(x).energy.detach())  # the marginal


@SCORES
def test_interpolation_has_the_labels_of_its_ends(class_scores):
    pipe, x = make_pipe(class_scores), unit(some_images(4))
    ends = pipe.reconstruct(x, output_type="latent").class_labels
    out = pipe.interpolate(x[:2], x[2:], num_frames=5, generator=seeded(), output_type="latent")
    frames = out.class_labels.unflatten(0, (2, 5))
    assert torch.equal(frames[:, :3], ends[:2, None].expand(2, 3))
    assert torch.equal(frames[:, 3:], ends[2:, None].expand(2, 2))
    assert_close(out.images, pipe.generator_model(out.latents, out.class_labels).sample.detach())
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    drawn = pipe.interpolate(a, b, num_frames=4, generator=seeded()).class_labels.unflatten(0, (2, 4))
    assert torch.equal(drawn, drawn[:, :1].expand(2, 4)) and (drawn < 2).all()
    given = pipe.interpolate(a, x[2:], num_frames=2, class_labels=["owl", "cat"]).class_labels
    assert given.tolist() == [2, 2, 0, 0]


@SCORES
def test_inpainting_uses_the_label_of_the_known_pixels(class_scores):
    pipe, x = make_pipe(class_scores), some_images(6)
    unknown = MASK.bool()
    energies = []
    with torch.no_grad():
        for y in range(K):
            gray = x.masked_fill(unknown, 0.0)
            z = pipe.inference_model(gray, y).mean
            error = ((pipe.generator_model(z, y).sample - x) ** 2 * ~unknown).sum(dim=(1, 2, 3))
            energies.append(error / 0.3**2 + z.square().sum(dim=1) / 2)
    labels = torch.stack(energies).argmin(dim=0)
    out = pipe.inpaint(unit(x), MASK, generator=seeded(), output_type="latent")
    assert torch.equal(out.class_labels, labels) and len(labels.unique()) > 1
    given = pipe.inpaint(unit(x), MASK, generator=seeded(), output_type="latent", class_labels=labels)
    assert torch.equal(given.images, out.images)
    pipe.inference_model = None
    assert (pipe.inpaint(unit(x), MASK, generator=seeded()).class_labels < 2).all()  # from the class frequencies


def test_a_saved_pipeline_samples_the_same(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    loaded = DualMCMCPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    options = {"class_labels": NAMES, "guidance_scale": 2.0}
    assert loaded.class_names == NAMES and torch.equal(sample(loaded, **options), sample(pipe, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": [K]}, r"numbers from 0 to 2 or names among .*, got 3"),
        ({"class_labels": [-1]}, "got -1"),
        ({"class_labels": "fish"}, "got 'fish'"),
        ({"class_labels": []}, "class_labels must be"),
        ({"class_labels": torch.tensor([0.5])}, "got 0.5"),
        ({"class_labels": [True]}, "got True"),
        ({"class_labels": [0, 1], "latents": torch.zeros(3, 4)}, "latents must be"),
        ({"class_labels": 0, "guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
        ({"class_labels": 0, "guidance_scale": "2"}, "guidance_scale must be a finite number"),
    ],
)
def test_sampling_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe()(3, **options)


def test_tasks_refuse_another_number_of_labels():
    pipe, x = make_pipe(), unit(some_images(3))
    for call in (
        lambda y: pipe.reconstruct(x, class_labels=y),
        lambda y: pipe.interpolate(x, x, class_labels=y),
        lambda y: pipe.inpaint(x, MASK, class_labels=y),
    ):
        with pytest.raises(ValueError, match="one for each of the 3 samples, got 2"):
            call([0, 1])
        with pytest.raises(ValueError, match="numbers from 0 to 2"):
            call(K)


def test_an_unconditional_model_takes_neither_labels_nor_guidance(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, unit(some_images(3))
    for call in (
        lambda: pipe(class_labels=3),
        lambda: pipe.reconstruct(x, class_labels=3),
        lambda: pipe.interpolate(x, x, class_labels=3),
        lambda: pipe.inpaint(x, MASK, class_labels=3),
    ):
        with pytest.raises(ValueError, match="class_labels must be None: this model has no classes; got 3"):
            call()
    with pytest.raises(ValueError, match=r"guidance_scale must be 1\.0 for a model without classes, got 2\.0"):
        pipe(guidance_scale=2.0)


def test_components_must_have_the_same_classes():
    generator_model, energy_model, inference_model = make_models()
    plain = make_models(num_classes=0)
    two = make_models(num_classes=2)
    for parts, message in (
        ((generator_model, None, two[1]), "energy_model has num_classes=2 and generator_model 3"),
        ((generator_model, None, energy_model, plain[2]), "inference_model has num_classes=0 and generator_model 3"),
        ((plain[0], None, energy_model, inference_model), "inference_model has num_classes=3 and generator_model 0"),
    ):
        with pytest.raises(ValueError, match=message):
            DualMCMCPipeline(*parts)
    pipe = DualMCMCPipeline(generator_model, LangevinScheduler(2, 0.5, 0.1), plain[1], inference_model)
    assert len(pipe(class_labels=[0, 2]).images) == 2  # an energy without classes revises samples of all
    assert len(DualMCMCPipeline(plain[0], LangevinScheduler(2, 0.5, 0.1), energy_model)(2).images) == 2  # the marginal
