"""The functions behind the demo's tabs: their results and errors."""

import itertools
import math

import numpy as np
import PIL.Image
import pytest
import torch

from hf_ebm import DualMCMCPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.demo import figures, limits
from hf_ebm.demo.examples import write_examples
from hf_ebm.demo.generation import Generation, generate
from hf_ebm.demo.reconstruction import interpolate, reconstruct
from hf_ebm.demo.uploads import read_upload
from hf_ebm.demo.verdict import Reference, available_scores, judge, references
from hf_ebm.scoring.calibration import Calibration
from hf_ebm.scoring.statistics import compute_energies


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_denoising_is_the_pipelines_own(ddaebm):
    drawn = generate(ddaebm, 5, "DDAEBM (its own)", 4, 7)
    expected = ddaebm.pipeline(5, generator=seeded(7), output_type="pt").images
    assert torch.equal(drawn.images, expected)
    assert drawn.states.shape == (4, 3, 1, 8, 8) and drawn.energies.shape == (4, 5)
    assert torch.equal(to_unit_range(drawn.states[-1]), expected[:3])
    for states, energies in zip(drawn.states, drawn.energies, strict=True):
        torch.testing.assert_close(energies[:3], compute_energies(ddaebm.pipeline.energy_model, states))
    assert drawn.point_names == ["step 1", "step 2", "step 3", "step 4"]


def test_stock_schedulers_take_fewer_steps_and_leave_the_model_unchanged(ddaebm):
    before = ddaebm.pipeline.scheduler
    assert generate(ddaebm, 2, "DDIM", 2, 0).energies.shape == (2, 2)
    assert ddaebm.pipeline.scheduler is before


@pytest.mark.parametrize("sampler", DualMCMCPipeline.samplers)
def test_the_chain_is_the_pipelines_own(dual, sampler):
    drawn = generate(dual, 4, sampler, 3, 5)
    pipeline = dual.pipeline
    pipeline.scheduler = pipeline.samplers[sampler].from_config(pipeline.scheduler.config)
    expected = pipeline(4, 3, generator=seeded(5), output_type="pt", output_energies=True)
    torch.testing.assert_close(drawn.images, expected.images)
    torch.testing.assert_close(drawn.energies, expected.energies)
    torch.testing.assert_close(to_unit_range(drawn.states[-1]), expected.images[:3])
    torch.testing.assert_close(drawn.energies[:, :3], compute_energies_of(pipeline, drawn.states))
    assert drawn.point_names == ["start", "step 1", "step 2", "step 3"]
    assert (drawn.acceptance_rate is not None) == (sampler in ("MALA", "HMC", "Replica exchange"))


def compute_energies_of(pipeline, states):
    return torch.stack([compute_energies(pipeline.energy_model, x) for x in states])


def test_without_steps_the_page_shows_the_generators_samples(dual):
    drawn = generate(dual, 2, "Langevin (its own)", 0, 0)
    assert drawn.energies.shape == (1, 2) and drawn.point_names == ["start"]
    assert figures.filmstrip(drawn).width == round(figures.WIDTH * figures.DPI)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((limits.MAX_IMAGES + 1, "MALA", 3, 0), "number of images"),
        ((0, "MALA", 3, 0), "number of images"),
        ((2.5, "MALA", 3, 0), "number of images"),
        ((True, "MALA", 3, 0), "number of images"),
        (("3", "MALA", 3, 0), "number of images"),
        ((2, "MALA", limits.MAX_CHAIN_STEPS + 1, 0), "number of steps"),
        ((2, "MALA", math.nan, 0), "number of steps"),
        ((2, "MALA", 3, -1), "seed"),
        ((2, "MALA", 3, None), "seed"),
        ((2, "no such", 3, 0), "sampler"),
        ((2, ["MALA"], 3, 0), "sampler"),
    ],
)
def test_the_server_bounds_what_the_page_sends(dual, values, named):
    with pytest.raises(ValueError, match=named):
        generate(dual, *values)


