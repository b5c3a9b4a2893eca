"""Statistics of samples: their definitions, and independence of each sample's from the others."""

import io
import math

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler, DiffusionCoefficients
from hf_ebm.models.mlp_energy import MLPEnergyConfig, MLPEnergyModel
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.pipelines.pipeline_ddaebm import NUM_DENOISING_DRAWS, compute_denoising_errors
from hf_ebm.scoring.statistics import (
    PASS_STATISTICS,
    class_statistics,
    compute_all_energies,
    compute_compressed_size,
    compute_energies,
    compute_pass_statistics,
    most_likely_labels,
    statistics_of_batches,
)


def test_gradient_norm_is_autograds_and_touches_nothing():
    model = MLPEnergyModel(MLPEnergyConfig(num_timesteps=1)).train()
    x = torch.randn(10, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x, 0).energy.sum(), x)
    got = compute_pass_statistics(model, x.detach(), ["gradient_norm"], batch_size=3)
    assert got.keys() == {"gradient_norm"}
    assert_close(got["gradient_norm"], grad.norm(dim=1))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_noised_energies_do_not_depend_on_the_batch():
    model, q = MLPEnergyModel(MLPEnergyConfig(num_timesteps=4)), DiffusionCoefficients.vp(4)
    x = torch.randn(9, 2)
    whole = compute_all_energies(model, x, q, seed=3)
    assert whole.shape == (9, 4)
    assert_close(compute_all_energies(model, x[4:5], q, seed=3), whole[4:5])
    assert not torch.allclose(compute_all_energies(model, x, q, seed=4), whole)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    x_2 = q.alphas_cumprod[2].sqrt() * x + (1 - q.alphas_cumprod[2]).sqrt() * noise[2]
    assert_close(whole[:, 2], model(x_2.float(), 2).energy, rtol=1e-4, atol=1e-5)


def test_compressed_size_is_a_pngs():
    x = torch.stack([torch.zeros(1, 8, 8), torch.rand(1, 8, 8) * 2 - 1])
    flat, noisy = compute_compressed_size(x).tolist()
    assert flat < noisy and noisy <= 8 * (64 + 8 + 60)
    file = io.BytesIO()
    pixels = ((x[1, 0] + 1) * 127.5).round().byte().numpy()
    PIL.Image.fromarray(pixels).save(file, format="png", optimize=True)
    smallest = io.BytesIO()
    PIL.Image.fromarray(np.zeros((1, 1), dtype=np.uint8)).save(smallest, format="png", optimize=True)
    assert noisy == 8 * (file.tell() - smallest.tell())
    assert compute_compressed_size(torch.zeros(2, 3, 4, 4)).shape == (2,)
    assert compute_compressed_size(torch.zeros(2, 5, 4, 4)).shape == (2,)
    with pytest.raises(ValueError, match="compressed size"):
        compute_compressed_size(torch.zeros(2, 3))


def test_a_batch_is_read_when_the_next_one_is_under_way():
    events = []

    class OnAGPU:
        def __init__(self, batch):
            self.batch = batch

        def cpu(self):
            events.append(f"read {self.batch}")
            return self.batch

    def compute(batch):
        events.append(f"begin {batch}")
        return {"energy": OnAGPU(batch)}

    assert list(statistics_of_batches(iter("abc"), compute)) == [(batch, {"energy": batch}) for batch in "abc"]
    assert events == ["begin a", "begin b", "read a", "begin c", "read b", "read c"]
    assert list(statistics_of_batches([], compute)) == []


def models_with_classes(num_classes=3, **energy):
    torch.manual_seed(0)
    generator_model, energy_model, _ = build_ddaebm_models(
        ddaebm_model_settings("toy", overrides={"energy": energy}, num_classes=num_classes)
    )
    generator_model.class_embedding.weight.data *= 3.0
    return generator_model.eval(), energy_model.eval()


def test_the_most_likely_label():
    _, model = models_with_classes()
    x = 3 * torch.randn(20, 2)
    torch.nn.init.normal_(model.class_scores.weight)
    found = most_likely_labels(model.train(), x, 3, batch_size=6)
    assert torch.equal(found, model(x).logits.argmax(dim=1)) and len(found.unique()) > 1 and model.training
    assert most_likely_labels(model, x, 2) is most_likely_labels(model, x, 0) is most_likely_labels(None, x, 3) is None
    assert most_likely_labels(models_with_classes(class_scores=False)[1], x, 3) is None
    centres = torch.randn(3, 2)
    _, model = models_with_classes(class_scores=False, pseudo_label_centres=centres.tolist())
    assert torch.equal(most_likely_labels(model, x, 3), torch.cdist(x, centres).argmin(dim=1))


