"""Sampling, revising, reconstructing and scoring on the second device: the CPU's results, no host syncs in chains."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from sampler_table import SAMPLERS
from second_device import WAITS
from torch.testing import assert_close

from hf_ebm import EnergyScoringPipeline, LangevinScheduler
from hf_ebm.data.digits import load_digits
from hf_ebm.langevin import ChainDivergedError
from hf_ebm.scoring.scores import SCORES

DIGITS = load_digits("test")[0]
DDAEBM_CALLS = {
    "draw": lambda pipe, random: pipe(3, generator=random),
    "draw, a generator each": lambda pipe, random: pipe(2, generator=[random, torch.Generator().manual_seed(1)]),
    "draw and correct": lambda pipe, random: pipe(3, generator=random, num_correction_steps=2),
}
DUAL_MCMC_CALLS = {
    "draw": lambda pipe, random: pipe(3, generator=random),
    "draw alone": lambda pipe, random: pipe(3, num_inference_steps=0, generator=random),
    "reconstruct": lambda pipe, random: pipe.reconstruct(DIGITS[:3], generator=random),
    "interpolate": lambda pipe, random: pipe.interpolate(DIGITS[:1], DIGITS[1:2], num_frames=4, generator=random),
    "inpaint": lambda pipe, random: pipe.inpaint(DIGITS[:3], torch.ones(8, 8).tril(), generator=random),
}


def moved(pipe):
    """The same pipeline on the second device."""
    other = type(pipe)(**copy.deepcopy(pipe.components)).to("second")
    other.set_progress_bar_config(disable=True)
    return other


def assert_same_images(pipe, call, other=None):
    others = moved(pipe) if other is None else other
    pictures = [call(each, torch.Generator().manual_seed(3)).images for each in (pipe, others)]
    here, there = (np.stack([np.asarray(image, dtype=int) for image in images]) for images in pictures)
    assert abs(here - there).max() <= 1 and here.std() > 1  # levels of 0..255


@pytest.mark.parametrize("name", DDAEBM_CALLS)
def test_ddaebm(tiny_pipeline, name):
    assert_same_images(tiny_pipeline, DDAEBM_CALLS[name])


@pytest.mark.parametrize("stock", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_ddaebm_with_a_stock_scheduler(tiny_pipeline, stock):
    tiny_pipeline.scheduler = stock.from_config(tiny_pipeline.scheduler.config)
    assert_same_images(tiny_pipeline, lambda pipe, random: pipe(2, num_inference_steps=4, generator=random))


@pytest.mark.parametrize("name", DUAL_MCMC_CALLS)
def test_dual_mcmc(tiny_dual_mcmc_pipeline, name):
    assert_same_images(tiny_dual_mcmc_pipeline, DUAL_MCMC_CALLS[name])


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler(tiny_dual_mcmc_pipeline, row):
    tiny_dual_mcmc_pipeline.scheduler = row.scheduler(**{**row.settings, "step_size": 1e-3})
    assert_same_images(tiny_dual_mcmc_pipeline, lambda pipe, random: pipe(2, num_inference_steps=5, generator=random))


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
def test_a_chain_of_any_length_waits_as_often(tiny_dual_mcmc_pipeline, row):
    tiny_dual_mcmc_pipeline.scheduler = row.scheduler(**{**row.settings, "step_size": 1e-3})
    there, counts = moved(tiny_dual_mcmc_pipeline), []
    for num_steps in (2, 12):
        WAITS.clear()
        there(2, num_inference_steps=num_steps, output_energies=True, output_diagnostics=True, output_type="pt")
        counts.append(sum(WAITS.values()))
    assert counts[0] == counts[1] > 0  # is it finite, and the energies


def test_a_chain_that_diverges_names_its_step_and_keeps_the_last_finite_state(tiny_dual_mcmc_pipeline):
    errors = []
    tiny_dual_mcmc_pipeline.scheduler = LangevinScheduler(step_size=1e19)
    for pipe in (tiny_dual_mcmc_pipeline, moved(tiny_dual_mcmc_pipeline)):
        with pytest.raises(ChainDivergedError) as caught:
            pipe(2, num_inference_steps=9, generator=torch.Generator().manual_seed(3))
        errors.append(caught.value)
    here, there = errors
    assert here.step == there.step > 0
    assert_close(here.last_state, there.last_state.cpu())


def test_ddaebm_waits_once_for_all_its_images(tiny_pipeline):
    there = moved(tiny_pipeline)
    there(2, output_type="pt")
    WAITS.clear()
    there(2, output_type="pt")
    assert sum(WAITS.values()) == 1  # are they finite


@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_scores(request, tmp_path, fixture):
    request.getfixturevalue(fixture).save_pretrained(tmp_path)
    results = []
    for device in ("cpu", "second"):
        scorer = EnergyScoringPipeline.from_pretrained(tmp_path, load_reconstruction=True).to(device)
        scorer.set_progress_bar_config(disable=True)
        scorer.calibrate(DIGITS[:60], target_fpr=0.05)
        assert scorer.energy_model.device.type == device
        names = [name for name in SCORES if name in scorer.calibration.reference]
        results.append([scorer(DIGITS[60:80].to(device), score=name) for name in names])
    assert len(results[0]) >= 6
    for here, there in zip(*results, strict=True):
        assert_close(here.scores, there.scores, rtol=1e-4, atol=1e-4)
        assert_close(here.energies, there.energies)
        assert_close(here.p_values, there.p_values, rtol=0, atol=0.02)  # one of 60


def offloaded(pipe):
    """The same pipeline whose networks wait on the CPU (accelerate cannot put these parameters on ``meta``)."""
    other = moved(pipe).to("cpu")
    other.enable_model_cpu_offload(device="second")
    return other


def check_waiting(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.device.type for part in parts for parameter in part.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("pipeline", "calls"), [("tiny_pipeline", DDAEBM_CALLS), ("tiny_dual_mcmc_pipeline", DUAL_MCMC_CALLS)]
)
def test_offloaded_pipelines(request, pipeline, calls):
    pipe = request.getfixturevalue(pipeline)
    other = offloaded(pipe)
    check_waiting(other)
    for call in calls.values():
        assert_same_images(pipe, call, other)
        check_waiting(other)
    energies = other.score(DIGITS[:4]).energies
    assert_close(energies, pipe.score(DIGITS[:4]).energies, rtol=1e-4, atol=1e-4)
    check_waiting(other)


@pytest.mark.parametrize("pipeline", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_offloaded_scores(request, pipeline):
    scorer = EnergyScoringPipeline.from_pipe(request.getfixturevalue(pipeline))
    scorer.set_progress_bar_config(disable=True)
    other = offloaded(scorer)
    for each in (scorer, other):
        each.calibrate(DIGITS[:14], target_fpr=0.2)
    for score in scorer.available_scores:
        expected, found = (each(DIGITS[:2], score=score).scores for each in (scorer, other))
        assert_close(found, expected, rtol=1e-3, atol=1e-3)
        check_waiting(other)
