"""Feature extractors: hashes of weights, any transformers model, the standard Inception."""

import shutil

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.evaluation.feature_extractors import (
    FeatureStatistics,
    load_digit_classifier,
    load_extractor,
    module_extractor,
    pool,
    to_bytes,
    weights_sha256,
)


def test_the_hash_is_of_names_shapes_and_values():
    module = nn.Linear(3, 2)
    before = weights_sha256(module)
    assert before == weights_sha256(module)
    with torch.no_grad():
        module.weight[1, 2] += 1e-3
    after = weights_sha256(module)
    renamed = nn.ModuleDict({"a": module})
    assert len({before, after, weights_sha256(renamed), weights_sha256(module.double())}) == 4


def test_digits():
    images = to_model_range(load_digits("test")[0])[:7]
    extractor = load_extractor("digits")
    assert_close(extractor(images), load_digit_classifier().features(images).detach())
    assert not extractor.is_standard_inception and len(extractor.weights_sha256) == 64
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(3, 8, 8\)"):
        extractor(images.expand(-1, 3, -1, -1))


def test_any_module_and_what_it_may_not_do():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5)).train()
    extractor = module_extractor(module, "mine")
    images = to_model_range(load_digits("test")[0])[:3]
    assert_close(extractor(images), extractor(images))  # eval mode: no dropout
    assert extractor(images).shape == (3, 5) and not extractor(images).requires_grad
    with pytest.raises(ValueError, match=r"mine must give features of shape \(3, D\)"):
        module_extractor(nn.Identity(), "mine")(images)
    with pytest.raises(ValueError, match="the features of 3 of 3 images are not finite"):
        FeatureStatistics.of([images * torch.inf], module_extractor(nn.Flatten(), "mine"))


def test_bytes_as_a_file_would_hold_them():
    images = torch.tensor([-1.5, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    assert to_bytes(images).shape == (1, 3, 2, 2)
    assert to_bytes(images)[0, 2].flatten().tolist() == [0, 0, 128, 255]
    with pytest.raises(ValueError, match="got 4"):
        to_bytes(torch.zeros(1, 4, 2, 2))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny ViT with its image processor, in a folder."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_transformers_model_by_path(vit):
    from transformers import ViTModel

    images = to_model_range(load_digits("test")[0])[:5]
    extractor = load_extractor(str(vit))
    features = extractor(images)
    assert features.shape == (5, 16) and "ViTModel" in extractor.name and not extractor.is_standard_inception
    model = ViTModel.from_pretrained(vit).eval()
    assert extractor.weights_sha256 == weights_sha256(model)
    pixels = torch.nn.functional.interpolate(images, size=16, mode="bilinear").expand(-1, 3, -1, -1)
    with torch.no_grad():  # resized and rounded a little differently
        assert_close(features, model(pixels).pooler_output, atol=0.05, rtol=0.05)
    assert (features - features.mean(0)).abs().max() > 0.01


@pytest.fixture
def vit_classifier(vit, tmp_path):
    """A checkpoint of a classifier, which holds no pooler."""
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig.from_pretrained(vit)).save_pretrained(tmp_path)
    shutil.copy(vit / "preprocessor_config.json", tmp_path)
    return tmp_path


def test_a_classifiers_checkpoint_is_used_without_the_random_pooler(vit_classifier):
    from transformers import ViTModel

    images = to_model_range(load_digits("test")[0])[:3]
    first, again = (load_extractor(str(vit_classifier)) for _ in range(2))
    assert first.weights_sha256 == again.weights_sha256 and first.name == again.name
    assert torch.equal(first(images), again(images))
    assert "mean of the hidden state" in first.name and str(vit_classifier) not in first.name
    model = ViTModel.from_pretrained(vit_classifier, add_pooling_layer=False).eval()
    assert first.weights_sha256 == weights_sha256(model)


def test_a_checkpoint_that_lacks_other_weights_is_refused(vit_classifier):
    from safetensors.torch import load_file, save_file

    weights = load_file(vit_classifier / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, vit_classifier / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its weights, .*layernorm.weight"):
        load_extractor(str(vit_classifier))


def test_pooling():
    class Output:
        def __init__(self, **kwargs):
            self.__dict__.update(kwargs)

    hidden = torch.randn(2, 7, 3)
    assert_close(pool(Output(pooler_output=None, last_hidden_state=hidden), "m"), hidden.mean(1))
    maps = torch.randn(2, 3, 4, 5)
    assert_close(pool(Output(last_hidden_state=maps), "m"), maps.mean((2, 3)))
    assert pool(Output(pooler_output=torch.randn(2, 3, 1, 1)), "m").shape == (2, 3)
    with pytest.raises(ValueError, match="'m' gives neither"):
        pool(Output(energy=1), "m")


def test_a_name_that_is_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"{tmp_path}.*cannot be loaded"):
        load_extractor(str(tmp_path))


def test_inception_without_its_package_is_an_error_with_the_install_command(monkeypatch):
    import torchmetrics.image.fid

    monkeypatch.setattr(torchmetrics.image.fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ImportError, match=r"pip install torch-fidelity.*another feature extractor"):
        load_extractor("inception")


def test_inception_gets_bytes_and_gives_logits_without_bias(monkeypatch):
    """A stand-in with the interface of torch-fidelity's extractor, whose weights are not available."""
    import torchmetrics.image.fid

    class StandIn(nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            self.fc = nn.Linear(12, 5)
            self.use_antialias = True

        def forward(self, x):
            assert not self.use_antialias  # the original's resizing
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            return x.flatten(1).float()

    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", StandIn)
    extractor = load_extractor("inception")
    features = extractor(torch.ones(2, 1, 2, 2))
    assert extractor.is_standard_inception and torch.equal(features, torch.full((2, 12), 255.0))
    logits = extractor.logits(torch.zeros(2, 12))
    assert torch.equal(logits, torch.zeros(2, 5)) and not logits.requires_grad