def test_a_ddaebm_reconstructs_under_the_most_likely_label():
    """Where the energy has no class scores, under the label with the smallest error; never under the null class."""
    generator_model, energy_model = models_with_classes()
    torch.nn.init.normal_(energy_model.class_scores.weight)
    scheduler, x = DDAEBMScheduler(), torch.randn(12, 2)
    q = scheduler.coefficients
    all_labels = [torch.full((12,), y) for y in (-1, 0, 1, 2)]
    null, *each = (compute_denoising_errors(generator_model, x, q, class_labels=y) for y in all_labels)
    null, of_levels = null[:, 0], torch.stack(each)
    each = of_levels[..., 0]
    labels = energy_model(x).logits.argmax(dim=1)
    components = {"generator_model": generator_model, "scheduler": scheduler, "energy_model": energy_model}
    error = DDAEBMPipeline.make_reconstruction_error(components, 0)
    found = error(x)
    assert_close(found, each.gather(0, labels[None])[0])
    assert_close(error(x, all_levels=True), of_levels[labels, torch.arange(12)])
    assert not torch.isclose(found, null).any()
    components["energy_model"] = models_with_classes(class_scores=False)[1]
    error, least = DDAEBMPipeline.make_reconstruction_error(components, 0), each.argmin(dim=0)
    assert_close(error(x), each.amin(dim=0))
    assert_close(error(x, all_levels=True), of_levels[least, torch.arange(12)])
    assert (found > each.amin(dim=0)).any()


def test_reconstruction_errors_from_each_noise_level():
    """One generator call from x_{t+1} ~ q(x_{t+1} | x), the same noises and latents for every level."""
    torch.manual_seed(0)
    generator_model = build_ddaebm_models(ddaebm_model_settings("toy"))[0].eval()
    q, x = DDAEBMScheduler().coefficients, torch.randn(6, 2)
    found = compute_denoising_errors(generator_model, x, q, seed=3)
    assert found.shape == (6, 4)
    for t, abar in enumerate(q.alphas_cumprod[1:]):
        random, expected = torch.Generator().manual_seed(3), torch.zeros(6)
        for _ in range(NUM_DENOISING_DRAWS):
            noise = torch.randn(1, 2, generator=random)
            z = torch.randn(1, generator_model.config.latent_dim, generator=random).expand(6, -1)
            with torch.no_grad():
                clean = generator_model(abar.sqrt() * x + (1 - abar).sqrt() * noise, t, z).sample
            expected += (clean - x).square().mean(dim=1) / NUM_DENOISING_DRAWS
        assert_close(found[:, t], expected)
    assert_close(compute_denoising_errors(generator_model, x[4:], q, seed=3), found[4:])
    assert_close(compute_denoising_errors(generator_model, x, q, seed=3, num_levels=1), found[:, :1])


ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # of float32


def test_class_statistics_are_the_log_odds_and_the_log_entropy():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    found, p = {name: x.double() for name, x in class_statistics(logits).items()}, logits.double().softmax(dim=1)
    assert_close(found["class_log_odds"], p.amax(dim=1).logit(), **ROUNDING)
    assert_close(found["class_log_entropy"], (-(p * p.log()).sum(dim=1)).log(), **ROUNDING)
    assert_close(found["class_log_entropy"].exp(), torch.distributions.Categorical(p).entropy(), **ROUNDING)


def test_class_statistics_do_not_saturate():
    """Where 1 - p is 0 in floating point, more confident samples still have larger log odds and a smaller entropy."""
    margins = torch.tensor([0.0, 1.0, 20.0, 29.0, 31.0, 40.0, 100.0, 800.0, 1e4])
    logits = torch.stack([margins, torch.zeros(9), torch.zeros(9)], dim=1)
    found = class_statistics(logits)
    assert (found["class_log_odds"].diff() > 0).all() and (found["class_log_entropy"].diff() < 0).all()
    assert_close(found["class_log_odds"], margins - math.log(2))
    assert found["class_log_entropy"][0] == pytest.approx(math.log(math.log(3)), rel=1e-5)  # uniform, the bound
    # H ~ 2 exp(-m) (1 + m) for a margin m over each of two others
    assert_close(found["class_log_entropy"][2:], math.log(2) - margins[2:] + (1 + margins[2:]).log())


def test_one_pass_gives_energies_gradients_and_class_probabilities(monkeypatch):
    model = models_with_classes()[1]
    torch.nn.init.normal_(model.class_scores.weight)
    x = torch.randn(7, 2)
    alone = {name: compute_pass_statistics(model, x, [name])[name] for name in PASS_STATISTICS}
    assert_close(alone["energy"], compute_energies(model, x))
    for name, values in class_statistics(model(x).logits.detach()).items():
        assert_close(alone[name], values)
    passes, forward = [], type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *args: passes.append(0) or forward(self, *args))
    together = compute_pass_statistics(model, x, PASS_STATISTICS, batch_size=4)
    assert len(passes) == 2 * 4  # batches times noise levels
    assert together.keys() == alone.keys()
    for name, values in alone.items():
        assert_close(together[name].float(), values.float())