def test_verdict_counts_images_with_at_least_the_score(ddaebm):
    held_out = load_digits("test")[0][:40]
    ddaebm.scorer.calibrate(held_out, target_fpr=0.1)
    energies = ddaebm.pipeline.score(held_out).energies
    order = energies.argsort(descending=True)
    scores = torch.tensor(ddaebm.scorer.calibration.reference["energy"])
    for rank in (0, 1, 2, 3, 4, 20):
        found, text = judge(ddaebm, held_out[order[rank]][None], "energy")
        count, is_ood = int((scores >= found.scores[0]).sum()), bool(found.is_ood[0])
        assert abs(count - rank - 1) <= 1  # scored on its own, its energy may differ in the last digit
        assert float(found.p_values[0]) == pytest.approx((1 + count) / 41)
        assert is_ood == (1 + count <= 4)  # a tenth of 41
        share = f"{count} ({count / 40:.1%})" if count else "none"
        assert f"Of 40 in-distribution images, with at least this score: **{share}**" in text
        assert ("Out-of-distribution:" in text) == is_ood != ("In-distribution:" in text)
        assert "\n" in text.partition("the training data")[2][:1]  # nothing after the heading
    _, by_slope = judge(ddaebm, held_out[:1], "gradient_norm")
    assert by_slope.partition("\n")[0].endswith("the training data, by gradient norm")
    reference = references(ddaebm, held_out)["energy"]
    assert reference.threshold == pytest.approx(energies[order[3]].item())
    far = float(energies.max()) + 1e6
    assert figures.score_histogram(reference, far, "energy").width == round(figures.WIDTH * figures.DPI)


@pytest.mark.parametrize("low, span", [(-1e-3, 1e-3), (-0.016, 0.0082), (-13.0, 1.0), (-13_000.0, 1000.0)])
def test_a_histograms_ticks_keep_apart(low, span, monkeypatch):
    monkeypatch.setattr(figures, "to_pil", lambda figure: figure)
    reference = Reference(low + span * torch.linspace(0, 1, 60, dtype=torch.float64), "in-distribution", None)
    figure = figures.score_histogram(reference, low, "energy")
    figure.canvas.draw()  # a label has its words and its place only then
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(boxes) >= 3
    assert all(right.x0 - left.x1 > left.height for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("score", "left", "right"), [(1.5, 1.0, 2.0), (2.4, 1.0, 2.4), (9.0, 1.0, 2.9), (0.1, 0.4, 2.0)]
)
def test_a_histograms_axis_goes_as_far_as_there_is_something_to_see(score, left, right, monkeypatch):
    """Scores of 1 to 2: an image's has 0.6 of their width to the left, 0.9 to the right; further is an arrow."""
    monkeypatch.setattr(figures, "to_pil", lambda figure: figure)
    reference = Reference(torch.linspace(1.0, 2.0, 60, dtype=torch.float64), "in-distribution", None)
    axis = figures.score_histogram(reference, score, "energy").axes[0]
    margin = 0.03 * (right - left)
    assert axis.get_xlim() == pytest.approx((left - margin, right + margin))
    assert bool(axis.texts) == (not left <= score <= right)


