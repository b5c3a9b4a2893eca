"""How much of an energy is the image's complexity: its rank correlation with the size of a PNG, and both as scores.

    python benchmarks/energy_and_complexity.py --model outputs/ddaebm-cifar10-small --id uoft-cs/cifar10 \
        --ood ufldl-stanford/svhn:cropped_digits

Likelihood models rate simple images of another data set as more likely than their own (Serra et al., ICLR 2020).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from scipy.stats import spearmanr
from torch import Tensor

from hf_ebm import EnergyScoringPipeline
from hf_ebm.run_padding import find_padding
from hf_ebm.scoring.metrics import auroc
from hf_ebm.scoring.ood_evaluation import load_images


def compare(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``"energy"`` and ``"compressed_size"`` of in- and out-of-distribution images, each (N,), have to do."""
    return {
        "rank_correlation": spearmanr(inside["energy"], inside["compressed_size"]).statistic,
        "median_bits": {
            "id": inside["compressed_size"].median().item(),
            "ood": outside["compressed_size"].median().item(),
        },
        "auroc": {
            "energy": auroc(inside["energy"], outside["energy"]),
            "a large file is odd": auroc(inside["compressed_size"], outside["compressed_size"]),
        },
    }


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description="How much of an energy is the image's complexity.")
    parser.add_argument("--model", required=True, help="folder or Hub id of a model of images")
    parser.add_argument("--id", required=True, help="data set it was trained on, name[:config][@split]")
    parser.add_argument("--ood", required=True, help="another one")
    parser.add_argument("--max-images", type=int, default=500, help="of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipeline = EnergyScoringPipeline.from_pretrained(options.model)
    loading = (pipeline.sample_shape, "test", None, options.max_images, options.seed, find_padding(options.model, None))
    measured = []
    for name in (options.id, options.ood):
        images, source = load_images(name, *loading)
        measures = pipeline.measure_all(images, ("energy", "compressed_size"))
        measured.append((measures, source))
    (inside, inside_source), (outside, outside_source) = measured
    sources = {"id": inside_source, "ood": outside_source}
    print(json.dumps({"model": options.model, **compare(inside, outside), "images": sources}, indent=2))


if __name__ == "__main__":
    main()
