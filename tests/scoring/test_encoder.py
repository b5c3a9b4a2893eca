"""Image encoders: which features are taken, the scores by definition, exact p-values, files, and bad input."""

import dataclasses
import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTForImageClassification, ViTImageProcessorPil, ViTModel

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.evaluation.bulk_scoring import ScoringSettings
from hf_ebm.evaluation.bulk_scoring import run as score_in_bulk
from hf_ebm.evaluation.ood import score_sets
from hf_ebm.models.mlp_energy import MLPEnergyConfig, MLPEnergyModel
from hf_ebm.scoring.calibration import FILE_NAME, REFERENCE_FILE, Calibration
from hf_ebm.scoring.encoder import ImageEncoder
from hf_ebm.scoring.scores import SCORES, Fitted, Moments

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
SCORES_WITH_ENCODER = ("encoder", "density_encoder")


def processor(size=16, **settings):
    return ViTImageProcessorPil(size={"height": size, "width": size}, **settings)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=16, **VIT)).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture
def scorer(tiny_pipeline):
    pipe = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def digits():
    return load_digits("train")[0][:50], load_digits("test")[0][:60]


@pytest.fixture
def calibrated(scorer, vit_folder, digits):
    scorer.image_encoder = str(vit_folder)
    scorer.calibrate(digits[1][:40], target_fpr=0.1, reference=digits[0])
    return scorer


