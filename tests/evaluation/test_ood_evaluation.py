"""OOD evaluation: baselines on known answers, each statistic computed once, tables and plots."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range, to_unit_range
from hf_ebm.evaluation.ood import evaluate_ood, fit_baselines, format_table, load_images, score_sets
from hf_ebm.evaluation.plots import histogram_ticks, new_figure, plot_roc, plot_score_histograms
from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD, blurred, shuffled_patches
from hf_ebm.scoring.scores import Moments


def test_shuffled_patches_moves_whole_patches():
    images = torch.arange(2 * 64.0).reshape(2, 1, 8, 8)
    ood = shuffled_patches(images, torch.Generator().manual_seed(0))
    patches = lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(2, 16, 4)  # noqa: E731
    assert not torch.equal(ood, images)
    for before, after in zip(patches(images), patches(ood), strict=True):
        assert {tuple(p.tolist()) for p in before} == {tuple(p.tolist()) for p in after}
    with pytest.raises(ValueError, match="divisible by 4"):
        shuffled_patches(torch.zeros(1, 1, 6, 6))


def test_blurred_keeps_constants_and_smooths():
    assert torch.allclose(blurred(torch.full((1, 3, 8, 8), 0.3)), torch.tensor(0.3))
    image = torch.randn(1, 1, 8, 8)
    assert blurred(image).std() < 0.5 * image.std()


@pytest.fixture(scope="module")
def found():
    train, test = to_model_range(load_digits("train")[0])[:400], to_model_range(load_digits("test")[0])[:60]
    scorers = {**fit_baselines(train)[0], "constant": lambda x: torch.arange(len(x)) % 7.0}
    sets = {"in_distribution": test, **{name: SYNTHETIC_OOD[name](test) for name in ("noise", "inverted")}}
    scores = {name: {key: scorer(images) for key, images in sets.items()} for name, scorer in scorers.items()}
    return evaluate_ood(scores, ["noise", "inverted"], num_resamples=20), scores


def test_baselines_separate_noise_from_digits(found):
    table, scores = found
    expected = {"pixel_gaussian", "pca_residual", "nearest_neighbour", "autoencoder", "png_size", "constant"}
    assert set(table) == expected
    for name, rows in table.items():
        assert set(rows) == {"noise", "inverted", "mean"}
        mean = np.mean([rows["noise"]["auroc"]["value"], rows["inverted"]["auroc"]["value"]])
        assert rows["mean"]["auroc"]["value"] == pytest.approx(mean)
        of_noise = rows["noise"]["auroc"]["value"]  # a constant score is at chance; noise needs the most bits
        assert of_noise == 0.5 if name == "constant" else of_noise < 0.05 if name == "png_size" else of_noise > 0.95
        assert scores[name]["in_distribution"].shape == (60,)


def test_plots(found, tmp_path):
    far = {"energy": {"in_distribution": torch.zeros(20), "noise": torch.full((20,), 1e9)}}  # no spread, and far away
    for name, plot, scores in (("roc", plot_roc, found[1]), ("h", plot_score_histograms, {**found[1]})):
        plot(scores, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    plot_score_histograms(far, tmp_path / "far.png")
    assert (tmp_path / "far.png").read_bytes().startswith(b"\x89PNG")


def test_no_two_scorers_look_alike(tmp_path, monkeypatch):
    """Eleven lines, one more than matplotlib has colours."""
    figure = new_figure(3, 3)
    monkeypatch.setattr("hf_ebm.evaluation.plots.new_figure", lambda *_: figure)
    some = {"in_distribution": torch.randn(9), "noise": torch.randn(9)}
    plot_roc({f"score_{number}": some for number in range(11)}, tmp_path / "roc.png")
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 11
    assert lines[10].get_label() == "score 10"


def test_each_statistic_is_computed_once_per_set_and_scores_are_the_pipelines(tiny_pipeline, monkeypatch):
    scorer = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    scorer.set_progress_bar_config(disable=True)
    train, test = to_model_range(load_digits("train")[0])[:30], to_model_range(load_digits("test")[0])[:12]
    sets = {"in_distribution": test, "inverted": -test}
    taken = []
    make_statistics_function = EnergyScoringPipeline.make_statistics_function
    monkeypatch.setattr(
        EnergyScoringPipeline,
        "make_statistics_function",
        lambda self, names, seed: taken.extend(names) or make_statistics_function(self, names, seed),
    )
    names = ["energy", "typicality", "multiscale", "complexity"]
    found = score_sets(scorer, names, train, sets, seed=3)
    assert sorted(taken) == sorted(3 * ["energy", "energies", "compressed_size"])  # train and two sets
    assert scorer.calibration is None
    train = to_unit_range(train)
    scorer.calibrate(train, target_fpr=0.1, seed=3)
    statistics = {name: Moments.of(values) for name, values in scorer.compute_statistics(train, taken).items()}
    scorer.calibration = dataclasses.replace(scorer.calibration, statistics=statistics)  # of all, not of a half
    for name in names:
        for key, images in sets.items():
            torch.testing.assert_close(found[name][key], scorer(to_unit_range(images), score=name).scores)


def test_load_images_describes_its_source():
    images, source = load_images("digits", (1, 8, 8), "test", None, 40, 0)
    again, _ = load_images("digits", (1, 8, 8), "test", None, 40, 0)
    other, _ = load_images("digits", (1, 8, 8), "test", None, 40, 1)
    assert torch.equal(images, again) and not torch.equal(images, other) and images.shape == (40, 1, 8, 8)
    _, of_train = load_images("digits", (1, 8, 8), "train", None, 40, 0)
    assert source["num_images"] == 40 and source["split"] == "test" and source["dataset"] == "digits"
    assert source["fingerprint"] != of_train["fingerprint"]


def test_the_autoencoder_trains_until_convergence_or_warns(recwarn):
    train, test = to_model_range(load_digits("train")[0])[:300], to_model_range(load_digits("test")[0])[:100]
    few, stopped = fit_baselines(train, max_epochs=2)
    enough, converged = fit_baselines(train)
    assert stopped == {"epochs": 2, "converged": False}
    assert converged["converged"] and 2 < converged["epochs"] < 1000
    assert enough["autoencoder"](test).mean() < few["autoencoder"](test).mean()
    assert not [warning for warning in recwarn if "onverge" in str(warning.message)]


def test_each_part_shows_its_progress(tiny_pipeline):
    """To who waits, from the first of its things to the last."""
    shown = []

    def bar(things, desc, total):
        things = list(things)
        shown.append((desc, len(things), total))
        return things

    scorer = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    scorer.set_progress_bar_config(disable=True)
    train, test = to_model_range(load_digits("train")[0])[:60], to_model_range(load_digits("test")[0])[:30]
    sets = {"in_distribution": test, "inverted": -test}
    _, autoencoder = fit_baselines(train, max_epochs=2, progress_bar=bar)
    scores = score_sets(scorer, ["energy", "complexity"], train, sets, progress_bar=bar)
    evaluate_ood(scores, num_resamples=5, progress_bar=bar)
    assert autoencoder["epochs"] == 2
    assert shown == [("fitting the baselines", 4, 4), ("scoring the sets", 2, 2), ("intervals", 2, 2)]


def test_baselines_refuse_what_does_not_fit_in_memory():
    with pytest.raises(ValueError, match=r"30,000.*--no-baselines"):
        fit_baselines(torch.zeros(12, 3, 100, 100))


@pytest.mark.parametrize("metric", ["auroc", "fpr95"])
def test_the_printed_table_is_narrow_and_has_every_figure(metric):
    sets, scorers = [*SYNTHETIC_OOD, "user/a_data_set@test"], ("energy", "typicality", "pixel_gaussian")
    table = {
        scorer: {
            **{
                name: {metric: {"value": 0.5 + i / 100, "low": i / 1000, "high": 0.9 + j / 100}}
                for i, name in enumerate(sets)
            },
            "mean": {metric: {"value": 0.7 + j / 1000, "low": 0.6, "high": 0.8}},
        }
        for j, scorer in enumerate(scorers)
    }
    blocks = (format_table(table) if metric == "auroc" else format_table(table, metric)).split("\n\n")
    assert all(block.startswith(metric.upper()) for block in blocks)
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 120
    rows = [[line.split("  ") for line in block.splitlines()] for block in blocks]
    heads = [[cell.strip() for cell in block[0] if cell][1:] for block in rows]
    assert heads == [sets[:4], sets[4:8], [sets[8][:20], "mean"]]
    for index, scorer in enumerate(scorers):
        shown = [cell.strip() for block in rows for cell in block[1 + index][1:] if cell]
        assert [block[1 + index][0] for block in rows] == [scorer] * 3
        figures = [table[scorer][name][metric] for name in (*sets, "mean")]
        assert shown == [f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" for figure in figures]


@pytest.mark.parametrize(("lowest", "highest"), [(-2.0, 1e5), (-4.0, 4.0), (-2.0, 2.0), (-0.4, 0.3), (5.0, 8.0)])
def test_histograms_have_ticks_on_any_axis(lowest, highest):
    ticks = histogram_ticks(lowest, highest)
    assert 3 <= len(ticks) <= 12 and ticks == sorted(ticks) and lowest <= ticks[0] < ticks[-1] <= highest
