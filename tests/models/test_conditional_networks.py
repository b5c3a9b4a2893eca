"""Generators and inference models with a label: the null class, unconditional networks as before, invalid input."""

import json

import pytest
import torch
from reloading import reload_bit_exact
from torch.testing import assert_close

from hf_ebm import (
    ConvInferenceModel,
    MLPGeneratorModel,
    MLPInferenceModel,
    MLPLatentGeneratorModel,
    MLPPairInferenceModel,
    PairInferenceModel,
    ResNetGeneratorModel,
    UNetGeneratorModel,
)
from hf_ebm.models.class_labels import ClassEmbedding
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

K, B = 3, 4
IMAGE = {"image_size": 8, "num_channels": 1}
SMALL_UNET = {"base_channels": 8, "channel_multipliers": (1, 2), "layers_per_block": 1, "attention_resolutions": ()}
CONVOLUTIONS = IMAGE | {"latent_dim": 2, "block_out_channels": (8, 6)}


def image():
    return torch.randn(B, 1, 8, 8)


def vector(dim=2):
    return torch.randn(B, dim)


NETWORKS = {  # class, its arguments, the arguments of forward
    "unet": (UNetGeneratorModel, IMAGE | SMALL_UNET | {"latent_dim": 2}, lambda: (image(), 1, vector())),
    "mlp": (MLPGeneratorModel, {"hidden_dims": (8, 6)}, lambda: (vector(), 1, vector())),
    "resnet": (ResNetGeneratorModel, CONVOLUTIONS, lambda: (vector(),)),
    "mlp latent": (MLPLatentGeneratorModel, {"hidden_dims": (8, 6)}, lambda: (vector(),)),
    "pair": (
        PairInferenceModel,
        IMAGE | {"latent_dim": 2, "block_out_channels": (8, 6)},
        lambda: (image(), image(), 1),
    ),
    "conv": (ConvInferenceModel, IMAGE | {"latent_dim": 2, "block_out_channels": (8, 6)}, lambda: (image(),)),
    "mlp inference": (MLPInferenceModel, {"hidden_dims": (8, 6)}, lambda: (vector(),)),
    "mlp pair": (MLPPairInferenceModel, {"hidden_dims": (8, 6)}, lambda: (vector(), vector(), 1)),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


def make(name, **settings):
    torch.manual_seed(0)
    cls, arguments, inputs = NETWORKS[name]
    model = cls(**arguments, **settings)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), inputs()


@EACH
def test_label_matters_and_none_is_the_null_class(name):
    model, inputs = make(name, num_classes=K)
    by_label = [model(*inputs, class_labels=y, return_dict=False)[0] for y in range(K)]
    null = model(*inputs, return_dict=False)[0]
    for i, output in enumerate([*by_label, null]):
        for other in [*by_label, null][:i]:
            assert not torch.allclose(output, other, atol=1e-4)
    mixed = model(*inputs, class_labels=torch.tensor([2, -1, 0, -1]), return_dict=False)[0]
    assert_close(mixed, torch.stack([by_label[2][0], null[1], by_label[0][2], null[3]]))


@EACH
def test_the_embedding_is_all_that_is_added(name):
    """A class whose embedding is zero gives the unconditional network's output; so the null class can be learned."""
    plain, inputs = make(name)
    model, _ = make(name, num_classes=K)
    assert set(model.state_dict()) - set(plain.state_dict()) == {"class_embedding.weight"}
    assert model.class_embedding.weight.shape[0] == K + 1
    state = plain.state_dict() | {"class_embedding.weight": torch.zeros_like(model.class_embedding.weight)}
    model.load_state_dict(state)
    for labels in (None, 0, torch.tensor([0, 1, 2, -1])):
        got = model(*inputs, class_labels=labels, return_dict=False)
        assert_close(got, plain(*inputs, return_dict=False))


@EACH
def test_unconditional_files_are_unchanged(name, tmp_path):
    model, _ = make(name)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not {"num_classes", "class_prior", "class_names"} & saved.keys()
    assert type(model).from_pretrained(tmp_path).config.num_classes == 0


@EACH
def test_reload(name, tmp_path):
    generates = "Generator" in NETWORKS[name][0].__name__
    classes = {"class_prior": [0.5, 0.25, 0.25], "class_names": ["a", "b", "c"]} if generates else {}
    model, inputs = make(name, num_classes=K, **classes)
    again = reload_bit_exact(model, tmp_path, variant=None)
    assert {key: again.config[key] for key in ("num_classes", *classes)} == {"num_classes": K, **classes}
    labels = torch.tensor([0, 1, 2, -1])
    assert torch.equal(again(*inputs, class_labels=labels)[0], model(*inputs, class_labels=labels)[0])


