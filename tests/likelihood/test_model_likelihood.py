"""The likelihood of pipelines: against a grid in 2-D, and the temperature, box and bins of image models."""

import dataclasses
import json
import math

import pytest
import torch

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.data.loading import sample_toy
from hf_ebm.likelihood.ais import estimate_log_z
from hf_ebm.likelihood.base_distributions import Box, GaussianBase
from hf_ebm.likelihood.dequantization import log_z_on_grid
from hf_ebm.likelihood.evaluate import VECTOR_BOX, evaluate_chain_likelihood, evaluate_likelihood
from hf_ebm.likelihood.log_partition import LikelihoodSettings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.scoring.statistics import compute_energies

pytestmark = pytest.mark.usefixtures("few_resamples")
FEW = LikelihoodSettings(num_chains=8, num_temperatures=6, num_leapfrog_steps=2, equilibration_steps=10, batch_size=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_toy_pipeline(**overrides):
    """Random 2-D networks, whose energy has several basins and no integral over the plane."""
    models = build_ddaebm_models(ddaebm_model_settings("toy", overrides=overrides))
    torch.nn.init.normal_(models[1].mlp.out.weight, std=2.0, generator=seeded(1))
    pipeline = DDAEBMPipeline(models[0], DDAEBMScheduler(), models[1].eval(), models[2])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_2d_model_against_the_grid():
    """Upper bound from exact samples, drawn on the grid: two decimals."""
    model, box = make_toy_pipeline(energy={"hidden_dims": (32, 32)}).energy_model, VECTOR_BOX

    def energy_fn(x):
        return model(x, 0).energy

    log_z = log_z_on_grid(energy_fn, box.high, 300)
    assert log_z < 2 * math.log(6) - 0.5  # the energy matters
    line = (torch.arange(300) + 0.5) * 6 / 300 - 3
    grid, number = torch.cartesian_prod(line, line), 4_000
    cells = torch.multinomial((-compute_energies(model, grid)).softmax(dim=0), number, True, generator=seeded())
    samples = grid[cells] + 0.02 * (torch.rand(number, 2, generator=seeded(1)) - 0.5)
    bracket = estimate_log_z(
        box.energy_in_v(energy_fn),
        GaussianBase.diagonal(torch.zeros(2), 1.0),
        box.from_box(samples),
        num_chains=number,
        num_temperatures=80,
        batch_size=number,
        generator=seeded(2),
    )
    assert bracket.log_z_lower == pytest.approx(log_z, abs=0.02)
    assert bracket.log_z_upper == pytest.approx(log_z, abs=0.02)


def test_the_record_of_a_2d_model():
    toy_pipeline = make_toy_pipeline()
    train, held_out = sample_toy("25gaussians", 300, seeded(1)), sample_toy("25gaussians", 200, seeded(2))
    settings = LikelihoodSettings(num_chains=200, num_temperatures=30, equilibration_steps=50)
    record = evaluate_likelihood(toy_pipeline, train, held_out, None, settings)
    log_z = record["log_z"]
    assert log_z["lower"] == pytest.approx(record["log_z_grid"], abs=0.1)
    assert log_z["upper"] == pytest.approx(record["log_z_grid"], abs=0.15)
    assert log_z["gap"] == pytest.approx(log_z["upper"] - log_z["lower"])
    energy = compute_energies(toy_pipeline.energy_model, held_out).mean().item()
    assert record["log_likelihood"]["at_log_z_lower"] == pytest.approx(-energy - log_z["lower"], abs=1e-4)
    assert record["log_likelihood"]["at_log_z_upper"] == pytest.approx(-energy - log_z["upper"], abs=1e-4)
    assert record["mean_energy"]["held_out"] == pytest.approx(energy, abs=1e-5)
    assert "bits_per_dim" not in record and record["temperature"] == 1.0


@pytest.mark.parametrize(
    "base, reverse_from",
    [("uniform", "annealed"), ("diagonal", "generator"), ("full", "data")],
)
def test_the_record_of_an_image_model(tiny_pipeline, monkeypatch, base, reverse_from):
    monkeypatch.setattr("hf_ebm.likelihood.log_partition.MIN_FIT_SAMPLES", 100)
    train, held_out = to_model_range(load_digits("train")[0])[:100], to_model_range(load_digits("test")[0])[:20]
    settings = dataclasses.replace(FEW, base=base, reverse_from=reverse_from)
    record = evaluate_likelihood(tiny_pipeline, train, held_out, 17, settings)
    assert record["settings"]["base"] == base and record["density"].startswith("exp(-E(x, 0) / T) / Z on [-1.0625,")
    bits, nats = record["bits_per_dim"], record["log_likelihood"]
    for end, log_z in (("at_log_z_lower", "lower"), ("at_log_z_upper", "upper")):
        # uniform noise moves this smooth random energy by little: bits are nats plus the bin's width
        expected = -nats[end] / 64 / math.log(2) + 3
        assert bits["uniform"][end] == pytest.approx(expected, abs=0.3)
        assert math.isfinite(record["log_z"][log_z])
    assert bits["log2_levels"] == pytest.approx(math.log2(17)) and bits["full_gaussian"] < bits["log2_levels"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_dual_mcmc_has_its_chains_temperature(tiny_dual_mcmc_pipeline):
    pipeline = tiny_dual_mcmc_pipeline
    assert pipeline.temperature == pytest.approx((0.01 / 0.5) ** 2) and pipeline.data_noise_std == 0.01
    train, held_out = to_model_range(load_digits("train")[0])[:100], to_model_range(load_digits("test")[0])[:20]
    energy = compute_energies(pipeline.energy_model, held_out).mean().item()
    for temperature, expected in ((None, 4e-4), (0.1, 0.1)):
        record = evaluate_likelihood(pipeline, train, held_out, 17, dataclasses.replace(FEW, temperature=temperature))
        assert record["temperature"] == pytest.approx(expected)
        assert record["mean_energy"]["held_out"] == pytest.approx(energy / expected, rel=1e-4)
        nats = -energy / expected - record["log_z"]["lower"]
        assert record["log_likelihood"]["at_log_z_lower"] == pytest.approx(nats, rel=1e-3, abs=0.01)
    # so hot that the energy is flat: the uniform density, whose log Z is the box's volume
    hot = evaluate_likelihood(pipeline, train, held_out, 17, dataclasses.replace(FEW, temperature=1e6))
    box = Box.of_levels(17)
    assert hot["log_z"]["lower"] == pytest.approx(64 * math.log(box.high - box.low), abs=1e-2)
    assert hot["log_z"]["upper"] == pytest.approx(64 * math.log(box.high - box.low), abs=1e-2)
    assert hot["bits_per_dim"]["uniform"]["at_log_z_upper"] == pytest.approx(math.log2(17), abs=1e-3)


def test_fewer_images_than_pixels_fit_no_gaussian(tiny_dual_mcmc_pipeline):
    train, held_out = to_model_range(load_digits("train")[0])[:65], to_model_range(load_digits("test")[0])[:20]
    for number in (64, 65):
        bits = evaluate_likelihood(tiny_dual_mcmc_pipeline, train[:number], held_out, 17, FEW)["bits_per_dim"]
        assert ("full_gaussian" in bits) == (number > 64)


def test_only_the_seed_determines_the_result(tiny_dual_mcmc_pipeline):
    train, held_out = to_model_range(load_digits("train")[0])[:100], to_model_range(load_digits("test")[0])[:20]
    records = []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        settings = dataclasses.replace(FEW, seed=seed, temperature=0.01)
        record = evaluate_likelihood(tiny_dual_mcmc_pipeline, train, held_out, 17, settings)
        records.append((record["log_z"], record["bits_per_dim"]))
    assert records[0] == records[1] != records[2]


def test_the_steps_of_an_image_model(tiny_pipeline):
    train, held_out = to_model_range(load_digits("train")[0])[:100], to_model_range(load_digits("test")[0])[:2]
    settings = LikelihoodSettings(
        num_chains=4, num_temperatures=3, num_leapfrog_steps=1, equilibration_steps=2, batch_size=4
    )
    record = evaluate_chain_likelihood(tiny_pipeline, train, held_out, 17, settings)
    assert [len(step["lower"]) for step in record["steps"]] == [2] * 4
    lower, upper = (record["log_likelihood"][f"at_log_z_{end}"] for end in ("lower", "upper"))
    assert lower - upper == pytest.approx(sum(step["mean_gap"] for step in record["steps"]), abs=1e-3)
    bits = record["bits_per_dim"]["at_log_z_upper"] - record["bits_per_dim"]["at_log_z_lower"]
    assert bits == pytest.approx((lower - upper) / 64 / math.log(2), abs=1e-4)
    json.dumps(record, allow_nan=False)


def test_bad_settings(tiny_pipeline, tiny_dual_mcmc_pipeline):
    for settings in (
        {"num_chains": 1},
        {"num_temperatures": 1},
        {"num_leapfrog_steps": 0},
        {"batch_size": 0},
        {"equilibration_steps": -1},
        {"base": "generator"},
        {"reverse_from": "noise"},
        {"temperature": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            LikelihoodSettings(**settings)
    digits = to_model_range(load_digits("test")[0])[:20]
    with pytest.raises(ValueError, match="num_levels=16"):
        evaluate_likelihood(tiny_pipeline, digits, digits, 16, FEW)
    with pytest.raises(ValueError, match="must lie in"):
        evaluate_likelihood(tiny_pipeline, digits, 2 * digits, 17, FEW)
    with pytest.raises(ValueError, match="denoising steps"):
        evaluate_chain_likelihood(tiny_dual_mcmc_pipeline, digits, digits, 17, FEW)
    tiny_pipeline.energy_model = None
    with pytest.raises(ValueError, match="energy_model"):
        evaluate_likelihood(tiny_pipeline, digits, digits, 17, FEW)
