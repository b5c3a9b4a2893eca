"""What `hf_ebm.training.demo` runs: a training on the digits, its evaluation, its plots."""

from __future__ import annotations

import glob
import json
import shlex
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import joblib
import torch
from accelerate.utils import patch_environment
from torch import Tensor

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range, to_unit_range
from hf_ebm.evaluation.feature_extractors import NAME, load_digit_classifier
from hf_ebm.evaluation.plots import plot_chain_profiles, plot_score_histograms, save_grid
from hf_ebm.evaluation.sample_metrics import auroc, frechet_distance
from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD
from hf_ebm.hub.download import INDEX
from hf_ebm.hub.model_card import SETTINGS, write_card
from hf_ebm.pipelines.loading import load_pipeline
from hf_ebm.training import METHODS
from hf_ebm.training.config import CONFIGS, read_yaml
from hf_ebm.training.launch import launch
from hf_ebm.utils.files import expand_home
from hf_ebm.utils.logging import INTERRUPTED
from hf_ebm.utils.validation import duration

CHAIN_STEPS = 10  # updates of the z-chain before reconstructions are evaluated, as in the paper


def pixel_gaussian(images: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Samples of the Gaussian fitted to the pixels of `images` (B, C, H, W): what a model must beat by far."""
    flat = images.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    white = torch.randn(num_samples, flat.shape[1], generator=generator).double()
    samples = flat.mean(dim=0) + (white * values.clamp(min=0).sqrt()) @ vectors.T
    return samples.clamp(-1.0, 1.0).float().reshape(num_samples, *images.shape[1:])


def digits_frechet_distance(images: Tensor) -> float:
    """Frechet distance of `images` (B, 1, 8, 8) to the held-out digits in the features of the digit classifier."""
    held_out = to_model_range(load_digits("test")[0])
    return frechet_distance(held_out, images, load_digit_classifier().features)


def evaluate_digits(pipeline: Any, seed: int = 0) -> tuple[dict[str, Any], Tensor, dict[str, Tensor]]:
    """Metrics of a pipeline of 8x8 digits, the energies of held-out digits, and those of each OOD set.

    There are as many samples as training images, so that the real-vs-real distance (training against held-out images)
    is comparable.
    """
    (train_images, train_labels), (test_images, test_labels) = map(load_digits, ("train", "test"))
    train_images, test_images = to_model_range(train_images), to_model_range(test_images)
    generator = torch.Generator().manual_seed(seed)
    # with labels, the training set's: as many samples of each digit
    number = {"class_labels": train_labels} if is_of_digits(pipeline) else {"batch_size": len(train_images)}
    samples = pipeline(**number, generator=generator, output_type="latent").images.clamp(-1.0, 1.0).cpu()
    classifier = load_digit_classifier()

    found = classifier(samples).argmax(dim=1)
    held_out = pipeline.score(to_unit_range(test_images)).energies
    ood = {
        name: pipeline.score(to_unit_range(make(test_images, torch.Generator().manual_seed(seed)))).energies
        for name, make in SYNTHETIC_OOD.items()
    }
    metrics = {
        "frechet_distance": {
            "samples": digits_frechet_distance(samples),
            "floor": digits_frechet_distance(train_images),
            "pixel_gaussian": digits_frechet_distance(
                pixel_gaussian(train_images, len(train_images), torch.Generator().manual_seed(seed))
            ),
            "feature_extractor": NAME,
            "num_samples": len(samples),
            "num_reference": len(test_images),
        },
        "auroc": {name: auroc(held_out, energies) for name, energies in ood.items()},
        "samples_per_class": torch.bincount(found, minlength=10).tolist(),
        "protocol": "score: the energy; in distribution: the 360 held-out digits; OOD images: made from them",
        "seed": seed,
    }
    if is_of_digits(pipeline):
        metrics["samples_of_their_class"] = (found == train_labels).float().mean().item()
        metrics["classification"] = evaluate_classes(pipeline.energy_model, test_images, test_labels)
    return metrics, held_out, ood


def is_of_digits(pipeline: Any) -> bool:
    """Whether the classes of a pipeline are the ten digits, and not clusters."""
    return list(pipeline.generator_model.config.get("class_names") or ()) == [str(digit) for digit in range(10)]


def evaluate_classes(energy_model: Any, images: Tensor, labels: Tensor) -> dict[str, float] | None:
    """Accuracy and calibration error of p(y | x) on `images` (B, 1, 8, 8) in [-1, 1] with `labels` (B,).

    None for an energy without class scores.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    with torch.no_grad():
        logits = energy_model(images.to(energy_model.device)).logits
    if logits is None:
        return None
    probabilities = logits.cpu().softmax(dim=1)
    return {
        "accuracy": (probabilities.argmax(dim=1) == labels).float().mean().item(),
        "calibration_error": multiclass_calibration_error(probabilities, labels, num_classes=10, n_bins=15).item(),
    }


def evaluate_chains(pipeline: Any, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Evaluate samples and reconstructions of digits along both chains; writes ``chains.png``, ``reconstructions.png``.

    The Frechet distance of the generator's samples uses the same latents as that of the revised samples.
    """
    test_images = load_digits("test")[0]

    def random() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    number = len(load_digits("train")[0])
    alone = pipeline(number, num_inference_steps=0, generator=random(), output_type="latent").images.clamp(-1.0, 1.0)
    revised = pipeline(number, generator=random(), output_type="latent", output_energies=True)
    recon = pipeline.reconstruct(
        test_images, CHAIN_STEPS, generator=random(), output_type="latent", output_squared_errors=True
    )
    errors = recon.squared_errors.mean(dim=1)
    of_means = pipeline.reconstruct(test_images, 0, sample_latents=False, output_type="pt", output_squared_errors=True)
    plot_chain_profiles(revised.energies.cpu(), recon.squared_errors.cpu(), folder / "chains.png")
    from_inference = pipeline.reconstruct(test_images[:12], 0, generator=random()).images
    originals = pipeline.post_process(to_model_range(test_images[:12]), "pil")
    rows = [*originals, *from_inference, *pipeline.post_process(recon.images[:12], "pil")]
    save_grid(rows, folder / "reconstructions.png", num_columns=12)
    return {
        "generator_alone": digits_frechet_distance(alone.cpu()),
        "reconstruction_mse": {
            "inference_model": errors[0].item(),  # from a draw of q(z | x), where the chain starts
            "inference_mean": of_means.squared_errors.mean().item(),
            "z_chain": errors[-1].item(),
            "num_steps": CHAIN_STEPS,
        },
    }


def format_table(metrics: dict[str, Any]) -> str:
    """The metrics as a short text table."""
    frechet = metrics["frechet_distance"]
    lines = [
        f"Frechet distance, {frechet['num_samples']} images against {frechet['num_reference']} held-out digits,",
        f"in the features of {frechet['feature_extractor']}",
        f"  samples                        {frechet['samples']:8.2f}",
        *([f"  before the x-chain             {frechet[key]:8.2f}"] if (key := "generator_alone") in frechet else []),
        f"  training images (the floor)    {frechet['floor']:8.2f}",
        f"  a pixel Gaussian               {frechet['pixel_gaussian']:8.2f}",
        "AUROC of the energy, held-out digits against",
    ]
    lines += [f"  {name:<30} {value:8.4f}" for name, value in metrics["auroc"].items()]
    if "reconstruction_mse" in metrics:
        mse = metrics["reconstruction_mse"]
        lines.append("reconstruction of held-out digits, mean squared error per pixel")
        lines.append(f"  a draw of the inference model  {mse['inference_model']:8.4f}")
        lines.append(f"  its mean                       {mse['inference_mean']:8.4f}")
        lines.append(f"  after {mse['num_steps']} steps of the z-chain  {mse['z_chain']:8.4f}")
    if (share := metrics.get("samples_of_their_class")) is not None:
        lines.append("class-conditional samples, by a classifier trained apart")
        lines.append(f"  share of the class asked for   {share:8.4f}")
    if found := metrics.get("classification"):
        lines.append("classification of held-out digits by p(y | x)")
        lines.append(f"  accuracy                       {found['accuracy']:8.4f}")
        lines.append(f"  expected calibration error     {found['calibration_error']:8.4f}")
    lines.append("samples per class 0..9: " + " ".join(map(str, metrics["samples_per_class"])))
    return "\n".join(lines)


def launch_options() -> tuple[list[str], dict[str, str]]:
    """Options of `accelerate launch` for the digits and its environment: one GPU, or two CPU processes.

    These networks are too small to keep two threads busy; two processes of one thread each do twice the work.
    """
    num_processes = 1 if torch.cuda.is_available() else min(2, joblib.cpu_count())
    launcher = ["--num_processes", str(num_processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {}
    if num_processes > 1:
        # accelerate's name for several processes; on CPUs they talk over gloo, by any port that is free
        launcher += ["--multi_gpu", "--main_process_port", "0"]
        environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return launcher, environment


def keep_earlier_run(folder: Path) -> Path | None:
    """Move a run that is in `folder` to the first free ``folder-1``, ``folder-2``, ..., and return where it is."""
    if not (folder / SETTINGS).is_file():
        return None
    kept = next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}-{number}")).exists())
    return folder.rename(kept)


def newest_kept_run(folder: Path) -> Path | None:
    """Of the runs that `keep_earlier_run` moved, the last to have ended; None where none has."""
    indices = folder.parent.glob(f"{glob.escape(folder.name)}-[0-9]*/{INDEX}")
    newest = max(indices, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else None


def python_here() -> list[str]:
    """What a shell in this folder calls the running Python: a path below it, such as a ``.venv``'s, or its name."""
    python, here = Path(sys.executable), Path.cwd()
    return [str(python.relative_to(here)) if python.is_relative_to(here) else "python"]


def run(method: str, arguments: Sequence[str]) -> None:
    """Train, evaluate, plot.

    Args:
        method: One of `hf_ebm.training.METHODS` with a config of the digits.
        arguments: ``key=value`` settings of its script.

    Raises:
        SystemExit: If the method is unknown, or the training ended early, with its exit code.
    """
    config = CONFIGS / f"{method}_digits.yaml"
    if method not in METHODS or not config.is_file():
        methods = [name for name in METHODS if (CONFIGS / f"{name}_digits.yaml").is_file()]
        raise SystemExit(f"error: METHOD must be one of {', '.join(methods)}, got {method!r}.")
    output_dir = read_yaml(config)["output_dir"]
    for argument in arguments:
        if argument.startswith("output_dir="):
            output_dir = argument.removeprefix("output_dir=")
    folder = Path(expand_home(output_dir))
    if not folder.name:
        raise SystemExit(f"error: output_dir must name a folder, got {output_dir!r}.")
    started = time.perf_counter()
    goes_on = any(argument.startswith("resume=") for argument in arguments)
    kept = None if goes_on else keep_earlier_run(folder)
    if kept is not None:
        print(f"the earlier run of {folder} is kept in {kept}", flush=True)
    launcher, environment = launch_options()
    with patch_environment(**environment):
        code = launch(method, launcher, ["--config", str(config), *arguments])
    if kept is not None and not folder.exists():  # the training did not start
        kept.rename(folder)
        print(f"the training did not start: {kept} is {folder} again", flush=True)
    if code:
        if code == INTERRUPTED:
            others = [argument for argument in arguments if not argument.startswith("resume=")]
            again = shlex.join([*python_here(), "-m", "hf_ebm.training.demo", method, "resume=latest", *others])
            print(f"hf-ebm: restart the demo with make demo; resume it with {again}", file=sys.stderr)
            if (ended := newest_kept_run(folder)) is not None:
                print(f"hf-ebm: until it has ended, use the earlier run in {ended}", file=sys.stderr)
        raise SystemExit(code)
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    metrics, held_out, ood = evaluate_digits(pipeline)
    extra = ""
    if "reconstruct" in pipeline.tasks:
        chains = evaluate_chains(pipeline, folder)
        metrics["frechet_distance"]["generator_alone"] = chains.pop("generator_alone")
        metrics.update(chains)
        extra = "chains.png, reconstructions.png, "
    plot_score_histograms({"energy": {"in_distribution": held_out, **ood}}, folder / "ood.png")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    write_card(folder)
    print(format_table(metrics))
    several = shlex.join(["hf-ebm", "evaluate", "--model", str(folder), "--dataset", "digits", "--num-seeds", "5"])
    print(f"These metrics are of one seed; their spread over seeds: {several}")
    print(f"evaluated it; wrote ood.png, {extra}metrics.json and the README.md with its metrics into {folder}/")
    print(f"took {duration(time.perf_counter() - started)}")
