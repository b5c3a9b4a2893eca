"""The networks of vector data: shapes, formulas, bit-exact reloading, and their pipeline."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel

from hf_ebm import (
    DDAEBMPipeline,
    DDAEBMScheduler,
    DiffusionCoefficients,
    MLPEnergyConfig,
    MLPEnergyModel,
    MLPGeneratorModel,
    MLPPairInferenceModel,
)


@pytest.fixture
def models():
    return (
        MLPGeneratorModel(data_dim=3, latent_dim=2, hidden_dims=(16,)),
        MLPEnergyModel(MLPEnergyConfig(data_dim=3, hidden_dims=(16, 16), output_dim=5)),
        MLPPairInferenceModel(data_dim=3, latent_dim=2, hidden_dims=(16,), spacing="quadratic"),
    )


def test_shapes_and_formulas(models):
    generator_model, energy_model, inference_model = models
    x, t, z = torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), torch.randn(4, 2)
    energy = energy_model(x, t).energy
    assert energy.shape == (4,) and (energy >= 0).all()
    u, _ = energy_model.mlp(energy_model.features(x), t)
    assert_close(energy, 0.5 * u.square().sum(1))
    assert generator_model(x, t, z).sample.shape == (4, 3)
    mean, logvar = inference_model(x, x, t, return_dict=False)
    assert mean.shape == logvar.shape == (4, 2) and logvar.max() <= 4 and logvar.min() >= -10


def test_inference_model_sees_the_steps_noise(models):
    """It depends on (x_t, x_next) through x_next and n, where x_next = sqrt(1 - beta) x_t + sqrt(beta) n."""
    q = DiffusionCoefficients.vp(spacing="quadratic")
    x_t, noise, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    x_next = q.q_step(x_t, t, noise)
    seen = []
    models[2].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    models[2](x_t, x_next, t)
    assert_close(seen[0][:, -3:], noise, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_reload_is_bit_exact_frequencies_included(models, tmp_path, index):
    model = models[index]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and "features.frequencies" in before
    assert all(torch.equal(before[key], after[key]) for key in before)
    if index == 1:
        assert isinstance(AutoModel.from_pretrained(tmp_path), MLPEnergyModel)


def test_pipeline_on_vectors(models, tmp_path):
    pipe = DDAEBMPipeline(models[0], DDAEBMScheduler(beta_schedule="vp_quadratic"), models[1], models[2])
    pipe.set_progress_bar_config(disable=True)
    points = pipe(5, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert points.shape == (5, 3)
    pipe.save_pretrained(tmp_path)
    again = DDAEBMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    same = again(5, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert_close(same, torch.from_numpy(points), rtol=0, atol=0)
    assert_close(again.score(points).energies, again.score(same).energies)
    assert_close(again.score(points * 3.0).energies, models[1](same * 3.0).energy.detach())
    with pytest.raises(ValueError, match="output_type"):
        pipe(2)
    with pytest.raises(ValueError, match="shape"):
        pipe.score(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="finite"):
        pipe.score(torch.full((2, 3), float("inf")))


def test_generator_refuses_latents_of_another_width():
    model = MLPGeneratorModel(data_dim=2, latent_dim=3, hidden_dims=(4,))
    with pytest.raises(ValueError, match=r"z must have shape \(B, 3\)"):
        model(torch.zeros(2, 2), 0, torch.zeros(2, 4))


def test_hidden_dims_must_name_a_layer():
    with pytest.raises(ValueError, match="hidden_dims"):
        MLPGeneratorModel(hidden_dims=())
