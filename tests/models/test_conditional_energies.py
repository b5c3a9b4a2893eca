"""Energies with a label: the formulas, unconditional energies as before, image classification, invalid input."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from hf_ebm import (
    MLPEnergyConfig,
    MLPEnergyModel,
    ResNetEnergyConfig,
    ResNetEnergyModel,
    UNetEnergyConfig,
    UNetEnergyModel,
)
from hf_ebm.models.class_scores import ClassScores, conditional_energy
from hf_ebm.models.energy import energy_of
from hf_ebm.models.eval_copy import eval_copy

K = 3
UNET = {"image_size": 8, "num_channels": 1, "base_channels": 8, "channel_multipliers": (1, 2), "layers_per_block": 1}
RESNET = {"image_size": 8, "num_channels": 1, "block_out_channels": (8, 12), "num_downsamples": 1}
MLP = {"data_dim": 2, "hidden_dims": (16, 12), "num_frequencies": 4}


def unet(**settings):
    return UNetEnergyModel(UNetEnergyConfig(**UNET | {"patch_size": 2, "attention_resolutions": (4,)} | settings))


def resnet(**settings):
    return ResNetEnergyModel(ResNetEnergyConfig(**RESNET, **settings))


def mlp(**settings):
    return MLPEnergyModel(MLPEnergyConfig(**MLP, **settings))


def randomised(model):
    """The model in eval mode with weights that are nowhere at their start."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(model, size=4):
    return torch.randn(size, *model.sample_shape)


KINDS = pytest.mark.parametrize("make", [unet, resnet, mlp])


# --- formulas -------------------------------------------------------------------------------------------------------


@KINDS
def test_energies_of_all_classes_and_their_marginal(make):
    """exp(-E / tau) of the marginal is the sum over the classes; p(y | x) follows from the energies and is softmax."""
    tau = 0.7
    model = randomised(make(num_classes=K, energy_temperature=tau)).double()
    x = batch(model).double()
    joint = torch.stack([model(x, 0, class_labels=y).energy for y in range(K)], dim=1)
    output = model(x, 0)
    assert output.logits.shape == (4, K) and output.energy.shape == (4,)
    assert_close(output.energy, -tau * (-joint / tau).logsumexp(1))
    assert_close(output.logits.softmax(1), ((output.energy[:, None] - joint) / tau).exp())
    mixed = model(x, 0, class_labels=torch.tensor([2, -1, 0, -1], dtype=torch.int32))
    assert_close(mixed.energy, torch.stack([joint[0, 2], output.energy[1], joint[2, 0], output.energy[3]]))
    assert_close(mixed.logits, output.logits)
    assert_close(energy_of(model, x, 0, class_labels=[2, 2, 2, 2]), joint[:, 2])


@KINDS
def test_base_energy_and_temperature(make):
    """E + tau l_y is the same for every label and every tau: the base energy."""
    bases = []
    for tau in (1.0, 1e-2):
        torch.manual_seed(0)
        model = randomised(make(num_classes=K, energy_temperature=tau))
        x = batch(model)
        for y in range(K):
            output = model(x, 0, class_labels=y)
            bases.append(output.energy + tau * output.logits[:, y])
    for base in bases[1:]:
        assert_close(base, bases[0])


def test_features_are_those_named():
    """phi: the U-Net's middle block averaged, the residual network's last average, the MLP's last hidden layer."""
    seen = {}
    for name, model, layer in (
        ("unet", unet(num_classes=K), lambda m: m.unet.mid_block),
        ("resnet", resnet(num_classes=K, class_layer_norm=False, class_grid=1), lambda m: m.blocks[-1]),
        ("grid", resnet(num_classes=K, class_layer_norm=False), lambda m: m.blocks[-1]),
        ("mlp", mlp(num_classes=K), lambda m: m.mlp.hidden[-1]),
    ):
        randomised(model)
        layer(model).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
        logits = model(batch(model), 0).logits
        phi = {
            "unet": lambda h: h.mean((2, 3)),
            "resnet": lambda h: F.relu(h).mean((2, 3)),
            "grid": lambda h: F.relu(h).unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)).flatten(1),
            "mlp": F.relu,
        }[name](seen[name])
        scores = model.class_scores
        assert_close(logits, phi @ scores.weight.T + scores.bias)


@KINDS
def test_gradients_against_finite_differences(make):
    """First and second derivatives: chains need the one, the gradient penalty both."""
    # attention computes in part in float32
    plain = {"attention_resolutions": (), "mid_attention": False} if make is unet else {}
    model = randomised(make(num_classes=K, energy_temperature=0.5, **plain)).double()
    x = batch(model, 1).double()

    def energy_along(shift):
        return model(x + shift * direction, 0, class_labels=1).energy

    direction = torch.randn_like(x)
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(energy_along(zero), zero, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, zero, allow_unused=True)
    h = 1e-5
    assert_close(slope, ((energy_along(h) - energy_along(-h)) / (2 * h)).squeeze(), rtol=1e-6, atol=1e-7)
    if make is not resnet:  # piecewise linear but for the layer norm
        h = 1e-4
        second = (energy_along(h) - 2 * energy_along(0) + energy_along(-h)) / h**2
        assert_close(curvature, second.squeeze(), rtol=1e-4, atol=1e-4)


