"""How well heat maps find a patch of another image that was pasted into a held-out one.

    python benchmarks/heat_maps.py --model outputs/ddaebm-digits --dataset digits --patch-size 4
    python benchmarks/heat_maps.py --model FOLDER --dataset zalando-datasets/fashion_mnist --patch-size 10

A random patch of one held-out image replaces a random patch of another. The pixel AUROC is that of the map over all
pixels of all images, against the mask of the pasted pixels that changed by more than 5 % of the range. The baseline is
|x - blurred x|, a 3x3 box blur, also smoothed as the maps are. Intervals are 95 % of 1,000 bootstrap resamples of the
images, the same ones for all maps, so that differences from the better baseline are paired. Maps are standardised by
training images. |x - mean x|, the distance from the mean training image, shows how much of it needs no model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.data.loading import draw_rows, load_named
from hf_ebm.scoring.maps import MAP_KINDS, MAX_MAP_REFERENCE, smooth
from hf_ebm.utils.files import to_json

CHANGED = 0.1  # of the range of 2
BASELINES = ("|x - blurred x|", "|x - blurred x|, smoothed")


def paste_patches(images: Tensor, size: int, margin: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] with a random patch of another one each, and the mask of the changed pixels (N, H, W).

    Args:
        images: Shape (N, C, H, W).
        size: Height and width of the patches.
        margin: Pixels on each side that patches keep clear of, as those of the padding.
        generator: Random number generator.
    """
    number, _, height, width = images.shape
    if not 1 <= size <= min(height, width) - 2 * margin:
        raise ValueError(f"--patch-size must be from 1 to {min(height, width) - 2 * margin}, got {size}.")
    others = (torch.arange(number) + torch.randint(1, number, (number,), generator=generator)) % number
    pasted = images.clone()
    for index, other in enumerate(others.tolist()):
        top, left, from_top, from_left = (
            int(torch.randint(margin, side - margin - size + 1, (1,), generator=generator))
            for side in (height, width, height, width)
        )
        patch = images[other, :, from_top : from_top + size, from_left : from_left + size]
        pasted[index, :, top : top + size, left : left + size] = patch
    return pasted, (pasted - images).abs().amax(dim=1) > CHANGED


def blur_difference(images: Tensor) -> Tensor:
    """``|x - blurred x|`` summed over channels, shape (N, H, W)."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    return (images - blurred).abs().sum(dim=1)


def count_ordered_pairs(maps: Tensor, masks: Tensor) -> np.ndarray:
    """In how many pairs a pixel in the mask of image i is above one outside that of image j, ties half: (N, N)."""
    inside = [one[mask].sort().values for one, mask in zip(maps, masks, strict=True)]
    positive = torch.cat(inside)
    owner = torch.repeat_interleave(torch.arange(len(maps)), torch.tensor([len(part) for part in inside]))
    columns = []
    for one, mask in zip(maps, masks, strict=True):
        negative = one[~mask].sort().values
        below = torch.searchsorted(negative, positive) + torch.searchsorted(negative, positive, right=True)
        columns.append(torch.bincount(owner, 0.5 * below.double(), minlength=len(maps)))
    return torch.stack(columns, dim=1).numpy()


def pixel_aurocs(maps: dict[str, Tensor], masks: Tensor, num_resamples: int, seed: int) -> dict[str, np.ndarray]:
    """The pixel AUROC of each map: of all images, and of each resample of them, shape (1 + num_resamples,)."""
    number = len(masks)
    random = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, number)), random.multinomial(number, [1 / number] * number, num_resamples)])
    inside = masks.flatten(1).sum(dim=1).double().numpy()
    pairs = (weights @ inside) * (weights @ (masks[0].numel() - inside))
    found = {name: count_ordered_pairs(values, masks) for name, values in maps.items()}
    return {
        name: np.einsum("ri,ij,rj->r", weights, counts, weights, optimize=True) / pairs
        for name, counts in found.items()
    }


def describe(values: np.ndarray) -> dict[str, float]:
    """The value of all images, and the interval of the resamples."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def plot(images: Tensor, masks: Tensor, maps: dict[str, Tensor], path: Path) -> None:
    """Ten images, their masks and maps, one column each."""
    from hf_ebm.evaluation.plots import new_figure, save

    rows = {"pasted": to_unit_range(images)[:, 0], "changed": masks.float(), **maps}
    figure = new_figure(10, 1.05 * len(rows))
    axes = figure.subplots(len(rows), 10, squeeze=False)
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        limit = float(values.quantile(0.99)) if name in maps else 1.0
        for axis, value in zip(line, values, strict=False):
            axis.imshow(value.numpy(), cmap="inferno" if name in maps else "gray", vmin=0.0, vmax=limit)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", "\n"), fontsize=7)
    save(figure, path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print the AUROCs as JSON, and plot ten images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run folder")
    parser.add_argument("--dataset", required=True, help="digits, a folder or a Hub id with the splits train and test")
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--num-images", type=int, default=500, help="held-out images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-resamples", type=int, default=1000)
    parser.add_argument("--plot", type=Path, help="PNG file of ten images and their maps")
    options = parser.parse_args(arguments)
    pipe = EnergyScoringPipeline.from_pretrained(options.model, load_reconstruction="auto")
    pipe.set_progress_bar_config(disable=True)

    def load(split: str, limit: int) -> Tensor:
        dataset: Any = load_named(options.dataset, pipe.sample_shape, split, None, pipe.image_processor)[0]
        return torch.stack([dataset[row][0] for row in draw_rows(len(dataset), limit, options.seed)])

    margin = getattr(pipe.image_processor, "padding", 0)
    generator = torch.Generator().manual_seed(options.seed)
    images, masks = paste_patches(load("test", options.num_images), options.patch_size, margin, generator)
    reference = load("train", MAX_MAP_REFERENCE)
    moments = pipe.fit_maps(to_unit_range(reference), 256, None, seed=0)
    blurred = blur_difference(images)
    maps = dict(zip(BASELINES, (blurred, smooth(blurred)), strict=True))
    maps["|x - mean x|, smoothed"] = smooth((images - reference.mean(dim=0)).abs().sum(dim=1))
    for kind in [kind for kind in MAP_KINDS if kind in moments]:
        values = pipe.make_pixel_values(kind, seed=0)
        maps[kind] = torch.cat([moments[kind].heat_maps(values(part)).cpu() for part in images.split(256)])
    aurocs = pixel_aurocs(maps, masks, options.num_resamples, options.seed)
    best = max(BASELINES, key=lambda name: aurocs[name][0])
    found = {
        name: {"auroc": describe(values)}
        | ({} if name in BASELINES else {f"minus {best}": describe(values - aurocs[best])})
        for name, values in aurocs.items()
    }
    print(
        to_json({"model": options.model, "num_images": len(images), "changed": float(masks.float().mean()), **found}, 2)
    )
    if options.plot is not None:
        plot(images, masks, maps, options.plot)
    return found


if __name__ == "__main__":
    main()
