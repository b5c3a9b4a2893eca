"""What every pipeline inherits: diffusers' signatures, and ``from_pipe``, which leaves dtypes as they are."""

import inspect

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin
from transformers import PreTrainedModel

from hf_ebm import (
    DDAEBMPipeline,
    DualMCMCPipeline,
    EnergyScoringPipeline,
    ResNetEnergyModel,
    ResNetGeneratorModel,
    UNetEnergyModel,
    UNetGeneratorModel,
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((cls, DiffusionPipeline) for cls in (DDAEBMPipeline, DualMCMCPipeline, EnergyScoringPipeline)),
        *((cls, ModelMixin) for cls in (UNetGeneratorModel, ResNetGeneratorModel)),
        *((cls, PreTrainedModel) for cls in (UNetEnergyModel, ResNetEnergyModel)),
    ],
)
@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub", "from_pretrained", "from_pipe", "to"])
def test_arguments_have_the_order_of_the_libraries(ours, theirs, method):
    """What is passed by position means the same; our own arguments come after theirs."""
    if not hasattr(theirs, method):
        return

    def positional(cls):
        parameters = inspect.signature(getattr(cls, method)).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    expected, found = positional(theirs), positional(ours)
    # transformers' last arguments are passed on by keyword
    assert expected[: len(found)] == found[: len(expected)]
    assert len(found) >= len(expected) or theirs is PreTrainedModel


@pytest.fixture
def pipelines(tiny_pipeline, tiny_dual_mcmc_pipeline):
    return {DDAEBMPipeline: tiny_pipeline, DualMCMCPipeline: tiny_dual_mcmc_pipeline}


@pytest.mark.parametrize("source", [DDAEBMPipeline, DualMCMCPipeline])
@pytest.mark.parametrize("target", [None, EnergyScoringPipeline])
def test_from_pipe_leaves_dtypes_as_they_are(pipelines, source, target):
    pipe = pipelines[source]
    pipe.generator_model.to(torch.bfloat16)
    pipe.inference_model.to(torch.float64)
    expected = {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert set(expected.values()) == {torch.bfloat16, torch.float64, torch.float32}
    for options in ({}, {"dtype": None}):
        shared = (target or source).from_pipe(pipe, **options)
        assert shared.generator_model is pipe.generator_model
        assert {name: pipe.components[name].dtype for name in expected} == expected
    converted = (target or source).from_pipe(pipe, dtype=torch.bfloat16)
    assert converted.energy_model.dtype == torch.bfloat16


def test_networks_of_several_dtypes_work_together(pipelines):
    """A bf16 generator beside a float32 energy, and the other way round."""
    for low, high in (("generator_model", "energy_model"), ("energy_model", "generator_model")):
        for pipe in pipelines.values():
            pipe.components[low].to(torch.bfloat16)
            pipe.components[high].to(torch.float32)
        pipe = pipelines[DDAEBMPipeline]
        images = pipe(2, num_correction_steps=1, output_type="pt").images
        assert images.dtype == pipe.generator_model.dtype
        assert pipe.score(images.float()).energies.dtype == torch.float32
        pipe = pipelines[DualMCMCPipeline]
        images = pipe(2, output_type="pt").images
        assert len(pipe.reconstruct(images, output_type="pt").images) == 2


@pytest.mark.parametrize("source", [DDAEBMPipeline, DualMCMCPipeline, EnergyScoringPipeline])
def test_saving_pushes_only_when_asked(pipelines, source, tmp_path, monkeypatch):
    pipe = pipelines.get(source) or EnergyScoringPipeline.from_pipe(pipelines[DDAEBMPipeline])
    pushed = []
    monkeypatch.setattr(
        "hf_ebm.pipelines.pipeline_base.push_pipeline", lambda pipe, repo_id, **options: pushed.append(repo_id)
    )
    pipe.save_pretrained(tmp_path / "a", True)
    pipe.save_pretrained(tmp_path / "a", True, "ema", "4KB")
    assert list((tmp_path / "a" / "energy_model").glob("model.ema-*-of-*.safetensors"))
    pipe.save_pretrained(tmp_path / "a", push_to_hub=False, repo_id="alice/x")  # as diffusers' scripts do
    assert pushed == []
    pipe.save_pretrained(tmp_path / "name", push_to_hub=True)
    pipe.save_pretrained(tmp_path / "name", push_to_hub=True, repo_id="alice/x")
    assert pushed == ["name", "alice/x"]
    for refused in ({"safe_serialization": False}, {"use_flashpack": True}):
        with pytest.raises(ValueError, match=f"{next(iter(refused))} must be"):
            pipe.save_pretrained(tmp_path / "b", **refused)
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        pipe.push_to_hub("alice/x", safe_serialization=False)
    with pytest.raises(TypeError, match="max_shards_size"):
        pipe.save_pretrained(tmp_path / "b", max_shards_size="1GB")
    assert not (tmp_path / "b").exists()
