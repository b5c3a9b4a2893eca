"""Run ``hf-ebm evaluate`` with the features of a small classifier of the model's data, trained if it does not exist.

    python benchmarks/evaluate_with_classifier.py --data cifar10_small --model outputs/ddaebm-cifar10-cpu

For data without a shipped feature extractor, on a machine without the weights of the standard
Inception. Writes ``evaluate.json`` with the protocol and the classifier's name, accuracy and hash
into the run folder, for its card.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch
from benchmark_data import DATA, open_extractor
from tqdm.auto import tqdm

from hf_ebm.cli.evaluate import write_record
from hf_ebm.evaluation.samples import evaluate_samples
from hf_ebm.hub.model_card import sample_table
from hf_ebm.pipelines.loading import load_image_generator
from hf_ebm.utils.files import path_option
from hf_ebm.utils.torch_utils import find_device


def main() -> None:
    """Evaluate each model, print its table and write it into its folder."""
    parser = argparse.ArgumentParser(description="Evaluate models in the features of a classifier of their data.")
    parser.add_argument("--model", type=path_option, nargs="+", required=True, help="run folders")
    parser.add_argument("--data", choices=sorted(DATA), required=True)
    parser.add_argument("--dataset", help="folder or Hub id of the data (default: the recipe's)")
    parser.add_argument("--num-images", type=int, default=2000, help="samples (default: %(default)s)")
    parser.add_argument("--num-seeds", type=int, default=1, help="number of sets of samples (default: %(default)s)")
    parser.add_argument("--features", type=path_option, help="folder of the classifier (default: outputs/quality-DATA)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = find_device(options.device)
    chosen, folder = DATA[options.data], options.features or Path(f"outputs/quality-{options.data}")
    dataset = options.dataset or chosen.dataset
    extractor = open_extractor(chosen, dataset, folder, str(device))
    for model in options.model:
        record = evaluate_samples(
            load_image_generator(str(model)).to(device),
            dataset,
            extractor,
            num_images=options.num_images,
            num_seeds=options.num_seeds,
            progress_bar=functools.partial(tqdm, unit="batch", leave=False, file=sys.stderr),
        )
        write_record(record, str(model), model)
        print(f"{model}\n{sample_table(record)}\n", flush=True)


if __name__ == "__main__":
    main()
