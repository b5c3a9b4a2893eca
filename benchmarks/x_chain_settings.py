"""What the x-chain does to the samples of a Dual-MCMC Teaching model, for settings other than those of its training.

    python benchmarks/x_chain_settings.py --data fashion_mnist --model outputs/dual-mcmc-fashion-mnist \
        --set noise_std=0.000001 --set "step_size=2.0 noise_std=0.003" --num-steps 0 3 10

The same latents throughout. Beside: the generator's samples with noise of the size that the chain adds in all,
``noise_std sqrt(num_steps)``, and no chain: what of the chain's effect is its noise. ``--mixed-precision bf16`` shows
what autocast does to the same samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from changes import SHIPPED, split_change
from measured_data import DATA, MeasuredData
from torch import Tensor
from tqdm.auto import tqdm

from hf_ebm import DualMCMCPipeline

MOST_HELD_OUT = 500  # images whose energies are compared with those of odd ones


def sampling_settings(title: str, config: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a ``--set``, none of `SHIPPED`.

    Raises:
        ValueError: If one is no number of the scheduler's `config`.
    """
    settings = {}
    for key, text in (pair.split("=", 1) for pair in split_change(title)):
        if not isinstance(config.get(key), float):
            known = sorted(name for name, value in config.items() if isinstance(value, float))
            raise ValueError(f"--set must name a number of the scheduler's, {known}, got {key!r}.")
        settings[key] = float(text)
    return settings


def with_noise(images: Tensor, std: float) -> Tensor:
    """Images in [-1, 1], (N, C, H, W), with Gaussian noise of seed 1, clamped."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + std * noise).clamp(-1.0, 1.0)


def main() -> None:
    """Print one line for each setting and number of steps."""
    parser = argparse.ArgumentParser(description="Samples after the x-chain, for several settings of it.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a Dual-MCMC Teaching model")
    parser.add_argument("--data", choices=sorted(DATA), default="fashion_mnist")
    parser.add_argument("--dataset", help="folder or Hub id of the data; default: the recipe's")
    parser.add_argument("--set", action="append", default=[], help="of the x-chain: key=value, several in quotes")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[0, 10], help="of the chain (default: 0 10)")
    parser.add_argument("--num-images", type=int, default=1000, help="samples of each (default: %(default)s)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no", help="of generator and energy")
    parser.add_argument("--features", type=Path, help="folder of the classifier; default: outputs/quality-DATA")
    options = parser.parse_args()

    pipe = DualMCMCPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    shipped = pipe.scheduler
    try:
        rows = {title: sampling_settings(title, shipped.config) for title in (SHIPPED, *options.set)}
    except ValueError as error:
        parser.error(str(error))
    folder = options.features or Path(f"outputs/quality-{options.data}")
    data = MeasuredData.open(DATA[options.data], options.dataset, folder, "cpu")

    def draw(num_steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.mixed_precision == "bf16"):
            images = pipe(
                options.num_images, num_inference_steps=num_steps, generator=generator, output_type="pt"
            ).images
        return images.float()

    alone = draw(0)
    print(f"{data.extractor.name}\n")
    print("| x-chain | steps | Frechet distance | root mean square change |\n|---|---|---|---|")
    for title, settings in tqdm(rows.items(), "settings"):
        pipe.scheduler = type(shipped).from_config(shipped.config, **settings)
        for num_steps in options.num_steps:
            images = draw(num_steps) if num_steps else alone
            change = (images - alone).square().mean().sqrt().item()
            tqdm.write(f"| {title} | {num_steps} | {data.frechet_distance(images):.2f} | {change:.4f} |")
    std = shipped.config["noise_std"] * max(options.num_steps) ** 0.5
    images = with_noise(alone, std)
    change = (images - alone).square().mean().sqrt().item()
    aurocs = data.odd_aurocs(pipe, MOST_HELD_OUT)
    print(f"| none, noise of {std:.4f} | 0 | {data.frechet_distance(images):.2f} | {change:.4f} |\n")
    mean = statistics.fmean(aurocs.values())
    print(f"AUROC of the energy, mean of the embedded odd sets: {mean:.3f}; noise: {aurocs['noise']:.3f}")


if __name__ == "__main__":
    main()
