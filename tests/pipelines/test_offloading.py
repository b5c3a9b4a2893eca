"""Sampling, scoring and statistics under accelerate's and diffusers' offloading give what they give without it.

Here the CPU is the device to compute on, and what waits is on ``meta``; `tests/on_second_device` has two devices.
"""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import pipeline as transformers_pipeline

import hf_ebm.pipelines.ood_detection  # noqa: F401 (registers the task)
from hf_ebm import EnergyScoringPipeline
from hf_ebm.utils.torch_utils import execution_device

X = torch.linspace(-1, 1, 6 * 64).reshape(6, 1, 8, 8)


def seeded():
    return torch.Generator().manual_seed(0)


def sequential(pipe):
    """What ``enable_sequential_cpu_offload`` does; accelerate itself cannot do so on the device "cpu:0"."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, "cpu")


def energy_alone(pipe):
    cpu_offload(pipe.energy_model, "cpu")


def generator_alone(pipe):
    cpu_offload(pipe.generator_model, "cpu")


def device_map(pipe):
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            dispatch_model(part, {"": "cpu"}, force_hooks=True)


OFFLOADS = [sequential, energy_alone, generator_alone, device_map]


def results(pipe):
    """All that the networks compute, by name."""
    found = {"score": pipe.score(X).energies}
    if hasattr(pipe, "reconstruct"):
        found["samples"] = pipe(2, generator=seeded(), output_type="pt").images
        found["reconstructions"] = pipe.reconstruct(X, generator=seeded(), output_type="pt").images
        found["filled in"] = pipe.inpaint(X, torch.eye(8), generator=seeded(), output_type="pt").images
        found["frames"] = pipe.interpolate(X[:1], X[1:2], 2, 1, generator=seeded(), output_type="pt").images
    else:
        found["levels"] = pipe.score(X, all_timesteps=True).energies_all_timesteps
        found["samples"] = pipe(2, generator=seeded(), output_type="pt", num_correction_steps=1).images
    scorer = EnergyScoringPipeline.from_pipe(pipe)
    scorer.set_progress_bar_config(disable=True)
    for name in scorer.available_scores:
        if name in ("energy", "gradient_norm", "reconstruction"):
            found[name] = scorer(X, score=name).scores
    scorer.calibrate(X, target_fpr=0.4)
    for name in scorer.calibration.reference:
        found[f"calibrated {name}"] = scorer(X, score=name).scores
    return found


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_offloaded_networks_compute_the_same(name, offload, request):
    pipe = request.getfixturevalue(name)
    expected = results(pipe)
    assert {"energy", "gradient_norm", "reconstruction", "calibrated combined"} <= set(expected)
    offload(pipe)
    assert execution_device(pipe.energy_model).type == execution_device(pipe.generator_model).type == "cpu"
    if offload in (sequential, energy_alone):
        assert pipe.energy_model.device.type == "meta"
    found = results(pipe)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.allclose(value, expected[key], rtol=1e-4, atol=1e-5), key


def test_the_transformers_task_of_an_offloaded_energy(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    options = {"model": str(tmp_path / "energy_model")}
    image = tiny_pipeline(1, generator=seeded()).images[0]
    expected = transformers_pipeline("ood-detection", **options)(image)
    found = transformers_pipeline("ood-detection", **options, device_map={"": "cpu"})(image)
    assert found == pytest.approx(expected)