class Mean(nn.Module):
    """The mean of each channel, and of its square, through a convolution of three channels."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(1)
        self.convolution, self.dropout = nn.Conv2d(channels, 4, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.convolution(x)).flatten(2).mean(dim=2)


def images(number=5, channels=1, seed=0):
    return torch.rand(number, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pooled_output_of_a_transformers_model(vit_folder):
    model, x = ViTModel.from_pretrained(vit_folder).eval(), images()
    pixels = processor()(
        images=[((one[0] + 1) * 127.5).round().byte()[..., None].expand(-1, -1, 3).numpy() for one in x],
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = F.normalize(model(**pixels).pooler_output, dim=1)
    for encoder in (ImageEncoder.load(str(vit_folder)), ImageEncoder(model, processor())):
        assert_close(encoder(x), expected)
        assert_close(encoder(x).norm(dim=1), torch.ones(5))
        assert encoder.id is None and encoder.name == vit_folder.name and encoder.revision is None
        assert str(vit_folder.parent) not in json.dumps(encoder.describe())
    assert_close(ImageEncoder(model, processor())(x.expand(-1, 3, -1, -1)), expected)  # gray is repeated


def test_the_class_token_where_the_checkpoint_has_no_pooler(tmp_path):
    ViTForImageClassification(ViTConfig(image_size=16, **VIT)).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    first, again = (ImageEncoder.load(str(tmp_path)) for _ in range(2))
    assert first.made_up and first.sha256 == again.sha256  # the pooler is random each time, and not used
    x = images()
    with torch.no_grad():
        token = first.module(first.prepare(x)).last_hidden_state[:, 0]
    assert_close(first(x), F.normalize(token, dim=1))
    assert torch.equal(first(x), again(x))


def test_pooling_in_its_order():
    encoder = ImageEncoder(ViTModel(ViTConfig(image_size=16, **VIT)), processor())
    no_token = ImageEncoder(ResNetModel(ResNetConfig(**RESNET)), processor())
    tokens, maps, pooled, embeds = (
        torch.randn(2, 7, 3),
        torch.randn(2, 3, 4, 4),
        torch.randn(2, 3, 1, 1),
        torch.ones(2, 3),
    )
    every = SimpleNamespace(image_embeds=embeds, pooler_output=pooled, last_hidden_state=tokens)
    assert encoder.pool(every) is not None and torch.equal(encoder.pool(every), embeds)
    assert torch.equal(encoder.pool(SimpleNamespace(pooler_output=pooled, last_hidden_state=tokens)), pooled.flatten(1))
    hidden = SimpleNamespace(last_hidden_state=tokens)
    assert torch.equal(encoder.pool(hidden), tokens[:, 0])
    assert torch.equal(no_token.pool(hidden), tokens.mean(dim=1))
    assert_close(no_token.pool(SimpleNamespace(last_hidden_state=maps)), maps.mean(dim=(2, 3)))
    assert torch.equal(encoder.pool(embeds), embeds)
    with pytest.raises(ValueError, match="ViTModel gives neither pooled features nor hidden states"):
        encoder.pool(SimpleNamespace(logits=embeds))


def test_a_convolutional_model():
    model = ResNetModel(ResNetConfig(**RESNET)).eval()
    encoder, x = ImageEncoder(model, processor(32)), images()
    with torch.no_grad():
        assert_close(encoder(x), F.normalize(model(encoder.prepare(x)).pooler_output.flatten(1), dim=1))
    assert encoder.prepare(x).shape == (5, 3, 32, 32)
    gray = ImageEncoder(
        ResNetModel(ResNetConfig(num_channels=1, **RESNET)), processor(32, image_mean=[0.5], image_std=[0.5])
    )
    assert gray.prepare(x).shape == (5, 1, 32, 32) and gray(x).shape == (5, 8)


def test_any_module_gets_images_in_the_models_range():
    module, x = Mean().train(), images()
    encoder = ImageEncoder(module)
    module.eval()
    expected = F.normalize(module(x.expand(-1, 3, -1, -1)), dim=1).detach()
    module.train()
    assert_close(encoder(x), expected)  # in eval mode, gray repeated, and the module as it was
    assert module.training and encoder(x).dtype == torch.float32 and not encoder(x).requires_grad
    assert ImageEncoder(Mean(1))(x).shape == (5, 4)
    assert encoder.describe() == {"name": "Mean", "id": None, "revision": None, "sha256": encoder.sha256}


def test_scores_are_the_distances_to_the_bank_and_a_standardised_sum(calibrated, digits):
    fitted, x = calibrated.calibration.fitted, digits[1][40:]
    statistics = calibrated.compute_statistics(x, calibrated.needed("density_encoder"))
    features, bank = statistics["encoder_features"].double(), fitted.reference["encoder_features"]
    assert bank.shape == (50, 16) and bank.dtype == torch.float16
    distances = (features[:, None] - bank.double()).norm(dim=2).sort(dim=1).values[:, :5].mean(dim=1)
    assert_close(calibrated(x, score="encoder").scores, distances)
    inside = (bank.double()[:, None] - bank.double()).norm(dim=2).sort(dim=1).values[:, 1:6].mean(dim=1)
    points = fitted.neighbours(SCORES["density"].statistics).points
    of_density = (points[:, None] - points).norm(dim=2).sort(dim=1).values[:, 1:6].mean(dim=1)
    density = calibrated(x).scores
    expected = (density - of_density.mean()) / of_density.std() + (distances - inside.mean()) / inside.std()
    result = calibrated(x, score="density_encoder")
    assert_close(result.scores, expected)
    larger = (distances - inside.mean()) / inside.std() > (density - of_density.mean()) / of_density.std()
    assert ["the encoder's features" in text for text in result.contributions] == larger.tolist()
    assert calibrated(x[:2], score="encoder").contributions is None


def test_every_route_gives_the_same_scores(calibrated, digits, vit_folder, tmp_path):
    train, test = digits
    expected = {score: calibrated(test, score=score) for score in SCORES_WITH_ENCODER}
    calibrated.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*encoder*"))  # its weights are not saved
    again = EnergyScoringPipeline.from_pretrained(tmp_path / "model", image_encoder=str(vit_folder))
    shared = EnergyScoringPipeline.from_pipe(calibrated)
    assert shared.image_encoder == calibrated.image_encoder and shared.calibration is calibrated.calibration
    model = ViTModel.from_pretrained(vit_folder)
    given = EnergyScoringPipeline.from_pretrained(
        tmp_path / "model", image_encoder=model, feature_extractor=processor()
    )
    for pipe in (again, shared, given):
        pipe.set_progress_bar_config(disable=True)
        for score, result in expected.items():
            found = pipe(test, score=score, batch_size=16)
            assert_close(found.scores, result.scores, rtol=1e-4, atol=1e-4)
            assert_close(found.p_values, result.p_values, rtol=0, atol=1.01 / 41)
    sets = {"in_distribution": test * 2 - 1}
    by_sets = score_sets(calibrated, list(SCORES_WITH_ENCODER), train * 2 - 1, sets)
    for score, result in expected.items():
        assert_close(by_sets[score]["in_distribution"], result.scores, rtol=1e-4, atol=1e-4)
    settings = {"model": str(tmp_path / "model"), "dataset": "digits", "split": "test", "num_workers": 0}
    settings |= {"output": tmp_path / "bulk", "score": "density_encoder", "encoder": str(vit_folder)}
    assert score_in_bulk(ScoringSettings(**settings))["scored"] == 360
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "bulk" / "scores")["score"].to_pylist()[:60]
    assert_close(torch.tensor(rows).double(), expected["density_encoder"].scores, rtol=1e-3, atol=1e-3)


def test_the_encoder_of_the_hub_is_fetched_when_a_score_needs_it(calibrated, digits, tmp_path, monkeypatch):
    """By the id and commit of the calibration, once, and not before."""
    model = calibrated.find_encoder().module
    saved = {**calibrated.calibration.encoder, "id": "user/vit", "name": "user/vit", "revision": "abc"}
    calibrated.calibration = dataclasses.replace(calibrated.calibration, encoder=saved)
    calibrated.save_pretrained(tmp_path)
    fetched = []
    monkeypatch.setattr(
        ImageEncoder,
        "load",
        lambda *arguments: fetched.append(arguments) or ImageEncoder(model, processor()),
    )
    again = EnergyScoringPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.calibration.encoder == saved and again.image_encoder is None
    again(digits[1][:3])
    assert not fetched
    for _ in range(2):
        scores = again(digits[1][:3], score="encoder").scores
    assert_close(scores, calibrated(digits[1][:3], score="encoder").scores)
    assert fetched == [("user/vit", "abc")]


def statistics_of(number, random):
    """Statistics of samples of continuous distributions, with features of length one."""
    return {
        "energy": torch.randn(number, generator=random),
        "clean_energies": torch.randn(number, 2, generator=random),
        "gradient_norms": torch.randn(number, 2, generator=random).exp(),
        "compressed_size": 100.0 + torch.randn(number, generator=random),
        "encoder_features": F.normalize(torch.randn(number, 4, generator=random), dim=1),
    }


@pytest.mark.parametrize("own_reference", [False, True])
def test_p_values_are_exact_on_average_over_calibration_sets(own_reference):
    """P(p <= a) = floor(a (n + 1)) / (n + 1), as in test_density.py: the sum is standardised by the reference alone."""
    random, target, sets, new, number = torch.Generator().manual_seed(0), 0.1, 60, 300, 60
    rates = dict.fromkeys(SCORES_WITH_ENCODER, 0.0)
    for seed in range(sets):
        reference = statistics_of(40, random) if own_reference else None
        calibration = Calibration.fit(statistics_of(number, random), target, seed, reference=reference)
        samples = statistics_of(new, random)
        for score in rates:
            p_values = calibration.p_values(score, SCORES[score].function(samples, calibration.fitted))
            rates[score] += float((p_values <= target).double().mean()) / sets
    for score, rate in rates.items():
        n = calibration.num_calibrated(score)
        assert n == (number if own_reference else number // 2)
        expected = math.floor(target * (n + 1) + 1e-9) / (n + 1)
        assert abs(rate - expected) < 3.5 * math.sqrt(target * (1 - target) * (1 / n + 1 / new) / sets), score


def test_what_density_encoder_is_standardised_by_is_not_of_calibration_samples():
    random = torch.Generator().manual_seed(0)
    held_out, reference = statistics_of(60, random), statistics_of(40, random)
    calibration = Calibration.fit(held_out, 0.1, reference=reference)
    other = Calibration.fit(statistics_of(60, random), 0.1, reference=reference)
    for name in ("density", "encoder"):
        assert calibration.statistics[name] == other.statistics[name]
    fitted = Fitted(reference=calibration.density_reference)
    assert fitted.distance_moments()["density"] == calibration.statistics["density"]
    assert isinstance(calibration.statistics["encoder"], Moments)


def test_of_a_large_reference_more_features_than_statistics_are_kept(scorer, vit_folder, digits, monkeypatch):
    for name, value in (("MAX_DENSITY_REFERENCE", 20), ("MAX_BANK", 45)):
        monkeypatch.setattr(f"hf_ebm.pipelines.pipeline_energy_scoring.{name}", value)
    scorer.image_encoder = vit_folder
    reference = scorer.calibrate(digits[1], target_fpr=0.1, reference=digits[0]).density_reference
    assert {name: len(values) for name, values in reference.items()} == {
        **dict.fromkeys(reference, 20),
        "encoder_features": 45,
    }


def test_saved_files(calibrated, tmp_path):
    calibration = calibrated.calibration
    calibration.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded == calibration and loaded.encoder == calibrated.find_encoder().describe()
    assert torch.equal(loaded.density_reference["encoder_features"], calibration.density_reference["encoder_features"])
    assert (tmp_path / REFERENCE_FILE).stat().st_size < 20_000
    values = json.loads((tmp_path / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps({**values, "encoder": {"id": "user/vit"}}))
    with pytest.raises(ValueError, match="encoder must be null or have the keys name, id, revision and sha256"):
        Calibration.load(tmp_path)


def test_an_encoder_with_other_weights_is_refused(calibrated, vit_folder, digits, tmp_path):
    calibrated.save_pretrained(tmp_path)
    other = ViTModel.from_pretrained(vit_folder)
    with torch.no_grad():
        other.layernorm.bias[0] += 1e-3
    pipe = EnergyScoringPipeline.from_pretrained(tmp_path, image_encoder=other, feature_extractor=processor())
    for score in SCORES_WITH_ENCODER:
        with pytest.raises(
            ValueError, match=r"image_encoder vit\w* has other weights \(SHA-256 .* than the encoder of the"
        ):
            pipe(digits[1][:2], score=score)
    assert pipe(digits[1][:2]).is_ood.shape == (2,)  # the other scores need none


@pytest.mark.parametrize("score", SCORES_WITH_ENCODER)
def test_scores_without_an_encoder(scorer, calibrated, digits, tmp_path, score):
    calibrated.save_pretrained(tmp_path)
    local = EnergyScoringPipeline.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"need image_encoder= \(--encoder\).* made with vit\w*, which is not on the Hub"
    ):
        local(digits[1][:2], score=score)
    fresh = EnergyScoringPipeline(scorer.energy_model, scorer.scheduler)
    fresh.set_progress_bar_config(disable=True)
    assert score not in fresh.available_scores
    with pytest.raises(ValueError, match=r"cannot be computed .*'density_encoder' images and image_encoder="):
        fresh(digits[1][:2], score=score)
    fresh.calibrate(digits[1][:40], target_fpr=0.1)
    with pytest.raises(ValueError, match=rf"'{score}' was not calibrated.*needs, image_encoder= \(--encoder\)"):
        fresh(digits[1][:2], score=score)


def test_calibrating_again_without_the_encoder_warns(calibrated, digits, caplog):
    calibrated.image_encoder = None
    with caplog.at_level(logging.WARNING):
        calibration = calibrated.calibrate(digits[1][:40], target_fpr=0.1)
    assert calibration.encoder is None and not {*SCORES_WITH_ENCODER} & {*calibration.reference}
    assert "the new calibration has no scores with an encoder" in caplog.text


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, None].expand(-1, 4, -1)


class Nan(nn.Module):
    def forward(self, x):
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, x.flatten(1))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(49, 3)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            Tokens(),
            r"Tokens must give features of shape \(40, D\) for 40 images, got \(40, 4, 64\); .*mean over tokens",
        ),
        (Nan(), r"encoder_features is NaN for 1 of 40 images \(the first: number 1, .*check .*weights"),
        (Fixed(), r"Fixed cannot take the images that the energy takes, of shape \(1, 8, 8\): .*feature_extractor"),
        (
            lambda x: x,
            "image_encoder must be a torch.nn.Module or the id or folder of a transformers model, got function",
        ),
        ("/no/such/folder", r"image_encoder '/no/such/folder' cannot be loaded \(.*give the Hub id or folder"),
    ],
)
def test_bad_encoders(scorer, digits, encoder, message):
    scorer.image_encoder = encoder
    with pytest.raises(ValueError, match=message):
        scorer.calibrate(digits[1][:40], target_fpr=0.1)


def test_an_image_processor_of_another_size_or_none(scorer, vit_folder, digits):
    scorer.image_encoder = ViTModel.from_pretrained(vit_folder)
    with pytest.raises(ValueError, match=r"transformers model and needs its image processor: give feature_extractor="):
        scorer.calibrate(digits[1][:40], target_fpr=0.1)
    scorer.feature_extractor = processor(24)
    message = (
        r"vit\w* cannot take the images that its feature_extractor ViTImage\w+ makes, of shape \(3, 24, 24\): .*16"
    )
    with pytest.raises(ValueError, match=message):
        scorer.calibrate(digits[1][:40], target_fpr=0.1)


@pytest.mark.parametrize(
    ("reference", "message"),
    [(5, "'encoder' is left out: reference must have more than 5 samples"), (0, "features that differ between images")],
)
def test_a_bank_that_is_too_small_or_constant(reference, message, caplog):
    random = torch.Generator().manual_seed(0)
    given = statistics_of(reference or 30, random)
    if not reference:
        given["encoder_features"] = torch.ones(30, 4) / 2
    calibration = Calibration.fit(statistics_of(40, random), 0.1, reference=given)
    assert message in caplog.text
    assert (
        not {*SCORES_WITH_ENCODER} & {*calibration.reference}
        and "encoder_features" not in calibration.density_reference
    )


def test_vectors_have_no_encoder():
    with pytest.raises(ValueError, match="image_encoder must be None for a model of vectors"):
        EnergyScoringPipeline(MLPEnergyModel(MLPEnergyConfig()), image_encoder=Mean())
