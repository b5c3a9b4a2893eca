"""Sample quality: distances of samples to held-out images in a network's features, and reconstruction errors.

Every metric is reported next to its real-vs-real distance (key ``floor``): the same metric between as
many real images of the other split and the held-out images. A record also contains the feature
extractor, the data and the settings (`evaluate_samples`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from hf_ebm.data.image_files import words_of
from hf_ebm.data.image_processor import EBMImageProcessor, to_unit_range
from hf_ebm.data.loading import DatasetName, draw_rows, load_named
from hf_ebm.evaluation.feature_extractors import MAX_KEPT, FeatureExtractor, FeatureStatistics
from hf_ebm.evaluation.sample_metrics import (
    KERNEL_SUBSETS,
    NUM_NEIGHBOURS,
    frechet_distance_of_statistics,
    inception_score,
    kernel_distance,
    kernel_subset_size,
    neighbourhood_metrics,
    reconstruction_metrics,
)
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.utils.files import finite_or_none
from hf_ebm.utils.logging import ProgressBar, no_bar
from hf_ebm.utils.software import software_versions
from hf_ebm.utils.validation import check_count, check_seed


@dataclass(frozen=True)
class RealImages:
    """A split of a data set, prepared for a model: its images in batches, and what they are."""

    dataset: Any  # map-style, of 1-tuples of tensors in [-1, 1], shape (C, H, W)
    source: dict[str, Any]  # ``{"dataset", "split", "fingerprint"}``, see `hf_ebm.data.loading.load_named`
    batch_size: int  # of `batches`
    num_workers: int = 0  # processes that decode images
    progress_bar: ProgressBar = no_bar  # wraps what is read

    def batches(self, rows: list[int], title: str) -> Iterator[Tensor]:
        """The images of some rows, shape (B, C, H, W); `title` is that of the progress bar."""
        loader = DataLoader(Subset(self.dataset, rows), self.batch_size, num_workers=self.num_workers)
        try:
            for (images,) in self.progress_bar(loader, desc=title, total=len(loader)):
                yield images
        except ValueError as error:
            raise ValueError(words_of(error)) from error

    def statistics(
        self, limit: int, seed: int, extractor: FeatureExtractor
    ) -> tuple[FeatureStatistics, dict[str, Any]]:
        """Feature statistics of at most `limit` images drawn with `seed`, and their source with ``num_images``.

        Of more than `MAX_KEPT` images, whose features are not all kept, the order is drawn, too: an image folder goes
        by class, and the first rows are not like the others.
        """
        number = min(limit, len(self.dataset))
        rows = draw_rows(len(self.dataset), number, seed)
        if number > MAX_KEPT:
            order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
            rows = [rows[place] for place in order.tolist()]
        images = self.batches(rows, f"{self.source['split']} images")
        return FeatureStatistics.of(images, extractor), {**self.source, "num_images": number}


MIN_IMAGES = 20
MAX_RECONSTRUCTED = 1000


def draw_samples(
    pipeline: Any, number: int, batch_size: int, num_inference_steps: int | None, seed: int
) -> Iterator[Tensor]:
    """`number` samples in batches, in [-1, 1], shape (B, C, H, W); the batch size is part of what the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": num_inference_steps, "generator": generator, "output_type": "latent"}
    for start in range(0, number, batch_size):
        yield pipeline(batch_size=min(batch_size, number - start), **options).images.clamp(-1.0, 1.0).cpu()


def compare(
    real: FeatureStatistics, generated: FeatureStatistics, extractor: FeatureExtractor, seed: int = 0
) -> dict[str, float]:
    """All metrics of two sets of images; with the standard network also the Inception score of `generated`.

    The ``..._std`` are over the subsets of one comparison.
    """
    kernel = kernel_distance(real.features, generated.features, seed)
    metrics = {
        "frechet_distance": frechet_distance_of_statistics(real, generated),
        "kernel_distance": kernel["mean"],
        "kernel_distance_std": kernel["std"],
        **neighbourhood_metrics(real.features, generated.features),
    }
    if extractor.logits is not None:
        score = inception_score(extractor.logits(generated.features), seed)
        metrics |= {"inception_score": score["mean"], "inception_score_std": score["std"]}
    return metrics


