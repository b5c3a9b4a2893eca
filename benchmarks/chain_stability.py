"""Compare the energy's curvature with the stability limit of the x-chain's step, for each checkpoint of a run.

    python benchmarks/chain_stability.py --run outputs/dual-mcmc-cifar10-small --num-images 30000

On a quadratic energy of curvature a, a Langevin step of size s multiplies the distance from the
minimum by ``1 - s^2 a / 2``: above ``a = 4 / s^2`` each step moves further away, and the chain
*raises* the energy. Training rewards that, since it lowers the energy of data relative to the
chains' samples, and the energy diverges. The curvature is the largest one at each sample of the
generator, computed by power iteration on differences of gradients: a network with ReLUs is
piecewise linear, so its second derivative is not informative.

A long chain with noise n ends with the variance ``n^2 / (s^2 a (1 - s^2 a / 4))``, which is at least n^2 for any a.
Where data vary by less than n, no curvature gives the chain their variance, and training raises it indefinitely. With
--num-images the smallest standard deviation of the data over all directions is computed as well: n below it is safe.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import draw_rows, load_training_data
from hf_ebm.hub.model_card import SETTINGS
from hf_ebm.langevin import energy_and_grad, langevin_chain
from hf_ebm.training.checkpointing import list_checkpoints, read_state
from hf_ebm.training.config import read_yaml
from hf_ebm.training.stability import largest_curvature
from hf_ebm.training.train_dual_mcmc import METHOD
from hf_ebm.utils.files import path_option


def quietest_std(images: Tensor) -> float:
    """The smallest standard deviation over all directions of images, shape (N, ...), N above their dimensions."""
    flat = images.flatten(1)
    return float(torch.linalg.eigvalsh(flat.T.cov()).clamp(min=0.0)[0].sqrt())


def load_images(settings: dict[str, Any], sample_shape: tuple[int, ...], number: int) -> Tensor:
    """Load `number` random training images of a run, shape (N, C, H, W).

    Raises:
        ValueError: If there are not more than an image has values.
    """
    names = {"split": "dataset_split", "config_name": "dataset_config", "revision": "dataset_revision"}
    given = {name: settings[key] for name, key in names.items()}
    given["image_column"] = settings["image_column"]
    given["image_processor"] = EBMImageProcessor.for_model(sample_shape, settings["padding"])
    dataset = load_training_data(settings["dataset"], sample_shape, **given)
    rows = draw_rows(len(dataset), number, settings["seed"])  # type: ignore[arg-type]
    if len(rows) <= math.prod(sample_shape):
        raise ValueError(
            f"--num-images must be more than the {math.prod(sample_shape)} values of one, got {len(rows)}."
        )
    return torch.stack([dataset[row][0] for row in rows])


def load_networks(checkpoint: Path) -> tuple[Any, Any]:
    """Load the generator and the energy of a checkpoint, the energy in eval mode."""
    generator_model, energy_model, _ = METHOD.build_models(read_state(checkpoint)["models"])
    saved = [load_file(path) for path in sorted(checkpoint.glob("model*.safetensors"))]
    for model in (generator_model, energy_model):
        (weights,) = [tensors for tensors in saved if tensors.keys() == model.state_dict().keys()]
        model.load_state_dict(weights)
    return generator_model, energy_model.eval()


def main() -> None:
    """Print the results of each checkpoint as a line of JSON."""
    parser = argparse.ArgumentParser(
        description="The energy's curvature against the stability limit of the x-chain's step."
    )
    parser.add_argument("--run", required=True, type=path_option, help="run folder of train_dual_mcmc.py")
    parser.add_argument("--num-samples", type=int, default=64, help="samples of the generator (default: %(default)s)")
    parser.add_argument(
        "--distance", type=float, default=0.02, help="Euclidean distance of the finite differences of gradients"
    )
    parser.add_argument("--iterations", type=int, default=15, help="of the power iteration (default: %(default)s)")
    parser.add_argument(
        "--num-images", type=int, help="training images for the smallest standard deviation of the data"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = read_yaml(options.run / SETTINGS)
    step_size, noise_std, num_steps = (settings[f"x_{name}"] for name in ("step_size", "noise_std", "num_steps"))
    checkpoints = list_checkpoints(options.run / "checkpoints")
    if not checkpoints:
        parser.error(f"--run {options.run} has no checkpoints; train with, for example, checkpoint_every=500.")
    if options.num_images:
        images = load_images(settings, load_networks(checkpoints[-1])[0].sample_shape, options.num_images)
        print(json.dumps({"x_noise_std": noise_std, "quietest_std_of_the_data": round(quietest_std(images), 5)}))
    for checkpoint in checkpoints:
        torch.manual_seed(options.seed)
        generator_model, energy_model = load_networks(checkpoint)
        with torch.no_grad():
            x = generator_model(torch.randn(options.num_samples, generator_model.config.latent_dim)).sample

        def evaluate(x: Tensor, model: Any = energy_model) -> tuple[Tensor, Tensor]:
            return energy_and_grad(lambda x: model(x).energy, x)

        random = torch.Generator().manual_seed(options.seed)
        with energy_model.chain():
            curvature = largest_curvature(lambda x: evaluate(x)[1], x, options.distance, options.iterations, random)
            revised = langevin_chain(x, lambda x: evaluate(x)[1], num_steps, step_size, noise_std)
            energies = [evaluate(images)[0].mean().item() for images in (x, revised)]
        record = {
            "curvature": curvature.mean().item(),
            "largest_curvature": curvature.max().item(),
            "limit": 4 / step_size**2,
            "energy_before_the_chain": energies[0],
            "energy_after_the_chain": energies[1],
        }
        rounded = {name: float(f"{value:.4g}") for name, value in record.items()}
        print(json.dumps({"step": read_state(checkpoint)["step"], **rounded}))


if __name__ == "__main__":
    main()