def test_conditional_energy_by_hand():
    base, logits = torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    energy = conditional_energy(base, logits, torch.tensor([1, -1]), 0.1)
    assert_close(energy, torch.tensor([0.7, 2.0 - 0.1 * (1.0 + torch.tensor(2.0).log())]))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_layer_norm_is_independent_of_the_features_scale(scale):
    scores, phi = ClassScores(16, K, layer_norm=True), torch.randn(5, 16)
    randomised(scores)
    expected = ((phi - phi.mean(1, keepdim=True)) / phi.std(1, correction=0, keepdim=True)) * scores.gain
    assert_close(scores(scale * phi), expected @ scores.weight.T + scores.bias, rtol=2e-2, atol=1e-2)


def test_scores_are_float32():
    model = mlp(num_classes=K).bfloat16()
    x = torch.randn(2, 2, dtype=torch.bfloat16)
    assert model(x).logits.dtype == model(x, class_labels=0).energy.dtype == torch.float32
    model = resnet(num_classes=K)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch(model)).logits.dtype == torch.float32


# --- spectral norm, starts, copies ----------------------------------------------------------------------------------


def test_class_scores_have_no_spectral_norm():
    model = resnet(num_classes=K)
    assert parametrize.is_parametrized(model.head) and not parametrize.is_parametrized(model.class_scores)
    assert not any(parametrize.is_parametrized(module) for module in unet(num_classes=K).modules())


@pytest.mark.parametrize("class_grid", [0, 5])
def test_the_grid_of_the_class_scores_fits_the_features(class_grid):
    with pytest.raises(ValueError, match=r"class_grid must be from 1 to 4, the height of the last features, got"):
        resnet(num_classes=K, class_grid=class_grid)


@KINDS
def test_training_starts_from_the_base_energy_and_uniform_classes(make):
    torch.manual_seed(0)
    plain = make().eval()
    torch.manual_seed(0)
    model = make(num_classes=K).eval()
    x = batch(model)
    assert_close(model(x, 1).energy, plain(x, 1).energy - torch.tensor(float(K)).log())
    assert_close(model(x, 1, class_labels=2).energy, plain(x, 1).energy)
    assert_close(model(x, 1).logits.softmax(1), torch.full((4, K), 1 / K))


@KINDS
def test_copies_for_sampling_and_chains_give_the_same(make):
    model = randomised(make(num_classes=K))
    x = batch(model)
    expected = model(x, 0, class_labels=1)
    copy = eval_copy(model)(x, 0, class_labels=1)
    assert_close(copy.energy, expected.energy)
    assert_close(copy.logits, expected.logits)
    with model.chain():
        assert_close(model(x, 0, class_labels=1).energy, expected.energy)


def test_energy_without_class_scores_ignores_the_label():
    model, x = resnet(num_classes=K, class_scores=False).eval(), torch.randn(2, 1, 8, 8)
    assert model.state_dict().keys() == resnet().state_dict().keys()
    output = model(x, class_labels=torch.tensor([0, 2]))
    assert output.logits is None and torch.equal(output.energy, model(x).energy)
    with pytest.raises(ValueError, match="class_labels"):
        model(x, class_labels=K)


# --- unconditional energies are as before ---------------------------------------------------------------------------

MLP_KEYS = {
    "features.frequencies",
    *(f"mlp.hidden.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")),
    *(f"mlp.{name}" for name in ("shift", "scale", "out.weight", "out.bias")),
}
NORMED = ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v")
RESNET_KEYS = {f"head.{part}" for part in NORMED} | {
    f"blocks.{i}.{name}.{part}" for i in (0, 1) for name in ("conv1", "conv2", "shortcut") for part in NORMED
}


def test_unconditional_state_dicts_are_unchanged():
    assert set(mlp().state_dict()) == MLP_KEYS
    assert set(resnet().state_dict()) == RESNET_KEYS
    model = unet()
    assert set(model.state_dict()) == {f"unet.{key}" for key in UNet2DModel(**dict(model.unet.config)).state_dict()}
    added = {f"class_scores.{name}" for name in ("weight", "bias")}
    assert set(mlp(num_classes=K).state_dict()) == MLP_KEYS | added
    assert set(unet(num_classes=K).state_dict()) == set(model.state_dict()) | added


def test_unconditional_energies_are_unchanged():
    """By the formulas of before, bit for bit, through diffusers' own forward."""
    model = randomised(unet(patch_size=1))
    x, t = batch(model), torch.tensor([0, 1, 2, 3])
    predicted = UNet2DModel.forward(model.unet, x, t).sample
    assert torch.equal(model(x, t).energy, 0.5 * (x - predicted).square().flatten(1).sum(1))
    model = resnet().eval()
    hidden = x
    for block in model.blocks:
        hidden = block(hidden)
    assert torch.equal(model(x).energy, model.head(F.relu(hidden).mean((2, 3))).squeeze(1))
    model, x = mlp(), torch.randn(4, 2)
    hidden = model.mlp.hidden[0](model.features(x)) * model.mlp.scale[t] + model.mlp.shift[t]
    u = model.mlp.out(F.relu(model.mlp.hidden[1](F.relu(hidden))))
    assert torch.equal(model(x, t).energy, 0.5 * u.square().sum(1))
    assert model(x, t).keys() == {"energy"}


