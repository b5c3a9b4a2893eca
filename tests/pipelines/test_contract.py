"""The behaviour that every pipeline shares with diffusers' own.

A new pipeline joins by a fixture of tiny networks and an entry in `NAMES`. What only one method can do is in its
own tests, and other devices than the CPU are in `tests/on_second_device`.
"""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

import hf_ebm.models  # registers the energies
from hf_ebm import (
    DDAEBMPipeline,
    DualMCMCPipeline,
    EnergyScoringPipeline,
    MLPEnergyConfig,
    ResNetEnergyConfig,
    ResNetEnergyModel,
    ResNetGeneratorModel,
    UNetEnergyConfig,
    UNetEnergyModel,
    UNetGeneratorModel,
)
from hf_ebm.utils.torch_utils import execution_device

GENERATING = {"tiny_pipeline": DDAEBMPipeline, "tiny_dual_mcmc_pipeline": DualMCMCPipeline}  # fixtures
NAMES = {**GENERATING, "energy_scoring": EnergyScoringPipeline}
IMAGES = torch.linspace(0, 1, 6 * 64).reshape(6, 1, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def energy_scoring(tiny_dual_mcmc_pipeline):
    return quiet(EnergyScoringPipeline.from_pipe(tiny_dual_mcmc_pipeline))


@pytest.fixture(params=GENERATING)
def pipe(request):
    """A pipeline that generates."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=NAMES)
def any_pipe(request):
    return request.getfixturevalue(request.param)


def networks(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def samples(pipe, seed=0, **options):
    """The last states of two chains, as float32 tensors in the models' own range."""
    return pipe(**{"batch_size": 2, "generator": seeded(seed), "output_type": "latent", **options}).images


def results(pipe):
    """What the networks compute in each task, by name."""
    output = pipe.score(IMAGES, all_timesteps=True)
    found = {"score": output.energies, "levels": output.energies_all_timesteps}
    if isinstance(pipe, EnergyScoringPipeline):
        return {**found, **{name: pipe(IMAGES, score=name).scores for name in ("gradient_norm", "reconstruction")}}
    if isinstance(pipe, DDAEBMPipeline):
        return {**found, "samples": samples(pipe, num_correction_steps=1)}
    options = {"generator": seeded(), "output_type": "latent"}
    found["reconstructions"] = pipe.reconstruct(IMAGES, **options).images
    found["filled in"] = pipe.inpaint(IMAGES, torch.eye(8), **options).images
    found["frames"] = pipe.interpolate(IMAGES[:1], IMAGES[1:2], 2, 1, **options).images
    return {**found, "samples": samples(pipe)}


def assert_same(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], msg=lambda message, name=name: f"{name}: {message}", **tolerances)


# Signatures


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((cls, DiffusionPipeline) for cls in NAMES.values()),
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


