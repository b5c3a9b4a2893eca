"""Compositions of energies against closed forms: products, mixtures, negation within bounds, temperature."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel

from hf_ebm import ComposedEnergyModel, HMCScheduler, LangevinScheduler, MALAScheduler, MLPEnergyConfig, MLPEnergyModel
from hf_ebm.langevin import energy_grad, run_chain
from hf_ebm.models.composed_energy import ComposedEnergyConfig
from hf_ebm.models.energy import EnergyOutput
from hf_ebm.scoring.statistics import score_samples


class Gaussian(MLPEnergyModel):
    """``E = tau |x - mean|^2 / (2 std^2)`` in two dimensions, log Z known."""

    def __init__(self, mean, std, temperature=1.0):
        super().__init__(MLPEnergyConfig(hidden_dims=(4,), num_frequencies=2, energy_temperature=temperature))
        self.mean, self.std, self.tau = torch.tensor(mean), std, temperature

    @property
    def log_z(self):
        return math.log(2 * math.pi * self.std**2)

    def forward(self, pixel_values, timestep=None, **_):
        squared = (pixel_values - self.mean.to(pixel_values)).square().sum(dim=1)
        return EnergyOutput(energy=self.tau * squared / (2 * self.std**2))


@pytest.fixture
def points():
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def sample(energy, scheduler, number=4000, start=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(number, 2) if start is None else start
    return run_chain(scheduler, lambda x: energy(x).energy, x, scheduler.config.num_train_timesteps, generator).sample


def test_and_is_the_product(points):
    """Of N(a, s^2) and N(b, r^2): precision 1/s^2 + 1/r^2, mean weighted by precision, whatever the temperatures."""
    first, second = Gaussian([1.0, 0.0], 0.5, temperature=0.01), Gaussian([0.0, 2.0], 1.0, temperature=3.0)
    product = ComposedEnergyModel([first, second])
    precision = 1 / 0.25 + 1.0
    mean = (first.mean / 0.25 + second.mean) / precision
    expected = 0.5 * precision * (points - mean).square().sum(dim=1)
    found = product(points).energy
    assert_close(found - found[0], expected - expected[0])
    grad = energy_grad(lambda x: product(x).energy, points)
    assert_close(grad, precision * (points - mean))
    x = sample(product, MALAScheduler(60, step_size=0.7, noise_std=0.7))
    assert (x.mean(0) - mean).abs().max() < 5 * (1 / precision / len(x)) ** 0.5
    assert abs(x.var(0).mean() * precision - 1) < 0.1
    weighted = ComposedEnergyModel([first, second], weights=[2.0, 0.5])
    assert_close(weighted(points).energy, 2.0 * first(points).energy / 0.01 + 0.5 * second(points).energy / 3.0)


def test_or_is_the_mixture(points):
    first, second = Gaussian([2.0, 0.0], 0.5), Gaussian([-2.0, 0.0], 2.0)
    log_z = [first.log_z, second.log_z]
    mixture = ComposedEnergyModel([first, second], "or", weights=[0.3, 0.7], log_z=log_z)
    log_p = [-part(points).energy - value for part, value in zip((first, second), log_z, strict=True)]
    assert_close(mixture(points).energy, -torch.logaddexp(log_p[0] + math.log(0.3), log_p[1] + math.log(0.7)))
    grid = torch.linspace(-12, 12, 481)
    square = torch.cartesian_prod(grid, grid)
    mass = (-mixture(square).energy).exp().sum() * 0.05**2
    assert abs(mass - 1) < 1e-3  # with the log Z given it is normalised
    near_first = (square - first.mean).square().sum(1) < 1.5**2
    of_first = (-mixture(square).energy).exp()[near_first].sum() * 0.05**2
    assert 0.3 < of_first < 0.5  # its own 0.3, and some of the other
    unknown = ComposedEnergyModel([first, second], "or")
    assert "w_i Z_i, unknown" in repr(unknown)
    assert_close(
        unknown(points).energy, -torch.stack([-first(points).energy, -second(points).energy]).exp().mean(0).log()
    )


def test_not_within_bounds():
    """E = E_1 - w E_2 in a box: the samples of MALA have the mean of the density on a grid, and stay inside."""
    first, second = Gaussian([0.0, 0.0], 0.6), Gaussian([0.5, 0.0], 0.6)
    negated = ComposedEnergyModel([first, second], weights=[1.0, -0.8], bounds=(-1.0, 1.0))
    assert negated.needs_rejection and negated(torch.tensor([[1.1, 0.0]])).energy.isinf().all()
    grid = torch.linspace(-1, 1, 201)
    square = torch.cartesian_prod(grid, grid)
    density = (-negated(square).energy).exp()
    mean = (square * density[:, None]).sum(0) / density.sum()
    assert mean[0] < -0.2
    x = sample(negated, MALAScheduler(150, step_size=0.4, noise_std=0.4))
    assert x.abs().max() <= 1.0
    assert (x.mean(0) - mean).abs().max() < 0.05


def test_a_function_is_a_term_and_cannot_be_saved(points, tmp_path):
    first = Gaussian([0.0, 0.0], 1.0)
    with_term = ComposedEnergyModel([first, lambda x, t: 5.0 * x[:, 0].relu()])
    assert_close(with_term(points).energy, first(points).energy + 5.0 * points[:, 0].relu())
    with pytest.raises(ValueError, match="part 0 is an energy in memory only"):
        with_term.save_pretrained(tmp_path)
    first.name_or_path = "alice/energy"
    with pytest.raises(ValueError, match="part 1 is a function"):
        ComposedEnergyModel([first, lambda x, t: x[:, 0]]).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="one number per sample"):
        ComposedEnergyModel([first, lambda x, t: x])(points)


def test_saved_by_the_names_of_its_parts(points, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        MLPEnergyModel(MLPEnergyConfig(num_classes=3, hidden_dims=(8,))).save_pretrained(tmp_path / name)
    parts = [MLPEnergyModel.from_pretrained(tmp_path / name) for name in ("a", "b")]
    composed = ComposedEnergyModel(parts, weights=[1.0, 0.5], class_labels=[2, None], bounds=(-5, 5)).eval()
    composed.save_pretrained(tmp_path / "both")
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["config.json"]
    for loaded in (
        ComposedEnergyModel.from_pretrained(tmp_path / "both"),
        AutoModel.from_pretrained(tmp_path / "both"),
    ):
        assert_close(loaded(points, 1).energy, composed(points, 1).energy)
    expected = parts[0](points, 1, class_labels=2).energy + 0.5 * parts[1](points, 1).energy
    assert_close(composed(points, 1).energy, expected)
    output = score_samples(composed, points, all_timesteps=True)
    assert output.energies_all_timesteps.shape == (50, 4)


def test_a_pipeline_corrects_samples_by_a_composition(tiny_pipeline):
    """The energy of a DDAEBM with a constraint: samples obey it more after correction steps."""
    from hf_ebm import DDAEBMPipeline

    def bright_left(x, t):
        return -3.0 * x[..., :4].flatten(1).sum(dim=1)

    composed = ComposedEnergyModel([tiny_pipeline.energy_model, bright_left])
    parts = {**tiny_pipeline.components, "energy_model": composed}
    pipe = DDAEBMPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)

    def left(**options):
        images = pipe(64, generator=torch.Generator().manual_seed(0), output_type="latent", **options).images
        return images[..., :4].mean()

    steps = {"num_correction_steps": 10, "correction_step_size": 0.5}
    assert left(**steps) > left() + 0.1
    assert left(**steps, correction_scheduler=MALAScheduler()) > left() + 0.1
    assert left(**steps, correction_scheduler=HMCScheduler()) > left() + 0.1
    with pytest.raises(ValueError, match=r"correction_scheduler must be a sampler .* got DDAEBMScheduler"):
        pipe(2, **steps, correction_scheduler=pipe.scheduler)
    assert pipe.score(torch.rand(3, 1, 8, 8)).energies.shape == (3,)


def test_correction_within_bounds_needs_a_sampler_that_rejects(tiny_pipeline):
    from hf_ebm import DDAEBMPipeline

    bounded = ComposedEnergyModel([tiny_pipeline.energy_model], bounds=(-6.0, 6.0))
    pipe = DDAEBMPipeline(**{**tiny_pipeline.components, "energy_model": bounded})
    pipe.set_progress_bar_config(disable=True)
    for scheduler in (None, LangevinScheduler()):
        with pytest.raises(ValueError, match="correction_scheduler must be MALA or HMC for an energy with bounds"):
            pipe(2, num_correction_steps=1, correction_scheduler=scheduler)
    images = pipe(8, num_correction_steps=5, correction_scheduler=MALAScheduler(), output_type="latent").images
    assert images.isfinite().all() and images.abs().max() <= 6.0


def test_correction_by_mala_follows_the_conditional_density(tiny_pipeline):
    """With E = x^2/2 per pixel the conditional density of a denoising step is a known Gaussian."""
    from hf_ebm import DDAEBMPipeline

    composed = ComposedEnergyModel(
        [lambda x, t: x.square().flatten(1).sum(1) / 2, tiny_pipeline.energy_model], weights=[1.0, 0.0]
    )
    pipe = DDAEBMPipeline(**{**tiny_pipeline.components, "energy_model": composed})
    t, seed = 1, torch.Generator().manual_seed(0)
    beta = pipe.coefficients.betas[t + 1]
    x_next = torch.full((256, 1, 8, 8), 0.7)
    x = pipe.correct(torch.zeros_like(x_next), x_next, t, 100, 0.5, seed, scheduler=MALAScheduler())
    precision = 1 + (1 - beta) / beta
    assert_close(x.mean(), (1 - beta).sqrt() / beta * 0.7 / precision, atol=0.02, rtol=0)
    assert_close(x.var(), 1 / precision, atol=0.02, rtol=0)


def test_a_pipeline_is_saved_with_its_composition(tiny_pipeline, tmp_path):
    from hf_ebm import DDAEBMPipeline, UNetEnergyModel

    tiny_pipeline.save_pretrained(tmp_path / "part")
    energy = UNetEnergyModel.from_pretrained(tmp_path / "part" / "energy_model")
    composed = ComposedEnergyModel([energy, energy], weights=[1.0, 0.5])
    DDAEBMPipeline(**{**tiny_pipeline.components, "energy_model": composed}).save_pretrained(tmp_path / "both")
    loaded = DDAEBMPipeline.from_pretrained(tmp_path / "both")
    images = torch.rand(3, 1, 8, 8)
    assert_close(loaded.score(images).energies, 1.5 * tiny_pipeline.score(images).energies)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1.0, -1.0]}, "weights must be >= 0 without bounds"),
        ({"weights": [1.0]}, "weights must have one entry for each of the 2 parts, got 1"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite"),
        ({"operation": "xor"}, "operation must be one of"),
        ({"operation": "or", "weights": [1.0, 0.0]}, "weights of an 'or' must be > 0"),
        ({"bounds": (1.0, -1.0)}, "bounds must be"),
        ({"temperatures": [1.0, 0.0]}, "temperatures must be > 0"),
        ({"class_labels": [3, None]}, "class_labels must be None for a part without classes, got 3"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        ComposedEnergyModel([Gaussian([0.0, 0.0], 1.0), Gaussian([1.0, 0.0], 1.0)], **arguments)


def test_parts_that_do_not_fit():
    first = MLPEnergyModel(MLPEnergyConfig(hidden_dims=(4,)))
    for other in (MLPEnergyConfig(hidden_dims=(4,), data_dim=3), MLPEnergyConfig(hidden_dims=(4,), num_timesteps=2)):
        with pytest.raises(ValueError, match="one sample shape and one number of noise levels"):
            ComposedEnergyModel([first, MLPEnergyModel(other)])
    with pytest.raises(ValueError, match="at least one energy"):
        ComposedEnergyModel([lambda x, t: x.sum(1)])
    with pytest.raises(ValueError, match="must be an energy, got Linear"):
        ComposedEnergyModel([torch.nn.Linear(2, 1)])


def test_langevin_is_refused_by_pipelines_where_proposals_must_be_rejected(tiny_dual_mcmc_pipeline):
    energy = tiny_dual_mcmc_pipeline.energy_model
    tiny_dual_mcmc_pipeline.energy_model = ComposedEnergyModel([energy], bounds=(-1.0, 1.0))
    assert isinstance(tiny_dual_mcmc_pipeline.scheduler, LangevinScheduler)
    with pytest.raises(ValueError, match=r"bounds.*MALA or HMC"):
        tiny_dual_mcmc_pipeline(2)
    tiny_dual_mcmc_pipeline.scheduler = MALAScheduler.from_config(tiny_dual_mcmc_pipeline.scheduler.config)
    assert len(tiny_dual_mcmc_pipeline(2).images) == 2


def test_a_composition_that_is_a_part_of_itself_is_an_error(tmp_path):
    for name, part in (("a", "a"), ("b", "c"), ("c", "b")):
        ComposedEnergyConfig(parts=[{"name": str(tmp_path / part), "revision": None}]).save_pretrained(tmp_path / name)
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=rf"{tmp_path / name} is a composition that names itself as a part"):
            ComposedEnergyModel.from_pretrained(tmp_path / name)
