"""DDAEBMPipeline: the diffusers pipeline contract, sampling, scoring, and clear errors."""

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from fresh_process import run_in_fresh_process
from torch.testing import assert_close

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler, DualMCMCPipeline, EnergyScoringPipeline, MALAScheduler
from hf_ebm.langevin import conditional_energy_grad, langevin_step


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_one_network_call_per_step(tiny_pipeline):
    calls = []
    tiny_pipeline.generator_model.register_forward_hook(lambda *_: calls.append(1))
    tiny_pipeline(batch_size=2)
    assert len(calls) == 4


def test_sampling_is_the_algorithm(tiny_pipeline):
    """The loop written out with the coefficients."""
    images = tiny_pipeline(batch_size=3, generator=seeded(), output_type="latent").images
    g, q = seeded(), tiny_pipeline.scheduler.coefficients
    x = torch.randn(3, 1, 8, 8, generator=g)
    with torch.no_grad():
        for step in (3, 2, 1, 0):
            t = torch.full((3,), step)
            x0_pred = tiny_pipeline.generator_model(x, t, torch.randn(3, 4, generator=g)).sample
            noise = torch.randn(3, 1, 8, 8, generator=g) if step else torch.zeros_like(x)
            x = q.posterior_sample(x0_pred, x, t, noise)
    assert_close(images, x)