def test_the_curves_tick_labels_and_legend_are_whole():
    """The band widens the axis, its ticks change, and the labels need more room than the first layout gave them."""
    energies = torch.linspace(-0.002312, -0.002803, 11, dtype=torch.float64)[:, None].expand(-1, 8)
    names = ["start", *(f"step {step}" for step in range(1, 11))]
    states = torch.zeros(11, 3, 1, 8, 8)
    drawn = Generation(states[-1], states, energies, names)
    low, high = -0.0028821804, -0.0016444268
    width = (high - low) * 0.05 / 0.9
    scores = torch.linspace(low - width, high + width, 101, dtype=torch.float64)
    reference = Reference(scores, "held out", high)
    picture = np.asarray(figures.filmstrip(drawn, reference).convert("L"))
    edges = picture[picture.shape[0] // 2 :, [0, 1, -2, -1]]  # below the strip
    assert not (edges < 200).any()


def test_without_a_calibration_there_is_no_verdict(ddaebm):
    x = torch.rand(4, 1, 8, 8)
    found, text = judge(ddaebm, x[:1], "energy")
    assert found.is_ood is None and found.p_values is None and "not calibrated" in text
    reference = references(ddaebm, x)["energy"]
    assert reference.threshold is None and reference.name == "samples of the model"
    assert torch.equal(reference.scores, ddaebm.pipeline.score(x).energies.double().sort().values)
    with pytest.raises(ValueError, match="score"):
        judge(ddaebm, x[:1], "multiscale")


def test_scores_that_the_calibration_lacks_are_not_offered(dual):
    dual.scorer.calibrate(load_digits("test")[0][:40])
    full = dual.scorer.calibration
    dual.scorer.calibration = Calibration(
        full.target_fpr, full.num_samples, full.seed, full.statistics, {"energy": full.reference["energy"]}
    )
    assert available_scores(dual) == ["energy"]


def test_reconstruction_reports_the_errors_of_what_it_shows(dual):
    x = torch.rand(1, 1, 8, 8)
    found = reconstruct(dual, x, 6, 3)
    assert found.errors.shape == (7,)
    torch.testing.assert_close(found.errors[0], (2 * (found.inferred - x)).square().mean())
    torch.testing.assert_close(found.errors[-1], (2 * (found.revised - x)).square().mean())
    assert not torch.equal(found.inferred, found.revised)
    figures.reconstruction_figure(found)


def test_blends_go_from_one_end_to_the_other(dual, tmp_path):
    frames, energies = interpolate(dual, None, 4, None, 5, 3)
    for index, seed in ((0, 4), (-1, 5)):
        expected = dual.pipeline(1, 0, generator=seeded(seed), output_type="pt").images
        torch.testing.assert_close(frames[index][None], expected)
    torch.testing.assert_close(energies, dual.pipeline.score(frames).energies)
    path = str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8), 90).save(path)
    from_picture, _ = interpolate(dual, path, 4, None, 5, 3)
    torch.testing.assert_close(from_picture[-1], frames[-1])
    assert not torch.allclose(from_picture[0], frames[0])
    with pytest.raises(ValueError, match="second seed"):
        interpolate(dual, path, 4, None, None, 3)
    with pytest.raises(ValueError, match="frames"):
        interpolate(dual, path, 4, None, 5, limits.MAX_FRAMES + 1)


def test_examples_come_back_as_they_were_made(ddaebm, tmp_path):
    own = ddaebm.pipeline(5, generator=seeded(0), output_type="pt").images
    paths = write_examples(ddaebm, own, tmp_path)
    likeliest = own[ddaebm.pipeline.score(own).energies.argmin()]
    given = [read_upload(path, ddaebm.pipeline.image_processor) for path in paths]
    assert len(paths) == 6 and {one.changes for one in given} == {""}
    torch.testing.assert_close(given[0].x[0], likeliest, atol=1 / 255, rtol=0)
    torch.testing.assert_close(given[3].x[0], 1 - likeliest, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(("number", "expected"), [(1, [0]), (4, [0, 1, 2, 3]), (11, [0, 2, 4, 6, 8, 10])])
def test_the_strip_shows_both_ends(number, expected):
    assert figures.shown_points(number) == expected


@pytest.mark.parametrize("which", ["ddaebm", "dual"])
def test_a_calibrated_model_shows_unusual_pixels(which, request):
    model = request.getfixturevalue(which)
    held_out = load_digits("test")[0][:40]
    assert judge(model, held_out[:1], "energy")[0].maps is None
    model.scorer.calibrate(held_out, target_fpr=0.1)
    found, _ = judge(model, held_out[:1], "energy")
    assert torch.equal(found.maps, model.scorer(held_out[:1], output_maps=True).maps)
    shown = figures.heat_map(held_out[0], found.maps[0])
    assert shown.width == round(figures.WIDTH * figures.DPI)
