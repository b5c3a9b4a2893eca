"""One pipeline called from eight threads gives the results of one thread, whatever the modes of its networks."""

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.callbacks import PipelineCallback
from dual_mcmc_chains import MASK, SAMPLERS, seeded, some_images, unit
from PIL import Image
from sampler_table import SAMPLERS as ROWS
from torch.testing import assert_close
from transformers import AutoImageProcessor

from hf_ebm import DDAEBMScheduler, EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.pipelines.ood_detection import OODDetectionPipeline

NUM_THREADS, NUM_CALLS = 8, 12


@contextlib.contextmanager
def frequent_switches():
    """Python changes threads after every few operations."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def networks(pipeline):
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def state_of(pipeline):
    """Modes, gradient flags and values of the networks."""
    modes = [module.training for network in networks(pipeline) for module in network.modules()]
    flags = [parameter.requires_grad for network in networks(pipeline) for parameter in network.parameters()]
    return modes, flags, [v.clone() for network in networks(pipeline) for v in network.state_dict().values()]


def check_threads(pipeline, call):
    """`call` of 0, 1, ... from eight threads, in either mode, against one thread with the networks in eval mode."""
    for network in networks(pipeline):
        network.eval()
    expected = [call(index) for index in range(NUM_CALLS)]
    for training in (False, True):
        for network in networks(pipeline):
            network.train(training)
            next(network.parameters()).requires_grad_(False)  # frozen by the user
        before = state_of(pipeline)
        with frequent_switches(), ThreadPoolExecutor(NUM_THREADS) as pool:
            found = list(pool.map(call, range(NUM_CALLS)))
        for index in range(NUM_CALLS):
            assert_close(found[index], expected[index], msg=lambda message, i=index: f"call {i}: {message}")
        after = state_of(pipeline)
        assert after[:2] == before[:2]
        assert all(torch.equal(new, old) for new, old in zip(after[2], before[2], strict=True))


@pytest.mark.parametrize("scheduler", [DDAEBMScheduler, DDPMScheduler, DDIMScheduler])
def test_ddaebm(tiny_pipeline, scheduler):
    tiny_pipeline.scheduler = scheduler.from_config(tiny_pipeline.scheduler.config)

    def call(index):
        steps = 4 if scheduler is DDAEBMScheduler else 1 + index % 4
        correction = index % 3 if steps == 4 else 0
        return tiny_pipeline(
            2, steps, seeded(index), output_type="pt", num_correction_steps=correction, correction_step_size=0.3
        ).images

    check_threads(tiny_pipeline, call)


@pytest.mark.parametrize(
    ("sampler", "batch_norm"), [*((sampler, "running") for sampler in SAMPLERS), (SAMPLERS[1], "batch")]
)
def test_dual_mcmc(tiny_dual_mcmc_pipeline, sampler, batch_norm):
    pipe, images = tiny_dual_mcmc_pipeline, unit(some_images(2))
    pipe.generator_model.register_to_config(sampling_batch_norm=batch_norm)
    pipe.scheduler = sampler(num_train_timesteps=3, step_size=0.3, noise_std=0.1)
    pipe.latent_scheduler = sampler(num_train_timesteps=3, step_size=0.1)

    def call(index):
        steps, options = 1 + index // 4 % 3, {"generator": seeded(index), "output_type": "pt"}
        tasks = [
            lambda: pipe(2, steps, **options),
            lambda: pipe.reconstruct(images, steps, **options),
            lambda: pipe.inpaint(images, MASK, steps, steps, **options),
            lambda: pipe.interpolate(images, 1 - images, 2, steps, steps, **options),
        ]
        return tasks[index % 4]().images

    check_threads(pipe, call)


@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_scores(request, fixture):
    generating = request.getfixturevalue(fixture)
    scorer = EnergyScoringPipeline.from_pipe(generating)
    scorer.set_progress_bar_config(disable=True)
    digits = load_digits("test")[0]
    scorer.calibrate(digits[:24], target_fpr=0.2)
    names = scorer.available_scores
    assert {"energy", "gradient_norm", "reconstruction"} <= {*names}

    def call(index):
        images = digits[30 + index : 33 + index]
        if index % 6 == 5:
            return generating.score(images, all_timesteps=True).energies_all_timesteps
        found = scorer(images, score=names[index % len(names)], batch_size=2)
        return torch.stack([found.scores, found.energies.double(), found.p_values])

    check_threads(scorer, call)


def test_ood_detection(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.energy_model.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    detect = OODDetectionPipeline(tiny_dual_mcmc_pipeline.energy_model, image_processor=processor)
    images = [Image.new("L", (8, 8), 20 * index) for index in range(12)]

    def call(index):
        return torch.tensor([found["energy"] for found in detect(images[index % 10 : index % 10 + 2])])

    check_threads(tiny_dual_mcmc_pipeline, call)


def test_a_callback_gets_its_own_calls_scheduler(tiny_pipeline):
    tiny_pipeline.scheduler = DDIMScheduler.from_config(tiny_pipeline.scheduler.config)

    class Seen(PipelineCallback):
        tensor_inputs = ["x"]  # noqa: RUF012 (diffusers' own form)

        def __init__(self):
            super().__init__()
            self.seen = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen.append((pipeline.num_timesteps, pipeline.scheduler.timesteps[step_index].item() == timestep))
            return callback_kwargs

    def call(steps):
        callback = Seen()
        tiny_pipeline(1, steps, seeded(), output_type="pt", callback_on_step_end=callback)
        return callback.seen

    numbers = [1 + index % 4 for index in range(NUM_CALLS)]
    with frequent_switches(), ThreadPoolExecutor(NUM_THREADS) as pool:
        for steps, seen in zip(numbers, pool.map(call, numbers), strict=True):
            assert seen == steps * [(steps, True)]
    call(3)
    assert tiny_pipeline.num_timesteps == 3


def test_every_sampler_is_here():
    assert {row.scheduler for row in ROWS.values()} == {*SAMPLERS}