@pytest.mark.parametrize("cls", GENERATING.values())
def test_calls_take_the_arguments_of_diffusers(cls):
    parameters = inspect.signature(cls.__call__).parameters
    names = {"batch_size", "generator", "num_inference_steps", "output_type", "return_dict"}
    names |= {"callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in names)


# Saving, loading, sharing


@pytest.mark.parametrize("options", [{}, {"variant": "ema", "max_shard_size": "4KB"}])
def test_saved_and_loaded_it_computes_the_same(any_pipe, options, tmp_path):
    any_pipe.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if options else {}
    if options:
        assert list((tmp_path / "energy_model").glob("model.ema-*-of-*.safetensors"))
    if isinstance(any_pipe, EnergyScoringPipeline):
        variant["load_reconstruction"] = True
    loaded = quiet(type(any_pipe).from_pretrained(tmp_path, **variant))
    assert {name: type(part) for name, part in loaded.components.items()} == {
        name: type(part) for name, part in any_pipe.components.items()
    }
    assert_same(results(loaded), results(any_pipe), rtol=1e-5, atol=1e-6)


def test_loading_a_dtype_a_device_map_and_a_missing_variant(any_pipe, tmp_path):
    any_pipe.save_pretrained(tmp_path)
    found = type(any_pipe).from_pretrained(
        tmp_path, dtype={"energy_model": torch.bfloat16, "default": torch.float16}, device_map="cpu"
    )
    for name, network in networks(found).items():
        assert network.dtype == (torch.bfloat16 if name == "energy_model" else torch.float16)
        assert network.device == torch.device("cpu")
    assert quiet(found).score(IMAGES).energies.isfinite().all()
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        type(any_pipe).from_pretrained(tmp_path, variant="fp16")


def test_what_is_optional_can_be_left_out(any_pipe, tmp_path):
    any_pipe.save_pretrained(tmp_path / "whole")
    missing = dict.fromkeys(any_pipe._optional_components)
    bare = quiet(type(any_pipe).from_pretrained(tmp_path / "whole", **missing))
    bare.image_processor = None  # which loading replaces by the models' default
    bare.save_pretrained(tmp_path / "bare")
    again = quiet(type(any_pipe).from_pretrained(tmp_path / "bare"))
    assert {name for name, part in again.components.items() if part is None} == {*missing}
    if isinstance(any_pipe, EnergyScoringPipeline):
        assert_close(again(IMAGES).energies, any_pipe.score(IMAGES).energies)
        return
    for options in ({}, {"num_inference_steps": 4}):
        assert samples(again, **options).isfinite().all()
    with pytest.raises(ValueError, match="score needs energy_model"):
        again.score(IMAGES)
    with pytest.raises(ValueError, match="energy_model must be an energy, got NoneType"):
        EnergyScoringPipeline.from_pipe(again)
    message = rf"holds a {type(again).__name__} without \['energy_model'\], which EnergyScoringPipeline needs"
    with pytest.raises(ValueError, match=message):
        EnergyScoringPipeline.from_pretrained(tmp_path / "bare")


def test_saving_pushes_only_when_asked(any_pipe, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        "hf_ebm.pipelines.pipeline_base.push_pipeline", lambda pipe, repo_id, **options: pushed.append(repo_id)
    )
    any_pipe.save_pretrained(tmp_path / "a", True)
    any_pipe.save_pretrained(tmp_path / "a", push_to_hub=False, repo_id="alice/x")  # as diffusers' scripts do
    assert pushed == []
    any_pipe.save_pretrained(tmp_path / "name", push_to_hub=True)
    any_pipe.save_pretrained(tmp_path / "name", push_to_hub=True, repo_id="alice/x")
    any_pipe.push_to_hub("alice/y", safe_serialization=True, subfolder="b")
    assert pushed == ["name", "alice/x", "alice/y"]
    for refused in ({"safe_serialization": False}, {"use_flashpack": True}):
        with pytest.raises(ValueError, match=f"{next(iter(refused))} must be"):
            any_pipe.save_pretrained(tmp_path / "b", **refused)
    with pytest.raises(ValueError, match="safe_serialization must be True"):
        any_pipe.push_to_hub("alice/x", safe_serialization=False)
    with pytest.raises(TypeError, match="max_shards_size"):
        any_pipe.save_pretrained(tmp_path / "b", max_shards_size="1GB")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("target", [None, EnergyScoringPipeline])
def test_from_pipe_shares_components_and_leaves_dtypes_as_they_are(any_pipe, target):
    any_pipe.generator_model.to(torch.bfloat16)
    any_pipe.inference_model.to(torch.float64)
    expected = {name: network.dtype for name, network in networks(any_pipe).items()}
    assert {*expected.values()} == {torch.bfloat16, torch.float64, torch.float32}
    cls = target or type(any_pipe)
    for options in ({}, {"dtype": None}):
        shared = cls.from_pipe(any_pipe, **options)
        for name, part in shared.components.items():
            assert part is any_pipe.components.get(name) or (cls is EnergyScoringPipeline and part is None)
        assert {name: network.dtype for name, network in networks(any_pipe).items()} == expected
    converted = cls.from_pipe(any_pipe, dtype=torch.bfloat16)
    assert converted.energy_model.dtype == torch.bfloat16


def test_auto_classes_load_the_energy(any_pipe, tmp_path):
    any_pipe.save_pretrained(tmp_path)
    where = {"subfolder": "energy_model"}
    assert type(AutoConfig.from_pretrained(tmp_path, **where)) is type(any_pipe.energy_model.config)
    energy_model = AutoModel.from_pretrained(tmp_path, **where)
    assert type(energy_model) is type(any_pipe.energy_model)
    image = PIL.Image.fromarray((IMAGES[3, 0] * 255).round().byte().numpy())
    pixels = AutoImageProcessor.from_pretrained(tmp_path, **where)(image)["pixel_values"]
    assert_close(energy_model(pixels).energy.detach(), any_pipe.score(image).energies)


def test_importing_the_models_registers_every_energy():
    for config in (MLPEnergyConfig, ResNetEnergyConfig, UNetEnergyConfig):
        assert isinstance(AutoConfig.for_model(config.model_type), config)
        assert AutoModel._model_mapping[config].__module__.startswith(hf_ebm.models.__name__)


# Where and in which precision it computes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_to_converts_every_network(any_pipe, dtype):
    expected = results(any_pipe)
    assert any_pipe.to(dtype) is any_pipe and any_pipe.to("cpu", dtype=dtype) is any_pipe
    assert any_pipe.dtype == dtype and {network.dtype for network in networks(any_pipe).values()} == {dtype}
    found = results(any_pipe)
    assert found["score"].dtype == torch.float32  # whatever the networks are
    if "samples" in found:
        assert found["samples"].dtype == torch.float32
        assert any_pipe(2, output_type="np").images.dtype == np.float32
    if dtype == torch.float64:
        assert_close(found["score"], expected["score"], rtol=1e-4, atol=1e-4)


def test_networks_of_several_dtypes_work_together(pipe):
    """A bf16 generator beside a float32 energy, and the other way round."""
    for low, high in (("generator_model", "energy_model"), ("energy_model", "generator_model")):
        pipe.components[low].to(torch.bfloat16)
        pipe.components[high].to(torch.float32)
        found = results(pipe)
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert all(value.isfinite().all() for value in found.values())


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe):
    """What ``enable_sequential_cpu_offload`` does; accelerate itself cannot do so on the device "cpu:0"."""
    for network in networks(pipe).values():
        cpu_offload(network, "cpu")


