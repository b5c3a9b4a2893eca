"""How far apart images may be for a DDAEBM's ``E(x, 0)`` to compare them: the reach of its first denoising step.

    python benchmarks/energy_reach.py --model outputs/ddaebm-fashion-mnist --id zalando-datasets/fashion_mnist \
        --ood ylecun/mnist

Of E(., 0) the training sees ``p(x | x_1) ~ exp(-E(x, 0)) q(x_1 | x)`` alone. Where another image x' explains x_1 worse
by many more nats, ``log q(x_1 | x) - log q(x_1 | x')``, than energies differ by, its energy could be anything.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from hf_ebm import DDAEBMPipeline
from hf_ebm.diffusion import DiffusionCoefficients
from hf_ebm.run_padding import find_padding
from hf_ebm.scoring.energy import compute_energies
from hf_ebm.scoring.metrics import auroc
from hf_ebm.scoring.ood_evaluation import load_images


def explained_better(x: Tensor, other: Tensor, q: DiffusionCoefficients, generator: torch.Generator) -> Tensor:
    """``log q(x_1 | x) - log q(x_1 | x')`` in nats for ``x_1 ~ q(x_1 | x)``, shape (N,).

    Args:
        x: Images, shape (N, ...).
        other: Others, one for each, the same shape.
        q: The chain.
        generator: Of x_1's noise.
    """
    first = torch.zeros(len(x), dtype=torch.long)
    x_1 = q.q_step(x, first, torch.randn(x.shape, generator=generator))
    return q.log_q_step(x_1, x, first) - q.log_q_step(x_1, other, first)


def nearest_other(x: Tensor) -> Tensor:
    """The nearest other image of the same set to each, by squared distance, shape (N, ...)."""
    distances = torch.cdist(x.flatten(1), x.flatten(1))
    return x[distances.fill_diagonal_(torch.inf).argmin(dim=1)]


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description="How far apart images may be for E(x, 0) to compare them.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a DDAEBM")
    parser.add_argument("--id", required=True, help="data set it was trained on, name[:config][@split]")
    parser.add_argument("--ood", required=True, help="another one")
    parser.add_argument("--max-images", type=int, default=400, help="of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipeline = DDAEBMPipeline.from_pretrained(options.model)
    q, shape = pipeline.coefficients, pipeline.sample_shape
    loading = (shape, "test", None, options.max_images, options.seed, find_padding(options.model, None))
    inside, outside = (load_images(name, *loading)[0] for name in (options.id, options.ood))
    number = min(len(inside), len(outside))
    inside, outside = inside[:number], outside[:number]
    random = torch.Generator().manual_seed(options.seed)
    others = {
        "any other": inside[torch.arange(number).roll(1)],
        "the nearest other": nearest_other(inside),
        "one of --ood": outside,
    }
    energies = [
        [compute_energies(pipeline.energy_model, x, t, 256) for x in (inside, outside)] for t in range(q.num_timesteps)
    ]
    record = {
        "num_images": number,
        "energy_std": energies[0][0].std().item(),
        "mean_energy_difference": (energies[0][1].mean() - energies[0][0].mean()).item(),
        "explained_better_median_nats": {
            name: explained_better(inside, other, q, random).median().item() for name, other in others.items()
        },
        "auroc_of_clean_images_by_noise_level": [auroc(*pair) for pair in energies],
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
