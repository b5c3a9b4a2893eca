"""Example images of the demo: samples of the model, out-of-distribution versions of one, noise."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.demo.demo_models import DemoModel
from hf_ebm.evaluation.synthetic_ood import inverted, noise, shuffled

NUM_OWN = 3


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """Images in [0, 1], shape (N, C, S, S), as PIL images."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))


def write_examples(model: DemoModel, own_samples: Tensor, folder: Path) -> list[str]:
    """Write the example files, of the model's own size so that nothing is lost, and return their paths.

    Three of its own samples, the likeliest by its energy; the first of them with black and white swapped, and with its
    pixels shuffled; noise.
    """
    order = model.pipeline.score(own_samples).energies.argsort()[:NUM_OWN]
    own = own_samples[order] * 2.0 - 1.0
    random = torch.Generator().manual_seed(0)
    ood = [make(own[:1], random) for make in (inverted, shuffled, noise)]
    names = [f"own-{number}" for number in range(1, NUM_OWN + 1)] + ["inverted", "shuffled", "noise"]
    paths = [folder / f"{name}.png" for name in names]
    for image, path in zip(to_pil(to_unit_range(torch.cat([own, *ood]))), paths, strict=True):
        image.save(path)
    return [str(path) for path in paths]