def test_embedding():
    embedding = ClassEmbedding(2, 5, std=0.1)
    weight = embedding.weight
    assert_close(embedding(torch.tensor([1, -1, 0])), torch.stack([weight[1], weight[2], weight[0]]))
    assert ClassEmbedding(1000, 50, std=0.1).weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_embedding_starts_as_large_as_that_of_the_latent():
    model = ResNetGeneratorModel(image_size=32, latent_dim=64, block_out_channels=(64, 8, 8), num_classes=500)
    latent = (model.linear_in(torch.randn(100, 64)) - model.linear_in.bias).std()
    assert_close(model.class_embedding.weight.std(), latent, rtol=0.05, atol=0)


@EACH
def test_refuses_labels(name):
    model, inputs = make(name, num_classes=K)
    for labels, message in ((K, "got 3"), (torch.zeros(2, dtype=torch.long), "shape"), (torch.zeros(B), "float32")):
        with pytest.raises(ValueError, match=f"class_labels.*{message}"):
            model(*inputs, class_labels=labels)
    with pytest.raises(ValueError, match="class_labels must be None for an unconditional model"):
        make(name)[0](*inputs, class_labels=0)
    with pytest.raises(ValueError, match="num_classes"):
        make(name, num_classes=-1)


def test_refuses_descriptions_of_classes():
    for settings, message in (
        ({"class_prior": [1.0, 0.0]}, "class_prior must have one entry"),
        ({"class_prior": [1.0, 1.0, 0.0]}, "class_prior must be frequencies"),
        ({"class_names": ["a", "b"]}, "class_names must have one entry"),
        ({"class_names": ["a", "b", "a"]}, "class_names must be different"),
    ):
        with pytest.raises(ValueError, match=message):
            make("mlp", num_classes=K, **settings)


# --- presets ----------------------------------------------------------------------------------------------------------

CLASSES = {"num_classes": 2, "class_prior": (0.25, 0.75), "class_names": ("cat", "dog")}


@pytest.mark.parametrize("preset", ["digits", "toy"])
@pytest.mark.parametrize("method", ["ddaebm", "dual_mcmc"])
def test_presets_with_classes(preset, method):
    if method == "ddaebm":
        settings = ddaebm_model_settings(preset, **CLASSES)
        models, tau = build_ddaebm_models(settings), 1.0
    else:
        settings = dual_mcmc_model_settings(preset, **CLASSES, energy_temperature=1e-6)
        models, tau = build_dual_mcmc_models(settings), 1e-6
    json.dumps(settings)
    generator_model, energy_model, _ = models
    assert [model.config.num_classes for model in models] == [2, 2, 2]
    assert list(generator_model.config.class_prior) == list(energy_model.config.class_prior) == [0.25, 0.75]
    assert list(generator_model.config.class_names) == list(energy_model.config.id2label.values()) == ["cat", "dog"]
    assert energy_model.config.energy_temperature == tau
    assert energy_model.eval()(torch.randn(B, *energy_model.sample_shape), 0, class_labels=1).logits.shape == (B, 2)


def test_presets_without_classes_name_none():
    for settings in (ddaebm_model_settings("digits"), dual_mcmc_model_settings("digits")):
        for part in ("generator", "energy", "inference"):
            assert not any("class" in key or key == "id2label" for key in settings[part])


def test_preset_with_an_energy_without_class_scores():
    overrides = {"energy": {"class_scores": False}}
    models = build_dual_mcmc_models(dual_mcmc_model_settings("digits", overrides=overrides, num_classes=2))
    assert models[1].class_scores is None and models[0].class_embedding is not None


def test_presets_refuse():
    with pytest.raises(ValueError, match="energy_temperature must be"):
        dual_mcmc_model_settings("digits", num_classes=2)
    with pytest.raises(ValueError, match="num_classes must be the same in all networks, got 3 of the generator and 2"):
        ddaebm_model_settings("digits", num_classes=2, overrides={"generator": {"num_classes": 3}})
    with pytest.raises(ValueError, match="class_prior must have one entry"):
        ddaebm_model_settings("digits", num_classes=3, class_prior=[1.0])
