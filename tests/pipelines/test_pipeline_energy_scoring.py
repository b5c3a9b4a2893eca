"""EnergyScoringPipeline: the same energies for any input and repository; saved calibration."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoImageProcessor

from hf_ebm import (
    DDAEBMPipeline,
    DualMCMCPipeline,
    EBMImageProcessor,
    EnergyScoringPipeline,
    MLPEnergyConfig,
    MLPEnergyModel,
)
from hf_ebm.data.digits import load_digits
from hf_ebm.evaluation.ood import score_sets
from hf_ebm.pipelines.pipeline_ddaebm import NUM_DENOISING_DRAWS
from hf_ebm.pipelines.pipeline_energy_scoring import RECONSTRUCTION


@pytest.fixture
def digits():
    """Digits as the 8-bit images that a file holds, so that every kind of input is the same image."""
    return load_digits("test")[0][:60].mul(255).round().div(255)


@pytest.fixture
def pictures(digits):
    pixels = (digits[:, 0] * 255).round().byte().numpy()
    return [PIL.Image.fromarray(image) for image in pixels]


@pytest.fixture
def scorer(tiny_pipeline):
    return quiet(EnergyScoringPipeline.from_pipe(tiny_pipeline))


@pytest.fixture
def dual_scorer(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")
    return quiet(EnergyScoringPipeline.from_pretrained(tmp_path / "dual", load_reconstruction=True))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_every_kind_of_input_gives_the_same_energies(scorer, tiny_pipeline, digits, pictures, tmp_path):
    expected = tiny_pipeline.score(digits).energies
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    table = datasets.Dataset.from_dict({"name": list(range(60)), "picture": pictures})
    table = table.cast_column("picture", datasets.Image())
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    nameless = datasets.IterableDataset.from_generator(lambda: iter({"picture": picture} for picture in pictures))
    undecoded = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    kinds = [digits, digits.numpy().transpose(0, 2, 3, 1), arrays, list(arrays), pictures, tuple(pictures)]
    kinds += [paths, [str(path) for path in paths], undecoded, table, table.to_iterable_dataset(), nameless]
    for images in kinds:
        output = scorer(images, batch_size=7, image_column="picture" if images is nameless else None)
        assert_close(output.energies, expected, rtol=1e-4, atol=1e-4)
        assert_close(output.scores.float(), output.energies)
        assert output.p_values is None and output.is_ood is None
    assert_close(scorer(paths[3]).energies, expected[3:4], rtol=1e-4, atol=1e-4)
    assert_close(scorer(table, image_column="picture", return_dict=False)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("settings", "title"), [({}, "scoring batches"), ({"desc": "mine"}, "mine")])
def test_bar_has_a_name(scorer, digits, capfd, settings, title):
    scorer.set_progress_bar_config(disable=False, **settings)
    scorer(digits, batch_size=20)
    assert f"{title}: 3it" in capfd.readouterr().err


def test_tensors_and_pil_images_in_one_list(scorer, digits, pictures):
    assert_close(scorer([digits[0], pictures[1]]).energies, scorer(digits[:2]).energies)


def test_workers_and_urls_change_nothing(scorer, digits, pictures, tmp_path, file_server):
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for picture, path in zip(pictures[:20], paths, strict=True):
        picture.save(path)
    table = datasets.Dataset.from_dict({"picture": [str(path) for path in paths]})
    table = table.cast_column("picture", datasets.Image())
    expected = scorer(paths, batch_size=3).energies
    assert_close(expected, scorer(digits[:20]).energies, rtol=1e-4, atol=1e-4)
    for images in (paths, table):
        assert torch.equal(scorer(images, batch_size=3, num_workers=2).energies, expected)
    assert torch.equal(scorer([f"{file_server}/{path.name}" for path in paths], batch_size=3).energies, expected)
    assert_close(scorer(f"{file_server}/4.png").energies, expected[4:5], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"none\.png cannot be read \(.*404"):
        scorer([f"{file_server}/none.png"])
    with pytest.raises(ValueError, match="num_workers must be 0 for a streaming"):
        scorer(table.to_iterable_dataset(), num_workers=2)


def test_a_stream_is_read_batch_by_batch(scorer, pictures):
    """No more rows are taken from a stream than the next batch needs: memory does not grow with its length."""
    taken = []

    def rows():
        for index, picture in enumerate(pictures):
            taken.append(index)
            yield {"picture": picture}

    seen_at_forward = []
    scorer.energy_model.register_forward_pre_hook(lambda *_: seen_at_forward.append(len(taken)))
    stream = datasets.IterableDataset.from_generator(rows)
    assert len(scorer(stream, batch_size=10, image_column="picture").energies) == 60
    assert seen_at_forward == [10, 20, 30, 40, 50, 60]


def test_images_of_any_size_and_mode_are_prepared_as_in_training(scorer, pictures, tmp_path):
    big = pictures[0].resize((20, 16), PIL.Image.Resampling.NEAREST).convert("RGB")
    big.save(tmp_path / "big.png")
    expected = scorer.energy_model(EBMImageProcessor(8, 1)(big).pixel_values).energy.detach()
    array = np.array(big)
    for images in (big, tmp_path / "big.png", array, array / 255.0, torch.from_numpy(array).permute(2, 0, 1) / 255):
        assert_close(scorer(images).energies, expected, rtol=1e-4, atol=1e-4)
    scorer.image_processor.do_resize = False
    for images in (big, tmp_path / "big.png", array):
        with pytest.raises(ValueError, match="do_resize=False, got 20 x 16"):
            scorer(images)
    assert scorer(pictures[0]).energies.shape == (1,)


def test_the_saved_image_processor_prepares_images(scorer, pictures, tmp_path):
    """As transformers does by the energy's own; a model's samples, of the padded size, are not padded again."""
    scorer.image_processor = EBMImageProcessor(8, 1, padding=2)
    scorer.save_pretrained(tmp_path)
    again = quiet(EnergyScoringPipeline.from_pretrained(tmp_path))
    assert again.image_processor.padding == 2
    small = pictures[0].resize((4, 4))
    x = torch.nn.functional.pad(torch.from_numpy(np.array(small))[None, None] / 127.5 - 1, (2, 2, 2, 2), value=-1)
    expected = scorer.energy_model(x).energy.detach()
    beside = AutoImageProcessor.from_pretrained(tmp_path, subfolder="energy_model")
    assert_close(beside(small).pixel_values, x)
    for images in (small, np.asarray(small), torch.from_numpy(np.array(small))[None] / 255, x / 2 + 0.5):
        assert_close(again(images).energies, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"image_processor prepares images of shape \(1, 9, 9\)"):
        EnergyScoringPipeline(scorer.energy_model, image_processor=EBMImageProcessor(9, 1))


@pytest.mark.parametrize("which", ["scorer", "dual_scorer"])
def test_scores_do_not_depend_on_the_batch_and_survive_saving(which, request, digits, tmp_path):
    scorer = request.getfixturevalue(which)
    calibration = scorer.calibrate(digits[:40], target_fpr=0.1)
    assert calibration.num_samples == 40 and set(calibration.reference) == set(scorer.available_scores)
    scorer.save_pretrained(tmp_path / "saved")
    again = quiet(EnergyScoringPipeline.from_pretrained(tmp_path / "saved", load_reconstruction="auto"))
    assert again.calibration == calibration
    for score in scorer.available_scores:
        whole = scorer(digits[40:], score=score)
        assert whole.is_ood.dtype == torch.bool and bool(((whole.p_values <= 0.1) == whole.is_ood).all())
        small = again(digits[40:], score=score, batch_size=3)
        assert_close(small.scores, whole.scores, rtol=1e-4, atol=1e-4)
        alone = again(digits[45], score=score)
        assert_close(alone.scores[0], whole.scores[5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_from_pipe_shares_all_that_the_scores_need(which, request, digits, caplog):
    pipe = request.getfixturevalue(which)
    scorer = quiet(EnergyScoringPipeline.from_pipe(pipe))
    assert scorer.energy_model is pipe.energy_model and scorer.generator_model is pipe.generator_model
    dual = which == "tiny_dual_mcmc_pipeline"
    assert scorer.inference_model is (pipe.inference_model if dual else None)
    assert scorer.can_reconstruct and "not switched over" not in caplog.text
    scorer.calibrate(digits[:40], target_fpr=0.1)
    again = quiet(EnergyScoringPipeline.from_pipe(scorer))
    assert again.calibration is scorer.calibration and again.components == scorer.components


def test_only_what_is_needed_is_loaded(tiny_dual_mcmc_pipeline, tiny_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")
    tiny_pipeline.save_pretrained(tmp_path / "ddaebm")
    for folder in ("dual", "ddaebm"):
        scorer = EnergyScoringPipeline.from_pretrained(tmp_path / folder)
        assert scorer.generator_model is None and scorer.inference_model is None and scorer.energy_model is not None
        assert "reconstruction" not in scorer.available_scores
    assert "multiscale" in scorer.available_scores
    for folder, needed in (("dual", {*RECONSTRUCTION}), ("ddaebm", {"generator_model"})):
        for choice in ("auto", True):
            scorer = EnergyScoringPipeline.from_pretrained(tmp_path / folder, load_reconstruction=choice)
            assert {name for name in RECONSTRUCTION if getattr(scorer, name) is not None} == needed
            assert {"reconstruction", "combined"} < {*scorer.available_scores}
    EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler).save_pretrained(tmp_path / "alone")
    scorer = EnergyScoringPipeline.from_pretrained(tmp_path / "alone", load_reconstruction="auto")
    assert scorer.generator_model is None and "combined" not in scorer.available_scores


def test_reconstruction_is_refused_where_there_is_none(tiny_pipeline, dual_scorer, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "ddaebm")
    EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler).save_pretrained(tmp_path / "alone")
    dual_scorer.inference_model = None
    dual_scorer.save_pretrained(tmp_path / "partly")
    for folder, lacking in (("alone", "generator_model"), ("partly", "inference_model")):
        message = rf"load_reconstruction must be False .*{folder}.*need \['{lacking}'\], and this EnergyScoring.*leave"
        with pytest.raises(ValueError, match=message):
            EnergyScoringPipeline.from_pretrained(tmp_path / folder, load_reconstruction=True)
    with pytest.raises(ValueError, match="load_reconstruction must be True, False or 'auto', got 'yes'"):
        EnergyScoringPipeline.from_pretrained(tmp_path / "ddaebm", load_reconstruction="yes")


def test_reconstruction_score_is_the_pipelines_error(dual_scorer, tiny_dual_mcmc_pipeline, digits):
    assert isinstance(tiny_dual_mcmc_pipeline, DualMCMCPipeline)
    generators = [torch.Generator().manual_seed(0) for _ in range(5)]
    recon = quiet(tiny_dual_mcmc_pipeline).reconstruct(
        digits[:5], sample_latents=False, generator=generators, output_type="latent"
    )
    x = digits[:5] * 2 - 1
    expected = ((recon.images - x) ** 2).flatten(1).mean(dim=1)
    got = dual_scorer(digits[:5], score="reconstruction").scores
    assert_close(got.float(), expected, rtol=1e-4, atol=1e-5)


def test_a_ddaebms_reconstruction_score_is_its_generators_error(scorer, tiny_pipeline, digits):
    abar, generator_model = tiny_pipeline.coefficients.alphas_cumprod[1], tiny_pipeline.generator_model.eval()
    random, expected, x = torch.Generator().manual_seed(0), torch.zeros(5), digits[:5] * 2 - 1
    for _ in range(NUM_DENOISING_DRAWS):
        noise = torch.randn(1, 1, 8, 8, generator=random)
        z = torch.randn(1, generator_model.config.latent_dim, generator=random).expand(5, -1)
        x_1 = abar.sqrt() * x + (1 - abar).sqrt() * noise
        with torch.no_grad():
            clean = generator_model(x_1, torch.zeros(5, dtype=torch.long), z).sample
        expected += ((clean - x) ** 2).mean(dim=(1, 2, 3)) / NUM_DENOISING_DRAWS
    got = scorer(digits[:5], score="reconstruction").scores
    assert_close(got.float(), expected, rtol=1e-4, atol=1e-5)


def test_an_unusable_calibration_file_is_an_error_of_loading(scorer, digits, tmp_path):
    scorer.calibrate(digits[:40], target_fpr=0.1)
    scorer.save_pretrained(tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace('"seed"', '"sead"'))
    with pytest.raises(ValueError, match=r"calibration\.json cannot be used: it has unknown keys \['sead'\]"):
        EnergyScoringPipeline.from_pretrained(tmp_path)


def test_a_calibration_without_the_score_is_an_error(scorer, tiny_pipeline, digits):
    alone = quiet(EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler))
    scorer.calibration = alone.calibrate(digits[:40], target_fpr=0.1)
    for score in ("combined", "reconstruction"):
        with pytest.raises(ValueError, match=f"score '{score}' was not calibrated, only .*load_reconstruction=True"):
            scorer(digits[40:42], score=score)


def test_the_reconstructions_pipeline_is_made_once(dual_scorer, digits, monkeypatch):
    from hf_ebm.pipelines import pipeline_dual_mcmc as module

    measure, used = module.compute_reconstruction_error, []
    monkeypatch.setattr(
        module, "compute_reconstruction_error", lambda pipe, *rest: used.append(pipe) or measure(pipe, *rest)
    )
    dual_scorer(digits[:12], score="reconstruction", batch_size=3)
    assert len(used) == 4 and all(pipe is used[0] for pipe in used)
    dual_scorer(digits[:12], batch_size=3)
    assert len(used) == 4


def test_ood_images_are_detected_by_a_known_energy(scorer, digits):
    """With an energy that is the mean brightness, white images are flagged as OOD and black ones are not."""

    class Output:
        def __init__(self, energy):
            self.energy = energy

    scorer.energy_model.has_residuals = False
    scorer.energy_model.forward = lambda x, t=None: Output(x.flatten(1).mean(dim=1))
    scorer.calibrate(digits, target_fpr=0.05)
    white, black = torch.ones(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    assert scorer(white).is_ood.all() and not scorer(black).is_ood.any()
    assert scorer(black, score="typicality").is_ood.all()  # too low is flagged as well


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(2, 1, 8, 8), {"score": "magic"}, "score must be one of"),
        (torch.zeros(2, 1, 8, 8), {"score": "typicality"}, "calibrate"),
        (torch.zeros(2, 1, 8, 8), {"batch_size": 0}, "batch_size"),
        (torch.zeros(2, 5, 8, 8), {}, "channels"),
        ([], {}, "empty"),
        (torch.zeros(0, 1, 8, 8), {}, "empty"),
        (torch.zeros(2, 1, 8, 8), {"score": "combined"}, "calibrate"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(2).long()), {}, "got a pair of images and labels"),
        ((torch.zeros(2, 1, 8, 8).numpy(), np.zeros(2, int)), {}, "got a pair of images and labels"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(3).long()), {}, "must have shape"),
        (["a.png"], {"num_workers": -1}, "num_workers"),
        (None, {}, "images must be PIL images, paths, URLs, arrays, tensors or a datasets.Dataset, got NoneType"),
        ("no-such-file.png", {}, "no-such-file.png"),
    ],
)
def test_mistakes(scorer, images, options, message):
    with pytest.raises(ValueError, match=message):
        scorer(images, **options)


def test_a_score_with_a_reconstruction_needs_the_generator(scorer):
    scorer.generator_model = None
    for score in ("reconstruction", "combined"):
        with pytest.raises(ValueError, match="load_reconstruction=True"):
            scorer(torch.zeros(2, 1, 8, 8), score=score)


def test_more_mistakes(scorer, tmp_path, pictures):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        scorer([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="at least 19"):
        scorer.calibrate(torch.zeros(5, 1, 8, 8))
    with pytest.raises(ValueError, match=r"target_fpr must be a number between 0 and 1, got '0\.05'"):
        scorer.calibrate(torch.zeros(50, 1, 8, 8), target_fpr="0.05")
    table = datasets.Dataset.from_dict({"picture": pictures[:2]}).cast_column("picture", datasets.Image())
    with pytest.raises(ValueError, match="photo"):
        scorer(table, image_column="photo")
    stream = datasets.IterableDataset.from_generator(lambda: iter({"picture": picture} for picture in pictures))
    with pytest.raises(ValueError, match="does not know its columns"):
        scorer(stream)
    with pytest.raises(ValueError, match=r"'photo' is not in the data set; its rows have \['picture'\]"):
        scorer(stream, image_column="photo")
    with pytest.raises(ValueError, match="images is empty"):
        scorer(table.select([]))
    with pytest.raises(ValueError, match=r"image 1 does not fit .*mode 'F'"):
        scorer([pictures[0], pictures[1].convert("F")])
    with pytest.raises(ValueError, match=r"no threshold before a calibration"):
        scorer.threshold()


def test_the_threshold_separates_ood_from_in_distribution(scorer, digits):
    scorer.calibrate(digits, target_fpr=0.1)
    output = scorer(digits)
    assert bool(((output.scores > scorer.threshold()) == output.is_ood).all())


def test_one_corrupt_row_is_named_and_stops_the_call(scorer, pictures, tmp_path):
    pictures[0].save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    table = datasets.Dataset.from_dict({"picture": [str(tmp_path / "0.png"), str(tmp_path / "1.png")]})
    table = table.cast_column("picture", datasets.Image())
    for images in (table, table.to_iterable_dataset(), [tmp_path / "0.png", tmp_path / "1.png"]):
        with pytest.raises(ValueError, match=r"image .*1\.png cannot be read"):
            scorer(images)


def spoil(scorer, indices, digits):
    """Make the energies of some digits NaN."""
    forward = scorer.energy_model.forward

    def spoilt(x, t=None):
        output = forward(x, t)
        bad = (x[:, None] - (digits[indices] * 2 - 1).to(x)).abs().flatten(2).amax(dim=2).eq(0).any(dim=1)
        output.energy = torch.where(bad, torch.nan, output.energy)
        return output

    scorer.energy_model.forward = spoilt


@pytest.mark.parametrize("calibrated", [False, True])
def test_nan_energies_are_an_error_on_every_route(scorer, tiny_pipeline, digits, calibrated):
    if calibrated:
        scorer.calibrate(digits[:40])
    spoil(scorer, [3, 17], digits)
    message = r"energy is NaN for 2 of 30 images \(the first: number 3, counted from 0\); check .*weights.*float16"
    for score in ["energy", "reconstruction"] if calibrated else ["energy"]:  # also where the energy is not the score
        with pytest.raises(ValueError, match=message):
            scorer(digits[:30], score=score, batch_size=8)
    with pytest.raises(ValueError, match="energy is NaN for 2 of 40 images"):
        scorer.calibrate(digits[:40])
    with pytest.raises(ValueError, match="energy is NaN for 2 of 30 images"):
        tiny_pipeline.score(digits[:30])
    with pytest.raises(ValueError, match="energy is NaN for 2 of 60 images"):
        score_sets(scorer, ["energy"], digits * 2 - 1, {"in_distribution": digits * 2 - 1})
    assert scorer(digits[4:10]).energies.isfinite().all()


class PlainEnergy(torch.nn.Module):
    """What people write first: an energy that returns a tensor."""

    def forward(self, x, t=None):
        return x.square().sum()


class PlainOutput(MLPEnergyModel):
    """An energy whose output is a tensor."""

    def forward(self, x, t=None):
        return x.square().sum(dim=1)


@pytest.mark.parametrize("kind", [EnergyScoringPipeline, DDAEBMPipeline, DualMCMCPipeline])
def test_a_plain_module_is_no_energy(kind, tiny_pipeline, tiny_dual_mcmc_pipeline):
    pipe = tiny_pipeline if kind is DDAEBMPipeline else tiny_dual_mcmc_pipeline
    parts = {name: part for name, part in pipe.components.items() if name in kind.component_names()}
    message = (
        "energy_model must be an energy, got PlainEnergy, which has no config, no sample_shape, .*"
        r"EnergyModel.*`\.energy` has shape \(B,\), low = likely"
    )
    with pytest.raises(ValueError, match=message):
        kind(**{**parts, "energy_model": PlainEnergy()})
    whole = kind(**parts)
    with pytest.raises(ValueError, match=message):
        whole.energy_model = PlainEnergy()
    assert whole.energy_model is parts["energy_model"]


@pytest.mark.parametrize("score", ["energy", "gradient_norm"])
def test_an_energys_output_is_checked(score):
    scorer = quiet(EnergyScoringPipeline(PlainOutput(MLPEnergyConfig())))
    with pytest.raises(ValueError, match=r"one number per sample, shape \(4,\), got Tensor from PlainOutput"):
        scorer(torch.zeros(4, 2), score=score)


def test_numpy_numbers_are_numbers(scorer, tiny_pipeline, digits, tmp_path):
    calibration = scorer.calibrate(digits, target_fpr=np.float32(0.25), batch_size=np.int64(16), seed=np.uint8(3))
    scorer.save_pretrained(tmp_path)
    assert EnergyScoringPipeline.from_pretrained(tmp_path).calibration == calibration
    assert scorer(digits, batch_size=np.int16(7)).is_ood.any()
    images = [tiny_pipeline(np.int64(2), np.int64(4), generator=torch.Generator().manual_seed(0), output_type="pt")]
    images.append(tiny_pipeline(2, 4, generator=torch.Generator().manual_seed(0), output_type="pt"))
    assert torch.equal(images[0].images, images[1].images)
    for value in (True, np.bool_(True), "0.1", None):
        with pytest.raises(ValueError, match="target_fpr must be a number between 0 and 1"):
            scorer.calibrate(digits, target_fpr=value)
    for value in (-1, 2**64, 0.5, True):
        with pytest.raises(ValueError, match="seed must be a whole number from 0"):
            scorer.calibrate(digits, seed=value)


def test_splits_are_distinguished_from_an_image(scorer):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": [1]})})
    with pytest.raises(ValueError, match=r"got a DatasetDict of \['train'\]; give one of them"):
        scorer(splits)
