"""What the z-chain does to reconstructions of held-out images, for settings other than those of its training.

    python benchmarks/z_chain_settings.py --model outputs/dual-mcmc-fashion-mnist \
        --dataset zalando-datasets/fashion_mnist --set "step_size=0.05 noise_std=0.05" --num-steps 5 10 30

The mean squared error per value, from the same latents throughout. A step that is too large for how much the generator
changes an image, ``s^2 a > 4`` for a posterior energy of curvature a, leads away from the image.
"""

from __future__ import annotations

import argparse

import torch
from changes import SHIPPED
from tqdm.auto import tqdm
from x_chain_settings import sampling_settings

from hf_ebm import DualMCMCPipeline
from hf_ebm.run_padding import find_padding
from hf_ebm.scoring.ood_evaluation import load_images


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description="Reconstructions after the z-chain, for several settings of it.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a Dual-MCMC Teaching model")
    parser.add_argument("--dataset", required=True, help="held-out images of its data, name[:config][@split]")
    parser.add_argument("--set", action="append", default=[], help="of the z-chain: key=value, several in quotes")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[5, 10, 30], help="(default: 5 10 30)")
    parser.add_argument("--max-images", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the chains")
    options = parser.parse_args()

    pipe = DualMCMCPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    shipped = pipe.latent_scheduler
    loading = (pipe.sample_shape, "test", None, options.max_images, options.seed, find_padding(options.model, None))
    try:
        rows = {title: sampling_settings(title, shipped.config) for title in (SHIPPED, *options.set)}
        images, _ = load_images(options.dataset, *loading)
    except ValueError as error:
        parser.error(str(error))
    shown = " | ".join(f"after {number} steps" for number in options.num_steps)
    print(f"| z-chain | inference model alone | {shown} |\n|---|---|{'---|' * len(options.num_steps)}")
    for title, settings in tqdm(rows.items(), "settings"):
        pipe.latent_scheduler = type(shipped).from_config(shipped.config, **settings)
        errors = []
        for number in (0, *options.num_steps):
            random = torch.Generator().manual_seed(options.seed)
            found = pipe.reconstruct(images, number, generator=random, output_type="pt").images
            errors.append((found - images).square().mean().item())
        tqdm.write(f"| {title} | " + " | ".join(f"{error:.4f}" for error in errors) + " |")


if __name__ == "__main__":
    main()
