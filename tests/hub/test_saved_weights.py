"""Saving over an existing folder: every variant reloads with the weights it was saved with."""

import itertools
import json

import pytest
import torch
from safetensors import safe_open
from tiny_generator import tiny_generator

from hf_ebm import DDAEBMPipeline, ResNetEnergyConfig, ResNetEnergyModel, ResNetGeneratorModel
from hf_ebm.hub.saved_weights import weight_files, weight_patterns

PLAIN, SHARDED = {}, {"max_shard_size": "3KB"}
SAVES = list(itertools.product((None, "ema"), (PLAIN, SHARDED)))


def tiny_energy():
    return ResNetEnergyModel(ResNetEnergyConfig(image_size=8, num_channels=1, block_out_channels=(8, 8)))


def set_all(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def held_values(model):
    return {value for parameter in model.parameters() for value in parameter.flatten().tolist()}


@pytest.mark.parametrize("make", [tiny_generator, tiny_energy])
def test_every_order_of_saves_reloads(make, tmp_path):
    """After each save each variant has its own last weights, and no other file of weights is left."""
    model, expected = make(), {}
    pairs = [save for pair in itertools.product(SAVES, SAVES) for save in pair]
    for number, (variant, options) in enumerate([("ema-2", SHARDED), *pairs]):
        set_all(model, float(number))
        model.save_pretrained(tmp_path, variant=variant, **options)
        expected[variant] = float(number)
        assert (len(weight_files(tmp_path, variant)) > 1) is (options == SHARDED)
        files = {path.name: name for name in expected for path in weight_files(tmp_path, name)}
        assert {path.name for path in tmp_path.glob("*.safetensors")} == set(files)
        for name in files:
            with safe_open(tmp_path / name, framework="pt") as tensors:
                parameters = {key for key, _ in model.named_parameters()} & set(tensors.keys())
                assert all((tensors.get_tensor(key) == expected[files[name]]).all() for key in parameters)
    for variant, value in expected.items():
        assert held_values(type(model).from_pretrained(tmp_path, variant=variant)) == {value}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("sharded_variant", [None, "ema"])
@pytest.mark.parametrize("variant", [None, "ema"])
def test_a_pipeline_saved_over_a_sharded_one(tiny_pipeline, tmp_path, sharded_variant, variant):
    expected = {}
    for value, (name, options) in enumerate([(sharded_variant, {"max_shard_size": "20KB"}), (variant, {})]):
        for network in (tiny_pipeline.generator_model, tiny_pipeline.energy_model, tiny_pipeline.inference_model):
            set_all(network, float(value))
        tiny_pipeline.save_pretrained(tmp_path, variant=name, **options)
        expected[name] = float(value)
        assert len(list((tmp_path / "energy_model").glob("model*-of-*.safetensors"))) > 1 or not options
    for name, value in expected.items():
        pipe = DDAEBMPipeline.from_pretrained(tmp_path, variant=name)
        for network in (pipe.generator_model, pipe.energy_model, pipe.inference_model):
            assert held_values(network) == {value}


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    model = tiny_generator()
    set_all(model, 1.0)
    model.save_pretrained(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert held_values(ResNetGeneratorModel.from_pretrained(tmp_path)) == {1.0}


@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize("make", [tiny_generator, tiny_energy])
def test_shards_and_an_index_that_do_not_fit_are_refused(make, variant, tmp_path):
    model = make()
    model.save_pretrained(tmp_path, variant=variant, max_shard_size="3KB")
    index = next(tmp_path.glob("*.index*.json"))
    shards = weight_files(tmp_path, variant)

    def check_refused(message):
        with pytest.raises(ValueError, match=message):
            type(model).from_pretrained(tmp_path, variant=variant)
        with pytest.raises(ValueError, match=message):
            type(model).from_pretrained(tmp_path.parent, subfolder=tmp_path.name, variant=variant)

    content = index.read_text()
    for text, message in (
        ("[1", "is not a valid index of shards"),
        ("[]", "is not a valid index of shards"),
        (json.dumps({"weight_map": {"a": "../x.safetensors"}}), "must name shards beside it, got '../x.safetensors'"),
    ):
        index.write_text(text)
        check_refused(message)
    index.write_text(content)
    stem = index.name.split(".")[0]
    single = tmp_path / f"{stem}{'' if variant is None else '.' + variant}.safetensors"
    single.write_bytes(shards[0].read_bytes())
    check_refused(f"holds both {single.name} and {index.name}")
    shards[1].unlink()
    check_refused(f"names the shard {shards[1].name}, which is missing; .*, or delete the index to load {single.name}")
    single.unlink()
    check_refused(f"names the shard {shards[1].name}, which is missing; save or download the model again\\.")
    index.unlink()
    check_refused(f"is a shard without its index, {index.name}")


def test_a_pipeline_whose_variant_lost_its_shards_does_not_load_the_plain_weights(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    tiny_pipeline.save_pretrained(tmp_path, variant="ema", max_shard_size="20KB")
    shard = sorted((tmp_path / "generator_model").glob("*.ema-*-of-*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"names the shard {shard.name}, which is missing"):
        DDAEBMPipeline.from_pretrained(tmp_path, variant="ema")
    assert DDAEBMPipeline.from_pretrained(tmp_path).generator_model is not None


def test_other_formats_are_refused(tmp_path):
    model = tiny_generator()
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="use_flashpack must be False"):
        model.save_pretrained(tmp_path, use_flashpack=True)
    model.save_pretrained(tmp_path, variant="ema", max_shard_size="3KB")
    for path in weight_files(tmp_path, "ema"):
        with safe_open(path, framework="pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}


def test_weights_of_a_variant_are_not_those_of_another(tmp_path):
    names = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors", "model.bin", "other.safetensors",
    ]  # fmt: skip
    (tmp_path / "energy_model").mkdir()
    for name in names:
        (tmp_path / "energy_model" / name).touch()

    def found(variant):
        return {path.name for pattern in weight_patterns("energy_model", variant) for path in tmp_path.glob(pattern)}

    assert found(None) == set(names[:2]) and found("fp16") == set(names[2:4]) and found("bf16") == set()
