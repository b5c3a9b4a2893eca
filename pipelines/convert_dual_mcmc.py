"""Convert a checkpoint of the authors of Dual-MCMC Teaching into a pipeline, whose networks have the same outputs.

Their files hold the state dicts ``netG`` (generator), ``netE`` (an energy with our sign: low = likely) and ``netI``
(inference model); other entries, such as optimizers, are left out. Spectral norm is in torch's older form
(``weight_orig``, ``weight_u``, ``weight_v``). Widths and the number of latent dimensions are read off the tensors.

The authors state no licence of their weights.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ebm.hub.model_card import CONVERSION, write_card
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.pipelines.pipeline_dual_mcmc import DualMCMCPipeline
from hf_ebm.schedulers.scheduling_langevin import LangevinScheduler
from hf_ebm.utils.files import check_writable, expand_home, to_json, whole_folder

NETWORKS = {"netG": "generator", "netE": "energy", "netI": "inference"}
NUM_BLOCKS = {"cifar10": 3, "celeba64": 4}  # of the generator; the energy has one more
X_STEP_SIZES = {"cifar10": 0.5, "celeba64": 0.3}  # of the training's x-chain
NUM_CONVS, KERNEL_SIZES = 4, {"cifar10": 3, "celeba64": 4}  # of the inference model, and of its first convolution
SPECTRAL_NORM = {  # our names of a layer's tensors -> theirs
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}
FOREIGN = re.compile(r"GLOBAL ([\w.]+)")  # how torch.load names what it does not load
HOW_TO_SAVE = "torch.save({name: found[name] for name in ('netG', 'netE', 'netI')}, 'weights.pth')"


def convert_dual_mcmc(checkpoint: Mapping[str, Any] | str | Path, data: str) -> DualMCMCPipeline:
    """A pipeline with the networks of a checkpoint and the chains of the published training.

    Args:
        checkpoint: ``{"netG": state dict, "netE": ..., "netI": ...}``, or the file that holds it.
        data: What it was trained on: ``"cifar10"`` or ``"celeba64"``.

    Raises:
        ValueError: If the checkpoint is not one of these networks, or of other data.
        OSError: If the file cannot be read.
    """
    if data not in NUM_BLOCKS:
        raise ValueError(f"data must be one of {tuple(NUM_BLOCKS)}, got {data!r}.")
    if isinstance(checkpoint, str | Path):
        checkpoint = read_checkpoint(checkpoint)
    states = {name: check_state(name, checkpoint) for name in NETWORKS}
    check_data(states, data)
    models = build_dual_mcmc_models(dual_mcmc_model_settings(data, overrides=read_widths(states, data)))
    for name, model, names in zip(NETWORKS, models, layer_names(data), strict=True):
        expected = {their_name(key, names): value.shape for key, value in model.state_dict().items()}
        state = {key: value.float() if value.is_floating_point() else value for key, value in states[name].items()}
        if name == "netI":
            state = join_heads(state)
        check_tensors(name, state, expected)
        model.load_state_dict({key: state[their_name(key, names)] for key in model.state_dict()})
        model.eval()
    generator_model, energy_model, inference_model = models
    return DualMCMCPipeline(
        generator_model,
        LangevinScheduler(num_train_timesteps=30, step_size=X_STEP_SIZES[data], noise_std=0.001),
        energy_model,
        inference_model,
        LangevinScheduler(num_train_timesteps=10, step_size=0.1, noise_std=0.1),
    )


def convert_to_folder(checkpoint: str | Path, data: str, output: str | Path) -> Path:
    """Convert a checkpoint's file into a new pipeline folder with a model card, and return the folder.

    Raises:
        ValueError: If the checkpoint cannot be converted, or `output` exists; nothing is written then.
        OSError: If the file cannot be read, or the folder cannot be written.
    """
    checkpoint, output = Path(expand_home(checkpoint)), Path(expand_home(output))
    if output.exists() or output.is_symlink():
        raise ValueError(f"output {output} exists; choose another folder, or remove it.")
    check_writable("output", output, is_folder=True)
    pipeline = convert_dual_mcmc(checkpoint, data)
    record = {
        "method": "dual-mcmc",
        "data": data,
        "checkpoint": checkpoint.name,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "license": None,  # the authors state none
    }
    with whole_folder(output) as folder:
        pipeline.save_pretrained(folder)
        (folder / CONVERSION).write_text(to_json(record, indent=2), encoding="utf-8")
        write_card(folder)
    return output


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """The contents of a checkpoint's file, tensors and plain containers only.

    Raises:
        ValueError: If it is no file of ``torch.save``, or holds other Python objects, which could run code.
        OSError: If it cannot be read.
    """
    path = Path(expand_home(path))
    with path.open("rb"):  # raises what torch.load below would call damage
        pass
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of any class
        if isinstance(error, pickle.UnpicklingError) and (code := FOREIGN.search(str(error))):
            raise ValueError(
                f"checkpoint {path} holds Python objects ({code[1]}), which are not loaded because they can run code. "
                f"If you trust the file, load it with torch.load(..., weights_only=False) and save its weights: "
                f"{HOW_TO_SAVE}"
            ) from error
        raise ValueError(f"checkpoint {path} is no file of torch.save, or is damaged; download it again.") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"checkpoint {path} must hold a dict with {', '.join(NETWORKS)}, got {type(found).__name__}.")
    return found


def check_state(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict `name` of a checkpoint; a `ValueError` if it is missing, or no finite tensors by name."""
    if name not in checkpoint:
        found = ", ".join(map(str, list(checkpoint)[:8])) or "nothing"
        raise ValueError(
            f"checkpoint must hold the state dicts {', '.join(NETWORKS)}, as the authors' files do; it lacks {name} "
            f"and holds {found}."
        )
    state = checkpoint[name]
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoint: {name} must be a state dict, got {type(state).__name__}.")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint: {name} must map names to tensors, got {key!r}: {type(value).__name__}.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"checkpoint: {name} {key!r} holds values that are not finite; use another checkpoint.")
    return dict(state)


