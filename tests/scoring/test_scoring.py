"""Metrics, OOD images, plots and the digit classifier: closed forms and known answers."""

import pytest
import torch
from torch.testing import assert_close

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.evaluation import synthetic_ood
from hf_ebm.evaluation.feature_extractors import load_digit_classifier
from hf_ebm.evaluation.plots import density_on_grid, plot_2d
from hf_ebm.evaluation.sample_metrics import auroc, frechet_distance


def test_frechet_distance_of_two_gaussians():
    """Diagonal Gaussians: ||m1 - m2||^2 + sum (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 60_000, 3, generator=generator)
    s1, s2, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.5, 1.0, 0.5]), torch.tensor([1.0, 0.0, -2.0])
    value = frechet_distance(noise[0] * s1, noise[1] * s2 + shift, lambda x: x)
    assert abs(value - (5.0 + 0.25 + 1.0)) < 0.1
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(noise[0], noise[1, :1], lambda x: x)


def test_auroc_is_the_probability_of_a_right_order():
    a, b = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 3.0, 6.0])
    wins = (b[None] > a[:, None]).double() + 0.5 * (b[None] == a[:, None]).double()
    assert_close(auroc(a, b), wins.mean().item())
    assert auroc(a, a + 100) == 1.0 and auroc(a + 100, a) == 0.0


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([1.0, float("nan")])], ids=["empty", "nan"])
def test_auroc_of_scores_without_a_rank_is_an_error(bad):
    good = torch.randn(5)
    with pytest.raises(ValueError, match=r"in_distribution must hold scores .*got (0 with 0|2 with 1) NaN"):
        auroc(bad, good)
    with pytest.raises(ValueError, match="out_of_distribution must hold scores"):
        auroc(good, bad)


def test_features_that_are_not_finite_are_an_error():
    images = torch.randn(6, 3)
    images[2, 1] = float("nan")
    with pytest.raises(ValueError, match="the features of 1 of 6 images are not finite"):
        frechet_distance(torch.randn(6, 3), images, lambda x: x)


def test_auroc_keeps_the_order_of_huge_and_close_scores():
    """Scores far outside [0, 1] must not be squashed into ties."""
    a = torch.tensor([1e6, 1e6 + 1])
    assert auroc(a, a + 0.5) == 0.75


def test_digit_classifier_knows_the_held_out_digits():
    images, labels = load_digits("test")
    images = to_model_range(images)
    classifier = load_digit_classifier()
    assert (classifier(images).argmax(1) == labels).float().mean() > 0.98
    assert classifier.features(images).shape == (360, 64)


def test_synthetic_ood_images():
    images = to_model_range(load_digits("test")[0][:50])
    generator = torch.Generator().manual_seed(0)
    made = {name: make(images, generator) for name, make in synthetic_ood.SYNTHETIC_OOD.items()}
    names = {"rotated", "inverted", "shuffled", "shuffled_patches", "blurred", "mixed", "constant", "noise"}
    assert set(made) == names
    for name, ood in made.items():
        assert ood.shape == images.shape and ood.abs().max() <= 1, name
        assert not torch.allclose(ood, images), name
    assert_close(made["inverted"], -images)
    assert_close(made["rotated"][0, 0], torch.rot90(images[0, 0]))
    assert_close(made["shuffled"].flatten(1).sort(1)[0], images.flatten(1).sort(1)[0])
    assert (made["constant"].flatten(1).std(1) == 0).all()


def test_density_is_the_normalised_boltzmann_weight():
    class Quadratic(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, x, t):
            return type("Output", (), {"energy": 0.5 * ((x - torch.tensor([0.5, 0.0])) ** 2).sum(1) / 0.1})

    density = density_on_grid(Quadratic(), 2.0, 201)
    line = torch.linspace(-2, 2, 201).numpy()
    assert abs(density.sum() - 1) < 1e-6
    assert abs((density.sum(0) * line).sum() - 0.5) < 1e-3  # columns are the first coordinate, as in an image
    assert abs((density.sum(1) * line**2).sum() - 0.1) < 1e-3


def test_plots_are_written(tmp_path):
    from hf_ebm import MLPEnergyConfig, MLPEnergyModel

    plot_2d(torch.randn(100, 2), MLPEnergyModel(MLPEnergyConfig()), torch.randn(10, 2), tmp_path / "p" / "d.png")
    path = tmp_path / "p" / "d.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_mode_metrics_on_perfect_and_broken_samples():
    from hf_ebm.data.loading import sample_toy
    from hf_ebm.evaluation.toy_metrics import mode_centres, sample_metrics

    perfect = sample_metrics(sample_toy("25gaussians", 20_000, torch.Generator().manual_seed(0)))
    assert abs(perfect["within_4_sigma"] - (1 - torch.exp(torch.tensor(-8.0)).item())) < 2e-3  # Rayleigh: 1 - e^-8
    assert perfect["num_modes"] == 25 and perfect["balance"] > 0.8
    broken = torch.cat([mode_centres()[:1].expand(500, 2), torch.full((500, 2), 0.35)])
    metrics = sample_metrics(broken)
    assert metrics == {"within_4_sigma": 0.5, "num_modes": 1, "balance": 0.0}


def test_density_metrics_of_the_true_mixture():
    from hf_ebm.data.toy import TOY_MODE_STD
    from hf_ebm.evaluation.toy_metrics import density_metrics, mode_centres

    class Mixture(torch.nn.Module):
        device, dtype, centres = torch.device("cpu"), torch.float32, mode_centres()

        def forward(self, x, t):
            squared = torch.cdist(x, self.centres) ** 2 / (2 * (TOY_MODE_STD**2 + 0.0105**2))
            return type("Output", (), {"energy": -torch.logsumexp(-squared, dim=1)})

    metrics = density_metrics(Mixture())
    assert metrics["num_peaks"] == metrics["modes_with_a_peak"] == 25
    assert metrics["mass_at_modes"] > 0.999
    Mixture.centres = mode_centres()[:10]
    metrics = density_metrics(Mixture())
    assert metrics["num_peaks"] == metrics["modes_with_a_peak"] == 10


@pytest.mark.parametrize("name", ["pinwheel", "swissroll"])
def test_what_is_near_the_data(name):
    """The data themselves, half of them moved far away, and densities that are flat or far away."""
    from hf_ebm.data.loading import sample_toy
    from hf_ebm.evaluation.toy_metrics import near_data_metrics

    class Flat(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, x, t):
            return type("Output", (), {"energy": torch.zeros(len(x))})

    class Corner(Flat):
        def forward(self, x, t):
            return type("Output", (), {"energy": 1e4 * (x - 2.2).square().sum(dim=1)})

    points = sample_toy(name, 10_000, torch.Generator().manual_seed(1))
    perfect = near_data_metrics(points, Flat(), name)
    assert perfect["samples_near_data"] == pytest.approx(0.99, abs=0.005)
    assert perfect["data_near_samples"] == pytest.approx(0.99, abs=0.005)
    uniform = 4.4 * torch.rand(10_000, 2, generator=torch.Generator().manual_seed(2)) - 2.2
    broken = near_data_metrics(torch.cat([points[:5000], torch.full((5000, 2), 3.0)]), Corner(), name)
    assert broken["samples_near_data"] == pytest.approx(0.495, abs=0.01) and broken["mass_near_data"] < 1e-3
    spread = near_data_metrics(uniform, Flat(), name)
    assert spread["mass_near_data"] == pytest.approx(spread["samples_near_data"], abs=0.02)  # the same flat density
    assert 0.1 < spread["mass_near_data"] < 0.8 < 0.9 < spread["data_near_samples"]