def test_images_keep_their_pixels_and_are_writable(tiny_pipeline):
    images = torch.linspace(-1.2, 1.2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    first, second = tiny_pipeline.post_process(images, "pil")
    assert first.mode == "RGB" and first.size == (8, 8)
    expected = ((images[1].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round()
    assert np.array_equal(np.asarray(second), expected.numpy())
    before = np.asarray(second).copy()
    first.putpixel((0, 7), (1, 2, 3))
    assert np.array_equal(np.asarray(second), before)


def test_weights_stored_in_eight_bits(tiny_pipeline):
    """diffusers' layerwise casting: the noise is drawn in the dtype that the networks compute in."""
    tiny_pipeline.generator_model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    images = tiny_pipeline(2, generator=seeded(), output_type="pt").images
    assert images.dtype == torch.bfloat16 and torch.isfinite(images).all()


def test_noise_is_sampled_on_the_execution_device(tiny_pipeline):
    generator_model = tiny_pipeline.generator_model
    assert tiny_pipeline._execution_device == torch.device("cpu")
    add_hook_to_module(generator_model, AlignDevicesHook("meta", io_same_device=True))
    assert tiny_pipeline._execution_device == torch.device("meta")


def test_same_images_in_a_fresh_process(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    expected = tiny_pipeline(batch_size=2, generator=seeded(5), output_type="pt").images
    code = (
        "import sys, torch; from hf_ebm import DDAEBMPipeline\n"
        "pipe = DDAEBMPipeline.from_pretrained(sys.argv[1])\n"
        "x = pipe(batch_size=2, generator=torch.Generator().manual_seed(5), output_type='pt').images\n"
        "torch.save((x, pipe.score(x).energies), sys.argv[2])"
    )
    run_in_fresh_process(code, str(tmp_path), str(tmp_path / "out.pt"))
    images, energies = torch.load(tmp_path / "out.pt")
    assert torch.equal(images, expected)
    assert torch.equal(energies, tiny_pipeline.score(expected).energies)


def test_a_scheduler_that_fails_on_the_short_chain_is_named(tiny_pipeline):
    tiny_pipeline.scheduler = DPMSolverMultistepScheduler.from_config(tiny_pipeline.scheduler.config)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler made samples that are not finite"):
        tiny_pipeline(2, num_inference_steps=4)


def test_another_pipelines_folder_is_named(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a DDAEBMPipeline.*hf_ebm\.DDAEBMPipeline\.from_pretrained"):
        DualMCMCPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(DDAEBMPipeline, "generator_model"), (DDAEBMPipeline, "scheduler"), (EnergyScoringPipeline, "energy_model")],
)
def test_a_needed_component_cannot_be_left_out(tiny_pipeline, tmp_path, cls, name):
    tiny_pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{name} must not be None: {cls.__name__} does nothing without it"):
        cls.from_pretrained(tmp_path, **{name: None})


@pytest.mark.parametrize("stock", [DDPMScheduler, DDIMScheduler])
def test_stock_schedulers_swap_in(tiny_pipeline, stock):
    ours = tiny_pipeline(4, generator=seeded(), output_type="pt").images
    tiny_pipeline.scheduler = stock.from_config(tiny_pipeline.scheduler.config)
    theirs = tiny_pipeline(4, generator=seeded(), output_type="pt").images
    assert torch.isfinite(theirs).all()
    if stock is DDPMScheduler:  # the same ancestral sampler, up to the noise of our cleanest state
        assert_close(theirs, ours, rtol=0, atol=0.01)
    else:
        assert len(tiny_pipeline(2, num_inference_steps=2).images) == 2
    tiny_pipeline(2, num_correction_steps=1)  # the chain is found in the stock scheduler's config
    tiny_pipeline.scheduler = DDAEBMScheduler.from_config(tiny_pipeline.scheduler.config)
    assert_close(tiny_pipeline(4, generator=seeded(), output_type="pt").images, ours, rtol=0, atol=0)


def test_langevin_correction_is_langevin_on_the_conditional_energy(tiny_pipeline):
    x, x_next, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor(2)
    corrected = tiny_pipeline.correct(x, x_next, t, 2, 0.1, seeded())
    g, q = seeded(), tiny_pipeline.coefficients
    s = 0.1 * q.posterior_variance[2].sqrt()
    grad = conditional_energy_grad(tiny_pipeline.energy_model.eval(), x_next, t.expand(2), q)
    for _ in range(2):
        noise = torch.randn(x.shape, generator=g)
        x = langevin_step(x, grad(x), s, s, noise)
    assert_close(corrected, x)


def test_a_correction_needs_an_energy_and_every_level(tiny_pipeline):
    tiny_pipeline.scheduler = DDIMScheduler.from_config(tiny_pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"num_correction_steps > 0 needs all 4 denoising steps.*got num_inference_st"):
        tiny_pipeline(2, num_inference_steps=2, num_correction_steps=1)
    tiny_pipeline(2, num_inference_steps=4, num_correction_steps=1)
    tiny_pipeline.energy_model = None
    with pytest.raises(ValueError, match="num_correction_steps > 0 needs energy_model"):
        tiny_pipeline(2, num_correction_steps=1)


def test_score_is_the_energy_at_t0_and_all_levels_on_request(tiny_pipeline):
    tiny_pipeline.energy_model.train()
    images = torch.rand(5, 1, 8, 8)
    x = images * 2 - 1
    out = tiny_pipeline.score(images, all_timesteps=True, batch_size=2)
    assert tiny_pipeline.energy_model.training  # its mode was put back
    model = tiny_pipeline.energy_model.eval()
    with torch.no_grad():
        expected = torch.stack([model(x, t).energy for t in range(4)], dim=1)
    assert_close(out.energies_all_timesteps, expected)
    assert_close(out.energies, expected[:, 0])
    assert tiny_pipeline.score(images).energies_all_timesteps is None


def test_sampling_drops_nothing_out(tiny_pipeline):
    expected = tiny_pipeline(batch_size=2, generator=seeded(), output_type="pt").images
    dropouts = [m for m in tiny_pipeline.generator_model.modules() if isinstance(m, torch.nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0.5
    tiny_pipeline.generator_model.train()
    assert dropouts and tiny_pipeline(2, generator=seeded(), output_type="pt").images.equal(expected)


def test_score_drops_nothing_out():
    from hf_ebm import UNetEnergyConfig, UNetEnergyModel
    from hf_ebm.scoring.statistics import compute_energies

    config = UNetEnergyConfig(image_size=8, num_channels=1, base_channels=8, channel_multipliers=(1, 2), dropout=0.5)
    model = UNetEnergyModel(config).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(compute_energies(model, x), compute_energies(model, x))


def test_all_kinds_of_images_score_alike(tiny_pipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    expected = tiny_pipeline.energy_model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).energy
    expected = expected.detach()
    given = [
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        pixels,
        pixels[..., 0],
        pixels.astype(np.float64) / 255,
        [PIL.Image.fromarray(image[..., 0]) for image in pixels],
        [image for image in pixels],  # noqa: C416
    ]
    for images in given:
        assert_close(tiny_pipeline.score(images).energies, expected, rtol=1e-4, atol=1e-4)
    assert tiny_pipeline.score(PIL.Image.fromarray(pixels[0, :, :, 0])).energies.shape == (1,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 5, 8, 8), "channels"),
        (torch.zeros(8, 8), "shape"),
        (torch.full((1, 1, 8, 8), 1.5), r"\[0, 1\]"),
        (torch.full((1, 1, 8, 8), -0.1), r"\[0, 1\]"),
        (torch.full((1, 1, 8, 8), float("nan")), "finite"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "floats"),
        (np.full((1, 8, 8, 1), 2.0), r"\[0, 1\]"),
        (np.full((1, 8, 8, 1), -0.5), r"\[0, 1\]"),
        (np.zeros((1, 8, 8, 1), dtype=np.int64), "dtype int64"),
        (PIL.Image.new("F", (8, 8)), "range is not known"),
        ([], "empty"),
        (torch.zeros(0, 1, 8, 8), "empty"),
        ("picture.png", "PIL images"),
    ],
)
def test_score_refuses(tiny_pipeline, images, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.score(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": 2, "generator": [torch.Generator()]}, "batch_size=2"),
        ({"generator": 0}, "generator must be a torch.Generator, a list of them, or None, got 0"),
        ({"output_type": "jpg"}, "output_type"),
        ({"num_inference_steps": 5}, "num_inference_steps must be 4"),
        ({"num_correction_steps": -1}, "num_correction_steps"),
        ({"num_correction_steps": 1, "correction_step_size": float("nan")}, "correction_step_size"),
        ({"correction_step_size": "a"}, "correction_step_size must be a positive, finite number"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_call_refuses(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_steps_that_stock_schedulers_would_take_is_refused(tiny_pipeline, number):
    tiny_pipeline.scheduler = DDIMScheduler.from_config(tiny_pipeline.scheduler.config)
    with pytest.raises(ValueError, match=f"num_inference_steps must be a whole number >= 1, .* got {number}"):
        tiny_pipeline(num_inference_steps=number)


def test_constructor_refuses_schedulers_that_do_not_fit(tiny_pipeline):
    models = (tiny_pipeline.generator_model,)
    with pytest.raises(ValueError, match="prediction_type"):
        DDAEBMPipeline(*models, DDPMScheduler(num_train_timesteps=4))
    with pytest.raises(ValueError, match="3 steps"):
        DDAEBMPipeline(*models, DDAEBMScheduler(num_train_timesteps=3))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (MALAScheduler(), r"must take a predicted clean sample.*got MALAScheduler"),
        (EulerDiscreteScheduler(), r"must take a predicted clean sample.*got EulerDiscreteScheduler"),
        (DDIMScheduler(prediction_type="sample"), "scheduler has 1000 steps and generator_model was built for 4"),
    ],
)
def test_a_scheduler_that_was_swapped_in_is_checked(tiny_pipeline, scheduler, message):
    tiny_pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(batch_size=2)
