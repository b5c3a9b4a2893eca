"""Sampling from DualMCMCPipeline: against a reference implementation, with any sampler, every output type."""

import pytest
import torch
from dual_mcmc_chains import SAMPLERS, langevin, seeded, x_energy
from torch.testing import assert_close

from hf_ebm import HMCScheduler, LangevinScheduler, MALAScheduler, ReplicaExchangeScheduler


def test_sampling_is_the_algorithm(tiny_dual_mcmc_pipeline):
    pipe, g = tiny_dual_mcmc_pipeline, seeded()
    out = pipe(batch_size=3, generator=seeded(), output_type="latent")
    z = torch.randn(3, 4, generator=g)
    x = langevin(pipe.scheduler, x_energy(pipe), pipe.generator_model(z).sample.detach(), 5, g)
    assert_close(out.images, x)
    assert_close(out.latents, z)
    assert out.energies is None and out.diagnostics is None


def test_without_steps_samples_are_the_generators(tiny_dual_mcmc_pipeline):
    pipe = tiny_dual_mcmc_pipeline
    expected = pipe.generator_model(torch.randn(2, 4, generator=seeded())).sample.detach()
    pipe.energy_model = None
    images = pipe(2, num_inference_steps=0, generator=seeded(), output_type="latent").images
    assert_close(images, expected)


def test_given_latents(tiny_dual_mcmc_pipeline):
    z = torch.randn(2, 4)
    out = tiny_dual_mcmc_pipeline(2, 0, latents=z, output_type="latent")
    assert_close(out.images, tiny_dual_mcmc_pipeline.generator_model(z).sample.detach())
    assert torch.equal(out.latents, z)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_and_the_energies_of_its_states(tiny_dual_mcmc_pipeline, sampler):
    pipe, seen = tiny_dual_mcmc_pipeline, []
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["x"])

    def sample(**kwargs):
        return pipe(3, 4, generator=seeded(), output_type="latent", **kwargs)

    out = sample(output_energies=True, output_diagnostics=True, callback_on_step_end=callback)
    assert out.energies.shape == (5, 3)
    assert_close(out.images, seen[-1])
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
    out = pipe(6, generator=seeded(1), output_type="latent", output_energies=True, output_diagnostics=True)
    moved = out.energies[1:] != out.energies[:-1]
    assert_close(moved.float().mean(dim=1), out.diagnostics["acceptance_rate"])
    assert 0 < moved.float().mean() < 1
    proposed = out.diagnostics["energy"][per_update::per_update]
    assert_close(out.energies[1:][moved], proposed[moved])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_per_sample(tiny_dual_mcmc_pipeline, sampler):
    pipe = tiny_dual_mcmc_pipeline
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    both = pipe(2, generator=[seeded(1), seeded(2)], output_type="latent").images
    alone = pipe(1, generator=[seeded(2)], output_type="latent").images
    assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [LangevinScheduler, MALAScheduler, HMCScheduler, ReplicaExchangeScheduler])
def test_an_interrupted_chain_ends_in_a_state_and_not_in_a_proposal(tiny_dual_mcmc_pipeline, sampler):
    pipe, options = tiny_dual_mcmc_pipeline, {"output_type": "latent"}
    pipe.scheduler = sampler(num_train_timesteps=4, step_size=0.5, noise_std=0.3)
    last = pipe.scheduler.num_evaluations(2) - 1

    def interrupt(called, step, timestep, tensors):
        called._interrupt = step == last

    found = pipe(3, 4, generator=seeded(), callback_on_step_end=interrupt, **options).images
    assert_close(found, pipe(3, 2, generator=seeded(), **options).images)


def test_states_are_only_clamped_at_the_end(tiny_dual_mcmc_pipeline):
    pipe, seen = tiny_dual_mcmc_pipeline, []
    pipe.scheduler = LangevinScheduler(3, step_size=0.1, noise_std=2.0)
    images = pipe(2, output_type="pt", callback_on_step_end=lambda *a: seen.append(a[3]["x"]) or None).images
    assert min(x.abs().max() for x in seen) > 1.5 and images.max() == 1 and images.min() == 0
