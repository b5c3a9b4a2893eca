"""Validation while training: figures of the averaged weights on held-out images, and the best weights so far.

    frechet_distance       of samples to the held-out images, in the features of `open_features`
    auroc                  of E(x, 0), held-out images against synthetic OOD sets made from them; the mean of the sets
    energy_gap             (mean E(held-out) - mean E(training)) / standard deviation of E(training): memorisation
    reconstruction_error   mean squared error of held-out images after the z-chain, where the pipeline reconstructs
    accuracy               of p(y | x) on held-out images, where the energy has class scores

The main process computes them, from random numbers of its own: neither the number of processes nor validation itself
changes what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from hf_ebm.data.image_processor import to_unit_range
from hf_ebm.data.loading import draw_rows, load_training_data
from hf_ebm.data.splits import share_rows, split_sizes
from hf_ebm.evaluation.feature_extractors import FeatureExtractor, FeatureStatistics, load_extractor
from hf_ebm.evaluation.sample_metrics import auroc, frechet_distance_of_statistics, seeded
from hf_ebm.evaluation.synthetic_ood import SYNTHETIC_OOD
from hf_ebm.scoring.statistics import compute_energies
from hf_ebm.training.config import RunSettings
from hf_ebm.utils.validation import did_you_mean

PREFIX = "validation/"
LOWER_IS_BETTER = {
    "frechet_distance": True,
    "auroc": False,
    "energy_gap": True,
    "reconstruction_error": True,
    "accuracy": False,
}
TITLES = {
    "frechet_distance": "Frechet distance (lower is better)",
    "auroc": "AUROC of the energy (higher is better)",
    "energy_gap": "energy gap (0: nothing memorised)",
    "reconstruction_error": "reconstruction error (lower is better)",
    "accuracy": "accuracy (higher is better)",
}
OOD_SETS = ("rotated", "inverted", "shuffled", "mixed")
MIN_IMAGES = 20
LARGEST_SHARE = 10  # of the training split at most one in so many images is held out
BATCH_SIZE = 256
NUM_COMPONENTS = 64


def hold_out(dataset: Any, settings: RunSettings, sample_shape: tuple[int, ...]) -> tuple[Dataset, Dataset | None]:
    """The training data without the held-out images, and these; None where the run does not validate.

    With ``validation_split`` they are images of that split, otherwise a random part of the training split, at most a
    tenth of it.

    Raises:
        ValueError: If there are too few images, or the split cannot be read.
    """
    if not settings.validate_every:
        return dataset, None
    limit = settings.num_validation_images
    if settings.validation_split is None:
        rows = draw_rows(len(dataset), min(limit, len(dataset) // LARGEST_SHARE), settings.seed)
        if len(rows) < MIN_IMAGES:
            raise ValueError(
                f"validate_every needs at least {MIN_IMAGES} held-out samples, at most a tenth of the training split, "
                f"got {len(rows)} of {len(dataset)}; name another split with validation_split, use more data, or "
                "validate_every=0."
            )
        held_out = set(rows)
        return Subset(dataset, [row for row in range(len(dataset)) if row not in held_out]), Subset(dataset, rows)
    other: Any = load_training_data(
        settings.dataset,
        sample_shape,
        split=settings.validation_split,
        config_name=settings.dataset_config,
        revision=settings.dataset_revision,
        image_column=settings.image_column,
        image_processor=settings.make_image_processor(sample_shape),
        with_labels=settings.class_conditional,
        label_column=settings.label_column,
    )
    rows = draw_rows(len(other), limit, settings.seed)
    if len(rows) < MIN_IMAGES:
        raise ValueError(
            f"validation_split must hold at least {MIN_IMAGES} samples, got {len(rows)} in "
            f"{settings.validation_split!r}; name another split, or null for a part of the training split."
        )
    return dataset, Subset(other, rows)


def shares_training_rows(dataset: Any, settings: RunSettings) -> bool:
    """Whether ``validation_split`` has rows of the training split."""
    split = settings.validation_split
    return split is not None and share_rows(split, settings.dataset_split, split_sizes(dataset))


def open_features(settings: RunSettings, training: Tensor, device: torch.device) -> FeatureExtractor:
    """What the Frechet distance is computed in: ``validation_feature_extractor``, or a default without a download.

    The default of the digits is their classifier; of other images, the first principal components of training images;
    of vectors, the vectors.
    """
    name = settings.validation_feature_extractor
    if name is not None:
        return load_extractor(name, device)
    if settings.dataset == "digits":
        return load_extractor("digits", device)
    if training.ndim == 2:
        return FeatureExtractor("the values themselves", "", "none", lambda x: x)
    from sklearn.decomposition import PCA

    flat = training.flatten(1)
    pca = PCA(min(NUM_COMPONENTS, *flat.shape), random_state=0).fit(flat.numpy())
    mean, components = torch.from_numpy(pca.mean_).float(), torch.from_numpy(pca.components_).float()
    shown = f"the first {len(components)} principal components of training images' pixels"
    return FeatureExtractor(shown, "", "none", lambda x: (x.flatten(1) - mean) @ components.T)


@dataclass
class Validator:
    """The held-out images, and what the averaged weights are compared by.

    Attributes:
        images: Held-out samples in the models' range, shape (N, ...).
        labels: Their classes, shape (N,), -1 = none; None without classes.
        training: As many training samples.
        extractor: The features of the Frechet distance.
        seed: Of samples, OOD sets and chains.
    """

    images: Tensor
    labels: Tensor | None
    training: Tensor
    extractor: FeatureExtractor
    seed: int
    real: FeatureStatistics = field(init=False)

    def __post_init__(self) -> None:
        """Compute the features of the held-out samples once."""
        self.real = FeatureStatistics.of(self.images.split(BATCH_SIZE), self.extractor)

    @classmethod
    def open(cls, held_out: Any, training: Any, settings: RunSettings, device: torch.device) -> Validator:
        """Read the held-out samples, and as many of the training data drawn with the run's seed."""
        images, *labels = (torch.stack(column) for column in zip(*held_out, strict=True))
        rows = draw_rows(len(training), len(images), settings.seed)
        of_training = torch.stack([training[row][0] for row in rows])
        extractor = open_features(settings, of_training, device)
        return cls(images, labels[0] if labels else None, of_training, extractor, settings.seed)

    def names(self, pipeline: Any) -> list[str]:
        """The metrics that a pipeline has."""
        has_classes = self.labels is not None and getattr(pipeline.energy_model, "class_scores", None) is not None
        has = {
            "auroc": self.images.ndim == 4,
            "reconstruction_error": "reconstruct" in pipeline.tasks,
            "accuracy": has_classes,
        }
        return [name for name in LOWER_IS_BETTER if has.get(name, True)]

    @torch.no_grad()
    def __call__(self, pipeline: Any) -> dict[str, float]:
        """The metrics of a pipeline by name, ``auroc_<set>`` among them."""
        pipeline.set_progress_bar_config(disable=True)
        names = self.names(pipeline)
        with seeded(self.seed):
            found = {"frechet_distance": self.frechet_distance(pipeline)}
            held_out, training = (compute_energies(pipeline.energy_model, x) for x in (self.images, self.training))
            if "auroc" in names:
                of_sets = {name: self.ood_auroc(pipeline.energy_model, held_out, name) for name in OOD_SETS}
                found["auroc"] = sum(of_sets.values()) / len(of_sets)
                found |= {f"auroc_{name}": value for name, value in of_sets.items()}
            found["energy_gap"] = ((held_out.mean() - training.mean()) / training.std()).item()
            if "reconstruction_error" in names:
                found["reconstruction_error"] = self.reconstruction_error(pipeline)
            if "accuracy" in names:
                found["accuracy"] = self.accuracy(pipeline.energy_model)
        return found

    def generator(self, index: int = 0) -> torch.Generator:
        """Random numbers of one of several batches."""
        return torch.Generator().manual_seed(self.seed + index)

    def frechet_distance(self, pipeline: Any) -> float:
        """Of as many samples as there are held-out images, at least 1,000, to these."""
        number, generator, parts = max(1000, len(self.images)), self.generator(), []
        for start in range(0, number, BATCH_SIZE):
            size = min(BATCH_SIZE, number - start)
            samples = pipeline(batch_size=size, generator=generator, output_type="latent").images
            parts.append(samples.clamp(-1.0, 1.0).cpu() if samples.ndim == 4 else samples.cpu())
        return frechet_distance_of_statistics(self.real, FeatureStatistics.of(parts, self.extractor))

    def ood_auroc(self, energy_model: Any, held_out: Tensor, name: str) -> float:
        """AUROC of the energy against a synthetic OOD set."""
        return auroc(held_out, compute_energies(energy_model, SYNTHETIC_OOD[name](self.images, self.generator())))

    def reconstruction_error(self, pipeline: Any) -> float:
        """Mean squared error of held-out images after the z-chain, on the scale of [-1, 1]."""
        errors = []
        for index, x in enumerate(self.images.split(BATCH_SIZE)):
            given = to_unit_range(x) if x.ndim == 4 else x
            recon = pipeline.reconstruct(given, generator=self.generator(index), output_type="latent").images
            errors.append((recon.cpu() - x).square().flatten(1).mean(dim=1))
        return torch.cat(errors).mean().item()

    def accuracy(self, energy_model: Any) -> float:
        """Share of labelled held-out images whose label has the largest p(y | x)."""
        labelled = self.labels >= 0  # type: ignore[operator]
        images, labels = self.images[labelled], self.labels[labelled]  # type: ignore[index]
        found = [energy_model(x.to(energy_model.device)).logits.argmax(dim=1).cpu() for x in images.split(BATCH_SIZE)]
        return (torch.cat(found) == labels).float().mean().item()


