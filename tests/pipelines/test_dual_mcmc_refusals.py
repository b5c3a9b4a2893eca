"""Invalid input of DualMCMCPipeline and diverging chains: clear errors."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from dual_mcmc_chains import MASK, langevin, seeded, x_energy
from torch.testing import assert_close

from hf_ebm import ConvInferenceModel, DualMCMCPipeline, LangevinScheduler
from hf_ebm.evaluation.samples import describe_sampler
from hf_ebm.langevin import ChainDivergedError
from hf_ebm.models.energy import EnergyOutput


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
        ("reconstruct", {"images": torch.zeros(2, 5, 8, 8)}, "images must have 1, 3 or 4 channels"),
        ("reconstruct", {"images": torch.zeros(8, 8)}, "images as tensors must have shape"),
        ("reconstruct", {"images": X - 0.5}, r"images .* \[0, 1\]"),
        ("reconstruct", {"images": X + 2}, r"images .* \[0, 1\]"),
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
        ("interpolate", {"a": X, "b": X + 2}, r"b \(as images\): images .* \[0, 1\]"),
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
        ("inpaint", {"images": X + 2, "mask": MASK}, r"images .* \[0, 1\]"),
        ("inpaint", {"images": X, "mask": MASK, "num_inference_steps": -1}, "num_inference_steps"),
        ("inpaint", {"images": X, "mask": MASK, "latent_inference_steps": 1.5}, "latent_inference_steps"),
        ("score", {"images": X + 2}, r"\[0, 1\]"),
    ],
)
def test_tasks_refuse(tiny_dual_mcmc_pipeline, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_dual_mcmc_pipeline, method)(**arguments)


@pytest.mark.parametrize(
    ("missing", "call", "message"),
    [
        ("energy_model", lambda p: p(2, 0, output_energies=True), "output_energies needs energy_model"),
        ("energy_model", lambda p: p.inpaint(X, MASK, 0, output_energies=True), "output_energies needs energy_model"),
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


@pytest.mark.parametrize("missing", [["energy_model"], ["scheduler"], ["energy_model", "scheduler"]])
def test_without_its_components_the_x_chain_is_left_out_with_a_warning(tiny_dual_mcmc_pipeline, missing, caplog):
    pipe = tiny_dual_mcmc_pipeline

    def results(*steps):
        options = {"generator": seeded(), "output_type": "pt"}
        return [
            pipe(2, *steps, **options).images,
            pipe.inpaint(X, MASK, *steps, **options).images,
            pipe.interpolate(X, X, 2, *(steps or (3,)), **{**options, "generator": seeded()}).images,
        ]

    expected = results(0)
    pipe = DualMCMCPipeline(**{**pipe.components, **dict.fromkeys(missing)})
    pipe.set_progress_bar_config(disable=True)
    for steps in ((), (3,)):
        caplog.clear()
        assert_close(results(*steps), expected)
        needed = " and ".join(sorted(missing, reverse=True))
        assert [record.getMessage() for record in caplog.records] == 3 * [
            f"samples are the generator's, not revised by the x-chain: it needs {needed}, which this pipeline was "
            "loaded without. Load what is missing, or pass num_inference_steps=0."
        ]
    caplog.clear()
    assert describe_sampler(pipe, 3, 2)["num_inference_steps"] == 0
    assert_close(results(0), expected)
    pipe.scheduler = LangevinScheduler(num_train_timesteps=0, step_size=0.1)  # trained without the chain
    assert_close(pipe(2, generator=seeded(), output_type="pt").images, expected[0])
    assert not caplog.records


def test_constructor_refuses_what_does_not_fit(tiny_dual_mcmc_pipeline):
    parts = dict(tiny_dual_mcmc_pipeline.components)
    wrong = [
        ({"scheduler": DDPMScheduler()}, "scheduler must be a sampler of energies, got DDPMScheduler"),
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