def check_data(states: dict[str, dict[str, Tensor]], data: str) -> None:
    """Raise a `ValueError` if the state dicts are those of networks for other data."""
    for other, number in NUM_BLOCKS.items():
        kernel = states["netI"].get("main.0.weight")
        fits = {
            "netG": f"conv{number + 2}.weight" in states["netG"],
            "netE": f"lin_{number + 2}.weight_orig" in states["netE"],
            "netI": kernel is not None and kernel.shape[-1:] == (KERNEL_SIZES[other],),
        }
        if other != data and any(fits.values()):
            names = ", ".join(name for name, found in fits.items() if found)
            raise ValueError(
                f"data must be what the checkpoint was trained on, got {data!r}: {names} of the checkpoint has the "
                f"layers of {other}; convert it with data={other}."
            )


def read_widths(states: dict[str, dict[str, Tensor]], data: str) -> dict[str, dict[str, Any]]:
    """Latent dimensions and widths by network, the overrides of `dual_mcmc_model_settings`."""

    def size(name: str, key: str, num_dims: int, dim: int = 0) -> int:
        value = states[name].get(key)
        if value is None:
            raise ValueError(f"checkpoint: {name} lacks {key!r}; it is not the authors' network for {data}.")
        if value.ndim != num_dims or not value.numel():
            raise ValueError(
                f"checkpoint: {name} {key!r} must have {num_dims} dimensions, none of size 0, got {tuple(value.shape)}."
            )
        return value.shape[dim]

    blocks = range(2, NUM_BLOCKS[data] + 2)
    generator = [size("netG", "block2.conv1.weight", 4, 1)]
    generator += [size("netG", f"block{i}.conv1.weight", 4) for i in blocks]
    energy = [size("netE", "conv_1.conv1.weight_orig", 4)]
    energy += [size("netE", f"block{i}.conv1.weight_orig", 4) for i in blocks]
    inference = [size("netI", f"main.{2 * i}.weight", 4) for i in range(NUM_CONVS)]
    return {
        "generator": {"block_out_channels": generator, "latent_dim": size("netG", "lin_1.weight", 2, 1)},
        "energy": {"block_out_channels": energy},
        "inference": {"block_out_channels": inference},
    }


def layer_names(data: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Our names of the layers -> theirs, of generator, energy and inference model."""
    number = NUM_BLOCKS[data]
    generator = {
        "linear_in": "lin_1",
        "norm_out": f"bn_{number + 2}",
        "conv_out": f"conv{number + 2}",
        **{
            f"blocks.{i}.{ours}": f"block{i + 2}.{theirs}"
            for i in range(number)
            for ours, theirs in {
                "norm1": "bn_1",
                "conv1": "conv1",
                "norm2": "bn_2",
                "conv2": "conv2",
                "shortcut": "sc",
            }.items()
        },
    }
    energy = {"head": f"lin_{number + 2}"}
    for i in range(number + 1):
        block = "conv_1" if i == 0 else f"block{i + 1}"
        energy |= {f"blocks.{i}.conv1": f"{block}.conv1", f"blocks.{i}.conv2": f"{block}.conv2"}
        energy[f"blocks.{i}.shortcut"] = f"{block}.sc"
    inference = {"conv_in": "main.0", "head": "heads"}
    inference |= {f"convs.{i}": f"main.{2 * i + 2}" for i in range(NUM_CONVS - 1)}
    return generator, energy, inference


def their_name(key: str, names: dict[str, str]) -> str:
    """The authors' name of one of our tensors."""
    layer = next(name for name in names if key.startswith(f"{name}."))
    tensor = key.removeprefix(f"{layer}.")
    return f"{names[layer]}.{SPECTRAL_NORM.get(tensor, tensor)}"


def join_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inference model's state with its heads, convolutions over all places, as one linear layer ``heads``.

    Raises:
        ValueError: If a tensor of the heads is missing.
    """
    state = dict(state)
    for tensor in ("weight", "bias"):
        keys = [f"{head}.{tensor}" for head in ("conv51", "conv52")]  # of the mean and the log-variance
        if missing := [key for key in keys if key not in state]:
            raise ValueError(f"checkpoint: netI lacks {missing[0]!r}; it is not the authors' network.")
        mean, logvar = (state.pop(key) for key in keys)
        if mean.shape != logvar.shape:
            raise ValueError(
                f"checkpoint: netI {keys[0]!r} and {keys[1]!r} must have one shape, got {tuple(mean.shape)} and "
                f"{tuple(logvar.shape)}."
            )
        state[f"heads.{tensor}"] = torch.cat([mean, logvar])
    state["heads.weight"] = state["heads.weight"].flatten(1)
    return state


def check_tensors(name: str, state: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    """Raise a `ValueError` unless a state dict has the tensors `expected`, in these shapes, and no others."""
    wrong = {
        "missing": sorted(expected.keys() - state.keys()),
        "unknown": sorted(state.keys() - expected.keys()),
        "of another shape": [key for key, shape in expected.items() if key in state and state[key].shape != shape],
    }
    if not any(wrong.values()):
        return
    found = [f"{len(keys)} {kind} (first: {keys[0]!r})" for kind, keys in wrong.items() if keys]
    shapes = wrong["of another shape"]
    detail = f", {tuple(state[shapes[0]].shape)} instead of {tuple(expected[shapes[0]])}" if shapes else ""
    raise ValueError(f"checkpoint: {name} is not the authors' network; tensors: {', '.join(found)}{detail}.")