def energy_alone(pipe):
    cpu_offload(pipe.energy_model, "cpu")


def generator_alone(pipe):
    cpu_offload(pipe.generator_model, "cpu")


def device_map(pipe):
    for network in networks(pipe).values():
        dispatch_model(network, {"": "cpu"}, force_hooks=True)


@pytest.mark.parametrize("offload", [model_offload, sequential_offload, energy_alone, generator_alone, device_map])
def test_offloaded_networks_compute_the_same(any_pipe, offload):
    """Here the CPU is the device to compute on, and what waits is on ``meta`` or on the CPU."""
    expected = results(any_pipe)
    offload(any_pipe)
    assert execution_device(any_pipe.energy_model).type == execution_device(any_pipe.generator_model).type == "cpu"
    if offload in (sequential_offload, energy_alone):
        assert any_pipe.energy_model.device.type == "meta"
    assert_same(results(any_pipe), expected, rtol=1e-4, atol=1e-5)


# The call


def test_the_seed_decides_the_samples(pipe):
    assert_close(samples(pipe, 3), samples(pipe, 3), rtol=0, atol=0)
    assert not torch.equal(samples(pipe, 3), samples(pipe, 4))
    state = torch.get_rng_state()
    results(pipe)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is used only without one


def test_a_generator_per_sample(pipe):
    both = samples(pipe, generator=[seeded(1), seeded(2)])
    assert_close(both[1:], samples(pipe, batch_size=1, generator=[seeded(2)]), rtol=1e-4, atol=1e-4)


