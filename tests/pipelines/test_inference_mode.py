"""Every public call works inside ``torch.inference_mode()`` and gives the same result."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from dual_mcmc_chains import MASK, SAMPLERS, seeded, unit
from dual_mcmc_chains import some_images as model_images
from PIL import Image
from torch.testing import assert_close
from transformers import AutoImageProcessor

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.langevin import conditional_energy_grad, energy_grad, langevin_chain, run_chain
from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import GaussianBase
from hf_ebm.likelihood.dequantization import log_z_on_grid
from hf_ebm.likelihood.evaluate import estimate_conditional_log_z, evaluate_chain_likelihood, evaluate_likelihood
from hf_ebm.likelihood.log_partition import LikelihoodSettings
from hf_ebm.likelihood.warmup import equilibrate
from hf_ebm.pipelines.ood_detection import OODDetectionPipeline
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.scoring.scores import SCORES


def some_images(count=3):
    return unit(model_images(count))


def tensors(value):
    """All tensors and numbers of a call's result, by their place in it."""
    if isinstance(value, torch.Tensor | np.ndarray | float):
        return torch.as_tensor(value)
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [tensors(item) for item in value]
    if dataclasses.is_dataclass(value):
        return tensors({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return []


def same_in_inference_mode(calls):
    """Each of `calls`, made from fresh inputs by ``() -> result``, outside and inside the mode."""
    for name, call in calls.items():
        found = []
        for mode in (contextlib.nullcontext(), torch.inference_mode()):
            with mode:
                found.append(tensors(call()))
        assert str(found[0]) != "[]", name
        assert_close(found[1], found[0], equal_nan=True, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("training", [False, True])
def test_ddaebm(tiny_pipeline, training):
    for part in (tiny_pipeline.generator_model, tiny_pipeline.energy_model):
        part.train(training)
    same_in_inference_mode(
        {
            "sampling": lambda: tiny_pipeline(2, generator=seeded(), output_type="pt"),
            "correction": lambda: tiny_pipeline(2, generator=seeded(), output_type="pt", num_correction_steps=2),
            "correct": lambda: tiny_pipeline.correct(
                torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), torch.tensor(1), 1, 0.1, seeded()
            ),
            "score": lambda: tiny_pipeline.score(some_images(), all_timesteps=True),
        }
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_dual_mcmc(tiny_dual_mcmc_pipeline, sampler, training):
    pipe, options = tiny_dual_mcmc_pipeline, {"output_type": "pt"}
    pipe.scheduler = sampler(num_train_timesteps=2, step_size=0.3, noise_std=0.1)
    pipe.latent_scheduler = sampler(num_train_timesteps=2, step_size=0.1)
    for part in (pipe.generator_model, pipe.energy_model, pipe.inference_model):
        part.train(training)

    def traced():
        return {"generator": seeded(), "output_diagnostics": True, **options}

    same_in_inference_mode(
        {
            "sampling": lambda: pipe(2, output_energies=True, **traced()),
            "from latents": lambda: pipe(2, latents=torch.ones(2, 4), **traced()),
            "reconstruct": lambda: pipe.reconstruct(some_images(), output_squared_errors=True, **traced()),
            "reconstruct from latents": lambda: pipe.reconstruct(some_images(), latents=torch.ones(3, 4), **traced()),
            "inpaint": lambda: pipe.inpaint(some_images(), MASK.clone(), output_energies=True, **traced()),
            "inpaint lists": lambda: pipe.inpaint(list(some_images()), MASK.numpy(), **traced()),
            "interpolate images": lambda: pipe.interpolate(
                some_images(), 1 - some_images(), 2, 2, generator=seeded(), **options
            ),
            "interpolate latents": lambda: pipe.interpolate(
                torch.ones(4), -torch.ones(4) + 0.1, 3, 2, generator=seeded(), **options
            ),
            "score": lambda: pipe.score(some_images()),
        }
    )


@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_scores(request, fixture):
    scorer = EnergyScoringPipeline.from_pipe(request.getfixturevalue(fixture))
    scorer.set_progress_bar_config(disable=True)

    def calibrate():
        scorer.calibrate(load_digits("test")[0][:24], target_fpr=0.2)
        return [scorer.threshold(name) for name in scorer.available_scores]

    def score(name):
        return lambda: scorer(load_digits("test")[0][24:28], score=name)

    same_in_inference_mode({"calibrate": calibrate})
    assert {"gradient_norm", "reconstruction"} <= {*scorer.available_scores} <= {*SCORES}
    same_in_inference_mode({name: score(name) for name in scorer.available_scores})


def test_ood_detection(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.energy_model.save_pretrained(tmp_path)
    detect = OODDetectionPipeline(
        tiny_dual_mcmc_pipeline.energy_model, image_processor=AutoImageProcessor.from_pretrained(tmp_path)
    )
    same_in_inference_mode({"detect": lambda: detect([Image.new("L", (8, 8), 20), Image.new("L", (8, 8), 90)])})


def test_a_pipeline_loaded_in_inference_mode(tiny_pipeline, tiny_dual_mcmc_pipeline, tmp_path):
    """Its weights are inference tensors, in and out of the mode."""
    for pipeline in (tiny_pipeline, tiny_dual_mcmc_pipeline):
        pipeline.save_pretrained(tmp_path / type(pipeline).__name__)
        with torch.inference_mode():
            loaded = type(pipeline).from_pretrained(tmp_path / type(pipeline).__name__)
        loaded.set_progress_bar_config(disable=True)
        options = {"num_correction_steps": 1} if pipeline is tiny_pipeline else {}
        expected = pipeline(2, generator=seeded(), output_type="pt", **options).images
        assert_close(loaded(2, generator=seeded(), output_type="pt", **options).images, expected)
        same_in_inference_mode({"loaded": lambda: loaded(2, generator=seeded(), output_type="pt", **options)})  # noqa: B023


def test_images_made_in_inference_mode_and_given_outside_it(tiny_dual_mcmc_pipeline):
    pipe, x = tiny_dual_mcmc_pipeline, some_images()
    with torch.inference_mode():
        made, mask, z = some_images(), MASK.clone(), torch.ones(3, 4)
    for given in (made, list(made)):
        found = pipe.reconstruct(given, generator=seeded(), output_type="pt").images
        assert_close(found, pipe.reconstruct(x, generator=seeded(), output_type="pt").images)
    found = pipe.inpaint(made, mask, generator=seeded(), output_type="pt").images
    assert_close(found, pipe.inpaint(x, MASK, generator=seeded(), output_type="pt").images)
    assert pipe.reconstruct(made, latents=z, output_type="pt").images.shape == x.shape


def test_chains_and_likelihood(tiny_pipeline, tiny_dual_mcmc_pipeline):
    def energy_fn(x):
        return 0.5 * (x**2).flatten(1).sum(dim=1)

    def base():
        return GaussianBase.full(torch.zeros(2), 2.0 * torch.eye(2))

    quick = {"num_chains": 4, "num_temperatures": 3, "batch_size": 4}
    settings = LikelihoodSettings(**quick, num_leapfrog_steps=1, equilibration_steps=2)
    levels = (some_images(80) * 8).round() / 8

    def conditional():
        q, x_next = DiffusionCoefficients.vp(4), torch.ones(2, 2)
        return estimate_conditional_log_z(energy_fn, q, x_next, 1, base(), generator=seeded(), **quick)

    def denoising():
        x, t = torch.ones(2, 1, 8, 8), torch.tensor([1, 2])
        grad_fn = conditional_energy_grad(tiny_pipeline.energy_model, x.clone(), t, DiffusionCoefficients.vp(4))
        return langevin_chain(x, grad_fn, 2, 0.1, generator=seeded())

    same_in_inference_mode(
        {
            "run_chain": lambda: run_chain(LangevinScheduler(2, 0.1), energy_fn, torch.ones(3, 2), 2, seeded()),
            "langevin_chain": lambda: langevin_chain(
                torch.ones(3, 2), lambda x: energy_grad(energy_fn, x), 2, 0.1, generator=seeded()
            ),
            "denoising": denoising,
            "estimate_log_z": lambda: estimate_log_z(energy_fn, base(), torch.ones(4, 2), generator=seeded(), **quick),
            "conditional": conditional,
            "equilibrate": lambda: equilibrate(energy_fn, base(), torch.ones(4, 2), num_steps=3, generator=seeded()),
            "grid": lambda: log_z_on_grid(energy_fn, 3.0, 20),
            "likelihood": lambda: evaluate_likelihood(
                tiny_dual_mcmc_pipeline, levels[:78].clone(), levels[78:].clone(), 17, settings
            ),
            "chain likelihood": lambda: evaluate_chain_likelihood(
                tiny_pipeline, levels[:78].clone(), levels[78:79].clone(), 17, settings
            ),
        }
    )