@KINDS
def test_unconditional_config_files_are_unchanged(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    own = type(model.config).__annotations__.keys() - {"class_layer_norm", "class_grid"}
    assert saved.keys() == own | {"architectures", "dtype", "model_type", "transformers_version"}
    assert AutoConfig.from_pretrained(tmp_path).num_classes == 0


# --- saving, classification -----------------------------------------------------------------------------------------


@KINDS
def test_reload(make, tmp_path):
    names = {0: "zero", 1: "one", 2: "two"}
    settings = {"class_prior": [0.5, 0.25, 0.25], "energy_temperature": 0.25, "pseudo_label_centres": [[0.5, -1.0]] * 3}
    model = randomised(make(num_classes=K, id2label=names, **settings))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    x = batch(model)
    assert torch.equal(again(x, 0, class_labels=1).energy, model(x, 0, class_labels=1).energy)
    config = again.config
    assert (config.num_classes, config.num_labels, config.id2label) == (K, K, names)
    assert config.label2id == {"zero": 0, "one": 1, "two": 2}
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_number_of_labels(num_classes):
    config = UNetEnergyConfig(num_classes=num_classes)
    again = UNetEnergyConfig.from_dict(json.loads(config.to_json_string()))
    for one in (config, again):
        assert one.num_labels == num_classes and one.id2label == {i: f"LABEL_{i}" for i in range(num_classes)}
    named = UNetEnergyConfig(num_classes=2, label2id={"cat": 0, "dog": 1})
    assert named.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("make", [unet, resnet])
def test_image_classification(make, tmp_path, caplog):
    import PIL.Image

    model = randomised(make(num_classes=K, id2label={0: "zero", 1: "one", 2: "two"}))
    model.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is type(model)
    picture = PIL.Image.effect_noise((8, 8), 90.0)
    classify = pipeline("image-classification", model=str(tmp_path))
    found = {row["label"]: row["score"] for row in classify(picture)}
    x = classify.image_processor(picture)["pixel_values"]
    expected = model(x).logits.softmax(1)[0].tolist()
    assert found == pytest.approx(dict(zip(("zero", "one", "two"), expected, strict=True)), abs=1e-6)
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("settings", [{}, {"num_classes": K, "class_scores": False}])
def test_image_classification_needs_class_scores(settings, tmp_path):
    unet(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be an energy with class scores to classify images, got num_classes"):
        pipeline("image-classification", model=str(tmp_path))


# --- invalid input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_labels", "message"),
    [
        (3, "from 0 to 2.*got 3"),
        (-2, "got -2"),
        (torch.tensor([0, 1, 2, 7]), "got 7"),
        (torch.tensor([0, 1]), r"shape \(4,\).*got shape \(2,\)"),
        (torch.tensor([[0, 1, 2, 0]]), "got shape"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "got a tensor of torch.float32"),
        (torch.tensor([True, False, True, True]), "torch.bool"),
        (1.0, "got 1.0"),
        (["cat"], "got .'cat'."),
    ],
)
def test_refuses_labels(class_labels, message):
    model = mlp(num_classes=K)
    with pytest.raises(ValueError, match=f"class_labels.*{message}"):
        model(torch.randn(4, 2), 0, class_labels=class_labels)


@KINDS
def test_unconditional_energies_refuse_labels(make):
    model = make()
    with pytest.raises(ValueError, match=r"class_labels must be None for an unconditional model.*num_classes=0"):
        model(batch(model), 0, class_labels=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"num_classes": 3, "class_prior": [0.5, 0.5]}, "class_prior must have one entry for each"),
        ({"num_classes": 2, "class_prior": [0.5, 0.6]}, "class_prior must be frequencies"),
        ({"num_classes": 2, "class_prior": [1.5, -0.5]}, "class_prior must be frequencies"),
        ({"class_prior": [1.0]}, "class_prior"),
        ({"num_classes": 2, "energy_temperature": 0.0}, "energy_temperature"),
        ({"num_classes": 3, "id2label": {0: "a", 1: "b"}}, "id2label must map 0..2"),
        ({"num_classes": 2, "id2label": {0: "a", 1: "a"}}, "class_names must be different"),
        (
            {"num_classes": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}},
            "label2id must be the inverse",
        ),
        ({"num_classes": 3, "num_labels": 4}, "num_labels must be num_classes=3"),
        ({"num_labels": 3}, "num_classes must be the number of labels"),
        ({"num_classes": 2, "pseudo_label_centres": [[1.0]]}, "pseudo_label_centres"),
        ({"num_classes": 2, "pseudo_label_centres": [[1.0], [1.0, 2.0]]}, "pseudo_label_centres"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNetEnergyConfig(**settings)