def test_output_types_hold_the_same_images(pipe):
    state = samples(pipe)
    array = samples(pipe, output_type="np")
    assert state.dtype == torch.float32 and array.dtype == np.float32
    assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), (state / 2 + 0.5).clamp(0, 1))
    pictures = samples(pipe, output_type="pil")
    assert [(picture.mode, picture.size) for picture in pictures] == 2 * [("L", (8, 8))]
    assert np.abs(np.stack(pictures) / 255 - array[..., 0]).max() <= 0.5 / 255 + 1e-6
    assert_close(samples(pipe, output_type="pt").permute(0, 2, 3, 1), torch.from_numpy(array))
    (images,) = pipe(2, generator=seeded(), output_type="np", return_dict=False)
    assert np.array_equal(images, array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_is_the_last_state_as_it_is(pipe, dtype):
    """Nothing is clamped or rescaled: what a callback sets is returned."""
    pipe.to(dtype)
    value = torch.linspace(-3, 3, 2 * 64).reshape(2, 1, 8, 8).to(dtype)
    state = samples(pipe, callback_on_step_end=lambda *_: {"x": value.clone()})
    assert state.dtype == torch.float32
    assert_close(state, value.float(), rtol=0, atol=0)


def test_a_callback_sees_and_changes_every_step(pipe):
    seen, names = [], pipe._callback_tensor_inputs

    def callback(called, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        assert called.num_timesteps == len(called.scheduler.timesteps)
        return {"x": torch.zeros_like(tensors["x"])} if step == called.num_timesteps - 1 else None

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    number = pipe.scheduler.config.num_train_timesteps
    assert samples(pipe, num_inference_steps=number, **options).abs().max() == 0
    assert [step for step, *_ in seen] == list(range(number)) and pipe.num_timesteps == number
    assert sorted(timestep for _, timestep, _ in seen) == list(range(number))
    assert all(found == sorted(names) for *_, found in seen)
    first, seen[:] = [*seen], []
    samples(pipe, **options)  # as many steps as in training
    assert seen == first
    samples(pipe, callback_on_step_end=callback)
    assert seen[-1][2] == ["x"]


def test_a_change_by_a_callback_has_an_effect_on_later_steps(pipe):
    def shift(called, step, timestep, tensors):
        return {"x": tensors["x"] + 0.5} if step == 0 else tensors

    unchanged = samples(pipe, callback_on_step_end=lambda called, step, timestep, tensors: tensors)
    assert_close(unchanged, samples(pipe), rtol=0, atol=0)
    assert not torch.allclose(samples(pipe, callback_on_step_end=shift), unchanged, atol=1e-2)


def test_a_callback_interrupts_the_loop(pipe):
    states = []

    def interrupt(called, step, timestep, tensors):
        states.append(tensors["x"])
        called._interrupt = step == 1

    state = samples(pipe, callback_on_step_end=interrupt)
    assert len(states) == 2
    assert_close(state, states[-1])
    assert_close(samples(pipe, callback_on_step_end=lambda *_: states.append(0)), samples(pipe))
    assert len(states) == 2 + pipe.num_timesteps  # the next call is whole


def test_callback_objects_of_diffusers(pipe):
    seen = []

    class Seen(PipelineCallback):
        tensor_inputs = pipe._callback_tensor_inputs[-1:]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append((step_index, pipeline.num_timesteps, list(callback_kwargs)))
            return callback_kwargs

    samples(pipe, callback_on_step_end=Seen())
    samples(pipe, callback_on_step_end=MultiPipelineCallbacks([Seen()]))
    number = pipe.scheduler.config.num_train_timesteps
    assert seen == 2 * [(step, number, Seen.tensor_inputs) for step in range(number)]


def test_progress_bar_settings(any_pipe, capfd):
    def run():
        return any_pipe(IMAGES) if isinstance(any_pipe, EnergyScoringPipeline) else samples(any_pipe)

    any_pipe.set_progress_bar_config(disable=False, desc="mine")
    run()
    assert "mine: " in capfd.readouterr().err
    quiet(any_pipe)
    run()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("training", [False, True])
def test_modes_gradients_and_weights_stay_as_they_are(any_pipe, training):
    """And do not matter: sampling and scoring are in eval mode."""
    expected = results(any_pipe)
    for network in networks(any_pipe).values():
        network.train(training)
        next(network.parameters()).requires_grad_(False)  # frozen by the user

    def state():
        parts = networks(any_pipe).values()
        modes = [module.training for network in parts for module in network.modules()]
        flags = [parameter.requires_grad for network in parts for parameter in network.parameters()]
        return modes, flags, [value.clone() for network in parts for value in network.state_dict().values()]

    before = state()
    assert_same(results(any_pipe), expected)
    after = state()
    assert after[:2] == before[:2]
    assert all(torch.equal(new, old) for new, old in zip(after[2], before[2], strict=True))


def test_a_nan_energy_is_an_error(any_pipe):
    for parameter in any_pipe.energy_model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(ValueError, match="energy is NaN for 6 of 6 images"):
        any_pipe.score(IMAGES)
    with pytest.raises(ValueError, match=r"is NaN|not finite|diverged"):
        if isinstance(any_pipe, EnergyScoringPipeline):
            any_pipe(IMAGES, score="gradient_norm")
        else:
            samples(any_pipe, **({"num_correction_steps": 1} if isinstance(any_pipe, DDAEBMPipeline) else {}))
