"""The demo: train on the embedded digits, then measure and show what came out (``make demo``).

    python -m hf_ebm.training.demo [key=value ...]

It starts ``accelerate launch`` on the training script, draws samples from the saved pipeline, and writes
``samples.png``, ``ood.png`` and ``metrics.json`` into the run folder. ``key=value`` arguments go to the script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ebm.data import load_digits
from hf_ebm.hub import write_card
from hf_ebm.pipelines.pipeline_ddaebm import DDAEBMPipeline
from hf_ebm.scoring.digit_classifier import NAME, load_digit_classifier
from hf_ebm.scoring.metrics import auroc, frechet_distance
from hf_ebm.scoring.odd_images import ODD_IMAGES
from hf_ebm.scoring.plots import plot_energy_histograms
from hf_ebm.training.settings import CONFIGS, read_yaml

CONFIG = "ddaebm_digits.yaml"


def pixel_gaussian(images: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Samples of the Gaussian fitted to the pixels of `images` (B, C, H, W): what a model must beat by far."""
    flat = images.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    white = torch.randn(num_samples, flat.shape[1], generator=generator).double()
    samples = flat.mean(dim=0) + (white * values.clamp(min=0).sqrt()) @ vectors.T
    return samples.clamp(-1.0, 1.0).float().reshape(num_samples, *images.shape[1:])


def evaluate_digits(pipeline: Any, seed: int = 0) -> tuple[dict[str, Any], Tensor, dict[str, Tensor]]:
    """Metrics of a pipeline of 8x8 digits, the energies of held-out digits, and those of each odd set.

    As many samples are drawn as there are training images, so that the floor (training against held-out images) and
    the samples are measured alike.
    """
    train_images, test_images = load_digits("train")[0], load_digits("test")[0]
    generator = torch.Generator().manual_seed(seed)
    samples = pipeline(batch_size=len(train_images), generator=generator, output_type="pt").images.cpu()
    classifier = load_digit_classifier()

    def distance(images: Tensor) -> float:
        return frechet_distance(test_images, images, classifier.features, classifier.num_features)

    classes = torch.bincount(classifier(samples).argmax(dim=1), minlength=10)
    held_out = pipeline.score(test_images).energies
    odd = {
        name: pipeline.score(make(test_images, torch.Generator().manual_seed(seed))).energies
        for name, make in ODD_IMAGES.items()
    }
    metrics = {
        "frechet_distance": {
            "samples": distance(samples),
            "floor": distance(train_images),
            "pixel_gaussian": distance(pixel_gaussian(train_images, len(train_images), generator)),
            "feature_extractor": NAME,
            "num_samples": len(samples),
            "num_reference": len(test_images),
        },
        "auroc": {name: auroc(held_out, energies) for name, energies in odd.items()},
        "samples_per_class": classes.tolist(),
        "protocol": "score E(x, 0); in distribution: the 360 held-out digits; odd images are made from the same 360",
        "seed": seed,
    }
    return metrics, held_out, odd


def format_table(metrics: dict[str, Any]) -> str:
    """The metrics as a short text table."""
    frechet = metrics["frechet_distance"]
    lines = [
        f"Frechet distance, {frechet['num_samples']} images against {frechet['num_reference']} held-out digits,",
        f"in the features of {frechet['feature_extractor']}",
        f"  samples                        {frechet['samples']:8.2f}",
        f"  training images (the floor)    {frechet['floor']:8.2f}",
        f"  a pixel Gaussian               {frechet['pixel_gaussian']:8.2f}",
        "AUROC of E(x, 0), held-out digits against",
    ]
    lines += [f"  {name:<30} {value:8.4f}" for name, value in metrics["auroc"].items()]
    lines.append("samples per class 0..9: " + " ".join(map(str, metrics["samples_per_class"])))
    return "\n".join(lines)


def launch_command() -> tuple[list[str], dict[str, str]]:
    """`accelerate launch` of the training script and its environment: one GPU, or two CPU processes.

    These networks are too small to keep two threads busy; two processes of one thread each do twice the work.
    """
    num_processes = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {}
    if num_processes > 1:
        launcher += ["--multi_gpu"]  # accelerate's name for several processes; on CPUs they talk over gloo
        environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return [*launcher, "-m", "hf_ebm.training.train_ddaebm"], environment


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, show."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    output_dir = read_yaml(CONFIGS / CONFIG)["output_dir"]
    for argument in arguments:
        if argument.startswith("output_dir="):
            output_dir = argument.removeprefix("output_dir=")
    folder = Path(output_dir)
    started = time.perf_counter()
    launcher, environment = launch_command()
    command = [*launcher, "--config", str(CONFIGS / CONFIG), "overwrite_output_dir=true", *arguments]
    finished = subprocess.run(command, env={**os.environ, **environment})
    if finished.returncode:
        raise SystemExit(f"error: the training ended with exit code {finished.returncode}; its message is above.")
    pipeline = DDAEBMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    metrics, held_out, odd = evaluate_digits(pipeline)
    plot_energy_histograms(held_out, odd, folder / "ood.png", "Energies of held-out digits and of odd images")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    write_card(folder, "ddaebm.md", folder.name)
    print(format_table(metrics))
    print(f"wrote {folder}/: the pipeline, samples.png, ood.png, metrics.json, README.md (the model card)")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