def over_seeds(found: list[dict[str, float]], real_vs_real: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Mean over the seeds, standard deviation (None for one seed) and real-vs-real distance of each metric."""
    table = {}
    for name in found[0]:
        values = torch.tensor([metrics[name] for metrics in found], dtype=torch.float64)
        std = values.std().item() if len(found) > 1 else None
        table[name] = {"samples": values.mean().item(), "std_over_seeds": std, "floor": real_vs_real.get(name)}
    return table


def state_limits(real: FeatureStatistics, generated: FeatureStatistics) -> list[str]:
    """Caveats of the figures at these numbers of images."""
    limits = []
    smallest, num_features = min(real.num_images, generated.num_images), real.total.shape[0]
    if smallest <= num_features:
        limits.append(
            f"{smallest} images cannot fill the covariance of {num_features} features: the Frechet distance is too "
            "large by an unknown amount; compare it at these numbers of images only."
        )
    if max(real.num_images, generated.num_images) > MAX_KEPT:
        limits.append(f"the kernel distance and precision to coverage are of {MAX_KEPT:,} random images of a set.")
    if real.num_images != generated.num_images:
        limits.append("recall, density and coverage depend on both numbers of images; compare them at these only.")
    return limits


def evaluate_reconstruction(
    pipeline: Any, batches: Iterator[Tensor], num_inference_steps: int | None, seed: int
) -> dict[str, Any]:
    """Errors of reconstructions from inferred latents, before and after the z-chain, means over images.

    A PSNR is None where an image came back exactly: it is infinite.
    """
    before, after = dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    number = 0
    for index, images in enumerate(batches):
        number += len(images)
        for found, steps in ((before, 0), (after, num_inference_steps)):
            generator = torch.Generator().manual_seed(seed + index)  # the same latents before and after
            recon = pipeline.reconstruct(to_unit_range(images), steps, generator=generator, output_type="latent").images
            for name, values in reconstruction_metrics(images, recon.clamp(-1.0, 1.0).cpu()).items():
                found.setdefault(name, []).append(values)
    steps = pipeline.latent_scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
    means = [
        {name: finite_or_none(torch.cat(values).mean().item()) for name, values in found.items()}
        for found in (before, after)
    ]
    return {"inference_model": means[0], "z_chain": means[1], "num_steps": steps, "num_images": number}


def describe_sampler(pipeline: Any, num_inference_steps: int | None, batch_size: int) -> dict[str, Any]:
    """The sampler and its settings."""
    scheduler = pipeline.scheduler
    settings = {} if scheduler is None else dict(scheduler.config)
    config = {name: value for name, value in settings.items() if not name.startswith("_")}
    steps = config.get("num_train_timesteps") if num_inference_steps is None else num_inference_steps
    if scheduler is None or (isinstance(scheduler, EnergySampler) and pipeline.energy_model is None):
        steps = 0  # the pipeline leaves its chain out
    return {
        "pipeline": type(pipeline).__name__,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "num_inference_steps": steps,
        "batch_size": batch_size,
        "settings": config,
    }


def evaluate_samples(
    pipeline: Any,
    dataset: str,
    extractor: FeatureExtractor,
    *,
    split: str = "test",
    image_column: str | None = None,
    num_images: int | None = None,
    num_seeds: int = 1,
    batch_size: int = 256,
    num_workers: int = 0,
    num_inference_steps: int | None = None,
    num_reconstruction_steps: int | None = None,
    seed: int = 0,
    progress_bar: ProgressBar = no_bar,
) -> dict[str, Any]:
    """Metrics of a pipeline's samples and reconstructions, and the protocol of the evaluation.

    Args:
        pipeline: A generation pipeline of images.
        dataset: ``"digits"``, or a Hub id or a folder, ``name[:config][@split]``.
        extractor: See `hf_ebm.evaluation.feature_extractors`.
        split: Whose images samples are compared with, all of them, where `dataset` names none, or the only one; the
            real-vs-real distance uses the other one of train and test.
        image_column: Of the data set; None = its only image column.
        num_images: Number of samples, and of images of the other split; None = as many as that has, at most 10,000.
        num_seeds: Number of sets of samples that are evaluated, with the seeds from `seed` on.
        batch_size: Images at a time.
        num_workers: Processes that decode images.
        num_inference_steps: Of the sampler; None = as in training.
        num_reconstruction_steps: Of the z-chain; None = as in training.
        seed: Of samples, latents, subsets, drawn rows.
        progress_bar: Wraps the batches of each set that is drawn or read.

    Returns:
        ``{"metrics": see over_seeds, "reconstruction": see evaluate_reconstruction, or None, "limits": [...],
        "protocol": {...}}``.

    Raises:
        ValueError: If there are too few images, or one cannot be read.
    """
    shape = pipeline.sample_shape
    if len(shape) != 3:
        raise ValueError(f"pipeline must make images, got one of samples of shape {shape}.")
    for name, number in (("batch_size", batch_size), ("num_seeds", num_seeds)):
        check_count(name, number, 1)
    check_seed("seed", seed)
    image_processor: Any = pipeline.image_processor or EBMImageProcessor.for_model(shape)
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress_bar": progress_bar}
    reference = RealImages(*load_named(dataset, shape, split, image_column, image_processor), **loading)
    split = reference.source["split"]
    other_split = "test" if split == "train" else "train"
    caveats = []
    try:
        named = replace(DatasetName.parse(dataset), split=other_split)
        found = load_named(named, shape, other_split, image_column, image_processor)
        others: RealImages | None = RealImages(*found, **loading)
    except ValueError:  # its message may contain a local path
        others, caveats = None, [f"there is no real-vs-real distance: the data set has no split {other_split!r}."]
    if others is not None and len(others.dataset) < MIN_IMAGES:
        caveats = [
            f"there is no real-vs-real distance: the split {other_split!r} has {len(others.dataset)} images, too few."
        ]
        others = None
    if num_images is None:
        num_images = min(MAX_KEPT, len((others or reference).dataset))
    for name, number in (("num_images", num_images), (f"the split {split!r}", len(reference.dataset))):
        if number < MIN_IMAGES:
            raise ValueError(f"{name} must be at least {MIN_IMAGES} images for these statistics, got {number}.")

    real, real_source = reference.statistics(len(reference.dataset), seed, extractor)
    real_vs_real, other_source = {}, None
    if others is not None:
        other, other_source = others.statistics(num_images, seed, extractor)
        real_vs_real = compare(real, other, extractor, seed)
    of_samples = []
    for sampling_seed in range(seed, seed + num_seeds):
        samples = draw_samples(pipeline, num_images, batch_size, num_inference_steps, sampling_seed)
        bar = progress_bar(samples, desc=f"samples, seed {sampling_seed}", total=math.ceil(num_images / batch_size))
        generated = FeatureStatistics.of(bar, extractor)
        of_samples.append(compare(real, generated, extractor, seed))
    reconstruction = None
    if "reconstruct" in pipeline.tasks:
        rows = draw_rows(len(reference.dataset), MAX_RECONSTRUCTED, seed)
        batches = reference.batches(rows, "reconstructions")
        reconstruction = evaluate_reconstruction(pipeline, batches, num_reconstruction_steps, seed)
    protocol = {
        "reference": real_source,
        "floor": other_source,
        "num_images": num_images,
        "sampler": describe_sampler(pipeline, num_inference_steps, batch_size),
        "feature_extractor": {
            "name": extractor.name,
            "weights_sha256": extractor.weights_sha256,
            "num_features": real.total.shape[0],
            "preprocessing": extractor.preprocessing,
            "is_standard_inception": extractor.is_standard_inception,
        },
        "preprocessing": image_processor.describe(),
        "kernel_distance": {
            "subset_size": kernel_subset_size(len(real.features), len(generated.features)),
            "num_subsets": KERNEL_SUBSETS,
        },
        "num_neighbours": NUM_NEIGHBOURS,
        "seed": seed,
        "num_seeds": num_seeds,
        "software": software_versions(),
    }
    return {
        "metrics": over_seeds(of_samples, real_vs_real),
        "reconstruction": reconstruction,
        "limits": caveats + state_limits(real, generated),
        "protocol": protocol,
    }
