"""Side effects and cost of DualMCMCPipeline calls: none on modules, no device syncs, no growing memory."""

import gc

import torch
from dual_mcmc_chains import MASK, seeded, some_images, unit


def test_global_random_state_is_untouched_with_a_generator(tiny_dual_mcmc_pipeline):
    pipe, state = tiny_dual_mcmc_pipeline, torch.get_rng_state()
    pipe(2, generator=seeded())
    pipe.reconstruct(unit(some_images()), generator=seeded())
    pipe.interpolate(unit(some_images(2)), unit(some_images(2)), generator=seeded(), num_inference_steps=1)
    pipe.inpaint(unit(some_images()), MASK, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_in_training_stay_as_they_are(tiny_dual_mcmc_pipeline):
    """Samples in the middle of training leave no trace: modes, buffers, what is trainable."""
    pipe = tiny_dual_mcmc_pipeline
    pipe.energy_model.config.power_iteration = "every_forward"
    expected = pipe(2, generator=seeded(), output_type="pt").images
    models = (pipe.generator_model, pipe.energy_model, pipe.inference_model)
    before = [{key: value.clone() for key, value in model.train().state_dict().items()} for model in models]
    assert torch.equal(pipe(2, generator=seeded(), output_type="pt").images, expected)
    pipe.reconstruct(unit(some_images()))
    pipe.inpaint(unit(some_images()), MASK)
    for model, state in zip(models, before, strict=True):
        assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_progress_bar(tiny_dual_mcmc_pipeline, capfd):
    tiny_dual_mcmc_pipeline(1)
    assert capfd.readouterr().err == ""
    tiny_dual_mcmc_pipeline.set_progress_bar_config(disable=False)
    tiny_dual_mcmc_pipeline(1)
    assert "5/5" in capfd.readouterr().err


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


def test_memory_does_not_grow_with_the_steps_on_latents(tiny_dual_mcmc_pipeline):
    alive, calls = [], []

    def look(module, args, output):
        calls.append(1)
        if len(calls) in (3, 38):
            gc.collect()
            alive.append(sum(type(o) is torch.Tensor and o.shape in ((3, 4), (3, 1, 8, 8)) for o in gc.get_objects()))

    tiny_dual_mcmc_pipeline.generator_model.register_forward_hook(look)
    tiny_dual_mcmc_pipeline.reconstruct(unit(some_images()), 40)
    assert alive[0] == alive[1] > 0 and len(calls) >= 40