@dataclass
class Best:
    """The best weights so far by one metric.

    Attributes:
        metric: Its name.
        value: NaN before the first validation.
        step: When it was reached.
        without_improvement: Validations since then.
        weights: State of each network, on the CPU, of the averaged weights where there are such; in the main process.
    """

    metric: str
    value: float = math.nan
    step: int = 0
    without_improvement: int = 0
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def update(self, metrics: dict[str, float], step: int, models: Sequence[nn.Module]) -> None:
        """Keep a copy of the weights if they are better than those before."""
        value = metrics[self.metric]
        sign = 1.0 if LOWER_IS_BETTER[self.metric] else -1.0
        if self.step and not sign * value < sign * self.value:
            self.without_improvement += 1
            return
        self.value, self.step, self.without_improvement = value, step, 0
        self.weights = [
            {
                name: one.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, one in m.state_dict().items()
            }
            for m in models
        ]

    def facts(self) -> dict[str, Any]:
        """What a checkpoint and the card say of it."""
        names = ("metric", "value", "step", "without_improvement")
        return {name: getattr(self, name) for name in names} if self.step else {}

    def tensors(self) -> dict[str, Tensor]:
        """The weights under one name each, ``<number of the network>.<name>``."""
        return {f"{index}.{name}": one for index, state in enumerate(self.weights) for name, one in state.items()}

    @classmethod
    def restore(cls, metric: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Best:
        """The best of a checkpoint; a new one if it has none, or was chosen by another metric."""
        if facts.get("metric") != metric:
            return cls(metric)
        states: dict[int, dict[str, Tensor]] = {}
        for name, one in tensors.items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = one
        return cls(**facts, weights=[states[index] for index in sorted(states)])


def check_metric(metric: str | None, names: Sequence[str]) -> None:
    """Raise a `ValueError` if a run does not have the metric of ``save_best_by``."""
    if metric is not None and metric not in names:
        near = did_you_mean(metric, names, f"this run has {', '.join(names)}.")
        raise ValueError(f"save_best_by: there is no metric {metric!r} here; {near}")


def plot_validation(records: Sequence[dict[str, float]], best_step: int, path: Path) -> None:
    """Each metric over the steps, the chosen step marked.

    Args:
        records: Lines of ``metrics.jsonl`` with validation metrics.
        best_step: Step of the chosen weights; 0 = none were chosen.
        path: Of the PNG file.
    """
    from hf_ebm.evaluation.plots import new_figure, save

    names = [name for name in LOWER_IS_BETTER if PREFIX + name in records[0]]
    figure = new_figure(3.2 * len(names), 2.6)
    steps = [record["step"] for record in records]
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        axis.plot(steps, [record[PREFIX + name] for record in records], marker=".", markersize=4, linewidth=1.2)
        if best_step:
            axis.axvline(best_step, color="tab:red", linewidth=0.8, linestyle="--")
        axis.set_title(TITLES[name], fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    save(figure, path)
