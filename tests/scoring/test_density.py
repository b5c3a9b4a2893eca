"""The density scores: closed forms, both sides, exact p-values, the file of the reference."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from hf_ebm import DDAEBMScheduler, EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.scoring.calibration import FILE_NAME, REFERENCE_FILE, Calibration
from hf_ebm.scoring.density import NUM_NEIGHBOURS, NearestNeighbours
from hf_ebm.scoring.scores import DENSITY, FULL, SCORES
from hf_ebm.scoring.statistics import compute_energies, compute_pass_statistics


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def statistics_of(number, random, shift=0.0):
    """Positive energies and norms at two noise levels, and sizes."""
    return {
        "energy": torch.randn(number, generator=random),
        "clean_energies": (3.0 + torch.randn(number, 2, generator=random) / 3 + shift).exp(),
        "gradient_norms": torch.randn(number, 2, generator=random).exp(),
        "compressed_size": 100.0 + torch.randn(number, generator=random),
    }


def test_the_distance_is_the_mean_to_the_nearest_neighbours():
    reference, sample = torch.randn(50, generator=seeded()), torch.tensor([0.3, -4.0])
    found = NearestNeighbours.fit({"clean_energies": reference}, ["clean_energies"]).distance(
        {"clean_energies": sample}
    )
    distances = (sample[:, None].double() - reference.double()).abs() / reference.double().std()
    assert_close(found, distances.sort(dim=1).values[:, :NUM_NEIGHBOURS].mean(dim=1))


def test_positive_statistics_are_compared_by_their_logarithms():
    """Above half of the smallest reference value the logarithm, below its tangent there."""
    reference = torch.randn(50, generator=seeded()).double().exp()
    floor = 0.5 * reference.min()
    sample = torch.stack([torch.tensor(0.7).double(), 3.0 * reference.max(), 0.2 * floor, -floor])
    found = NearestNeighbours.fit({"clean_energies": reference}, ["clean_energies"]).distance(
        {"clean_energies": sample}
    )
    logs = torch.stack([sample[0].log(), sample[1].log(), floor.log() - 0.8, floor.log() - 2.0])
    distances = (logs[:, None] - reference.log()).abs() / reference.log().std()
    assert_close(found, distances.sort(dim=1).values[:, :NUM_NEIGHBOURS].mean(dim=1))


@pytest.mark.parametrize(
    ("name", "positive"), [("clean_energies", True), ("clean_energies", False), ("class_log_odds", True)]
)
def test_it_grows_far_out_on_both_sides(name, positive):
    values = torch.randn(200, 3, generator=seeded()) / 3
    reference = (values + 3.0).exp() if positive else values  # logarithms, or as they are
    neighbours = NearestNeighbours.fit({name: reference}, [name])
    assert bool(neighbours.floor.isnan().all()) == (not positive or name == "class_log_odds")
    middle = reference.median(dim=0).values
    scale = torch.tensor([1.0, 4.0, 16.0, 64.0, 256.0])[:, None] * reference.std()
    for side in (1.0, -1.0):
        distance = neighbours.distance({name: middle + side * scale})
        assert (distance.diff() > 0).all()
    assert neighbours.distance({name: middle[None]}) < neighbours.distance({name: reference}).quantile(0.9)


def test_explanations_name_the_statistic_and_the_side():
    neighbours = NearestNeighbours.fit(statistics_of(200, seeded()), ["clean_energies", "compressed_size"])
    unusual = {name: values[:2].clone() for name, values in statistics_of(5, seeded(1)).items()}
    unusual["clean_energies"][0, 1] = 1e-3
    unusual["compressed_size"][1] = 500.0
    assert neighbours.explain(unusual) == [
        "farthest statistic: the energy at t = 1, lower than for 100 % of the reference samples (on the simple side)",
        "farthest statistic: the compressed size, higher than for 100 % of the reference samples (on the complex side)",
    ]


def test_an_explanation_is_no_verdict_and_does_not_count_ties():
    reference = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 9.0])
    neighbours = NearestNeighbours.fit({"reconstruction_errors": reference}, ["reconstruction_errors"])
    assert neighbours.explain({"reconstruction_errors": torch.tensor([2.0])}) == [
        "farthest statistic: the reconstruction error, lower than for 12.5 % of the reference samples"
    ]


@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize(("number", "target"), [(50, 0.1), (200, 0.05)])
def test_p_values_are_exact_on_average_over_calibration_sets(number, target, own_reference):
    """P(p <= a) = floor(a (n + 1)) / (n + 1), by simulation, with the half as reference or with other samples."""
    random, flagged, sets, new = seeded(), 0.0, 60, 400
    for seed in range(sets):
        reference = statistics_of(100, random) if own_reference else None
        fitted = Calibration.fit(statistics_of(number, random), target, seed, reference=reference)
        samples = statistics_of(new, random)
        scores = fitted.fitted.neighbours(("clean_energies", "gradient_norms", "compressed_size")).distance(samples)
        flagged += float((fitted.p_values("density", scores) <= target).double().mean()) / sets
    n = fitted.num_calibrated("density")
    assert n == (number if own_reference else number - number // 2)
    expected = math.floor(target * (n + 1) + 1e-9) / (n + 1)
    assert fitted.expected_fpr("density") == expected
    spread = math.sqrt(target * (1 - target) * (1 / n + 1 / new) / sets)  # over calibration sets and new samples
    assert abs(flagged - expected) < 3.5 * spread


def test_energies_and_gradient_norms_of_all_levels(tiny_pipeline):
    x, energy = torch.rand(5, 1, 8, 8, generator=seeded()) * 2 - 1, tiny_pipeline.energy_model
    found = compute_pass_statistics(energy, x, ["clean_energies", "gradient_norms"], batch_size=2)
    assert found["clean_energies"].shape == found["gradient_norms"].shape == (5, 4)
    for t in range(4):
        assert_close(found["clean_energies"][:, t], compute_energies(energy, x, t))
    (first,) = compute_pass_statistics(energy, x, ["gradient_norm"]).values()
    assert_close(found["gradient_norms"][:, 0], first)
    (alone,) = compute_pass_statistics(energy, x, ["clean_energies"]).values()
    assert_close(alone, found["clean_energies"])


@pytest.fixture
def scorer(tiny_pipeline):
    pipe = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_calibrated_pipeline_scores_explains_saves_and_loads(scorer, tmp_path):
    train, test = load_digits("train")[0][:60], load_digits("test")[0]
    scorer.calibrate(test[:40], target_fpr=0.1, reference=train)
    assert {"density_fast", "density", "density_full"} <= set(scorer.calibration.reference)
    assert scorer.calibration.num_calibrated("density") == 40  # all: the reference are other images
    result = scorer(test[40:50], score="density")
    assert result.contributions is not None and all(
        " of the reference samples" in text for text in result.contributions
    )
    assert torch.equal(scorer(test[40:50]).scores, result.scores)  # the default
    assert scorer(test[40:42], score="energy").contributions is None
    scorer.save_pretrained(tmp_path)
    loaded = EnergyScoringPipeline.from_pretrained(tmp_path, load_reconstruction=True)
    again = loaded(test[40:50], score="density", batch_size=3)
    assert_close(again.scores, result.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.p_values, result.p_values) and again.contributions == result.contributions


def test_of_a_large_reference_only_some_images_are_read(scorer, monkeypatch):
    monkeypatch.setattr("hf_ebm.pipelines.pipeline_energy_scoring.MAX_DENSITY_REFERENCE", 30)
    train, test = load_digits("train")[0][:60], load_digits("test")[0][:20]
    for reference in (train, list(train), train.numpy()[:, 0]):
        calibration = scorer.calibrate(test, target_fpr=0.1, reference=reference)
        assert len(calibration.density_reference["compressed_size"]) == 30


def test_a_reference_that_is_missing_or_changed_is_named(scorer, tmp_path):
    scorer.calibrate(load_digits("test")[0][:60], target_fpr=0.1)
    scorer.calibration.save(tmp_path)
    assert Calibration.load(tmp_path).density_reference.keys() == scorer.calibration.density_reference.keys()
    content = bytearray((tmp_path / REFERENCE_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / REFERENCE_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FILE_NAME} cannot be used.*damaged or of another calibration"):
        Calibration.load(tmp_path)
    (tmp_path / REFERENCE_FILE).unlink()
    with pytest.raises(ValueError, match=r"calibration\.safetensors beside it is missing"):
        Calibration.load(tmp_path)


def test_bad_references(caplog):
    random = seeded()
    few = Calibration.fit(statistics_of(40, random), 0.1, reference=statistics_of(NUM_NEIGHBOURS, random))
    assert "density" not in few.reference and "must have more than 5 samples" in caplog.text
    constant = {**statistics_of(40, random), "compressed_size": torch.ones(40)}
    caplog.clear()
    assert "density" not in Calibration.fit(constant, 0.1).reference
    assert "got one the compressed size for all" in caplog.text
    with pytest.raises(ValueError, match=r"reference must have the statistics .* without \['compressed_size'\]"):
        Calibration.fit(
            statistics_of(40, random),
            0.1,
            reference={name: values for name, values in statistics_of(9, random).items() if name != "compressed_size"},
        )
    with pytest.raises(ValueError, match="finite statistics"):
        NearestNeighbours.fit({"clean_energies": torch.full((9,), torch.nan)}, ["clean_energies"])


def test_vectors_have_no_compressed_size():
    statistics = {name: values for name, values in statistics_of(40, seeded()).items() if name != "compressed_size"}
    assert "density" in Calibration.fit(statistics, 0.1).reference


@pytest.fixture
def classifier():
    """A scorer of points by an energy with classes."""
    torch.manual_seed(0)
    models = build_ddaebm_models(ddaebm_model_settings("toy", num_classes=3))
    for parameter in (models[1].class_scores.weight, models[1].class_scores.bias):
        torch.nn.init.normal_(parameter)
    pipe = EnergyScoringPipeline(models[1].eval(), DDAEBMScheduler(), models[0].eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_class_probabilities_are_a_part_of_density_full_where_there_are_classes(classifier, scorer, caplog):
    x = torch.randn(60, 2, generator=seeded())
    calibration = classifier.calibrate(x, target_fpr=0.1)
    of_classes = {"class_log_odds", "class_log_entropy"}
    assert of_classes | {"reconstruction_errors"} <= {*calibration.density_reference}
    assert of_classes < {*calibration.fitted.neighbours(FULL).names}
    assert not of_classes & {*calibration.fitted.neighbours(DENSITY).names}
    for score in ("density", "density_full"):
        expected = calibration.fitted.neighbours(SCORES[score].statistics).distance(
            classifier.compute_statistics(x[:9], classifier.needed(score))
        )
        assert_close(classifier(x[:9], score=score).scores, expected)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    assert not of_classes & ({*scorer.calibration.density_reference} | scorer.needed(*SCORES))
    torch.nn.init.zeros_(classifier.energy_model.class_scores.weight)  # p(y | x) is the same for all x
    assert {"density", "density_full"} - {*classifier.calibrate(x, target_fpr=0.1).reference} == {"density_full"}
    assert "'density_full' is left out: reference must give statistics that differ" in caplog.text
    assert "got one the log odds of the most likely class for all" in caplog.text


def test_a_file_of_format_3_has_another_density_full(scorer, tmp_path):
    """It was calibrated by a single reconstruction error; the other scores are as they were."""
    calibration = scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    first = calibration.density_reference["reconstruction_errors"][:, 0].contiguous()
    old = {name: x for name, x in calibration.density_reference.items() if name != "reconstruction_errors"}
    dataclasses.replace(calibration, density_reference={**old, "reconstruction_error": first}).save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"format_version": 4', '"format_version": 3'))
    scorer.calibration = Calibration.load(tmp_path)
    images = load_digits("test")[0][40:45]
    scores = calibration.fitted.neighbours(DENSITY).distance(scorer.compute_statistics(images, DENSITY))
    assert torch.equal(scorer(images).scores, scores)
    message = (
        r"'density_full' was not calibrated, only .*; an earlier version .* other statistics; calibrate again: hf-ebm"
    )
    with pytest.raises(ValueError, match=message):
        scorer(images, score="density_full")
