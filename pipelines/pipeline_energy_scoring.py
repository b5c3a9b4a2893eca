"""Scoring for out-of-distribution detection: energies, scores, and after a calibration p-values and decisions.

    pipe = EnergyScoringPipeline.from_pretrained("outputs/ddaebm-digits")
    pipe.calibrate(held_out_images, target_fpr=0.05)
    result = pipe(images)                                # .energies, .scores, .p_values, .is_ood

It loads from a repository of any of our pipelines, and of it only what the scores need.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

import hf_ebm
from hf_ebm.data.image_processor import EBMImageProcessor
from hf_ebm.data.loading import draw_rows
from hf_ebm.hub.download import INDEX, read_index, wanted_components
from hf_ebm.models.energy import EnergyModel, check_energy_model
from hf_ebm.pipelines.pipeline_base import EBMPipeline
from hf_ebm.schedulers.energy_sampler import EnergySampler
from hf_ebm.schedulers.scheduling_ddaebm import DDAEBMScheduler
from hf_ebm.scoring.calibration import (
    FILE_NAME,
    MAX_BANK,
    MAX_DENSITY_REFERENCE,
    REFERENCE_FILE,
    Calibration,
    how_to_calibrate,
)
from hf_ebm.scoring.encoder import ImageEncoder
from hf_ebm.scoring.inputs import sample_batches
from hf_ebm.scoring.maps import (
    MAP_KINDS,
    MAX_MAP_REFERENCE,
    PixelMoments,
    energy_term_values,
    has_energy_terms,
    reconstruction_values,
)
from hf_ebm.scoring.scores import FEATURES, SCORES, Fitted
from hf_ebm.scoring.statistics import (
    CLASS_STATISTICS,
    RECONSTRUCTIONS,
    ReconstructionError,
    check_not_nan,
    has_class_scores,
    make_statistics_function,
    statistics_of_batches,
)
from hf_ebm.utils.files import expand_home
from hf_ebm.utils.torch_utils import execution_device
from hf_ebm.utils.validation import check_count, check_fraction, check_seed

logger = logging.getLogger(__name__)
ENCODER = ("image_encoder", "feature_extractor")
RECONSTRUCTION = ("generator_model", "inference_model", "latent_scheduler")


def generation_pipelines() -> dict[str, Any]:
    """The exported classes of pipelines that generate, by name."""
    names = [name for name, module in hf_ebm.EXPORTS.items() if module.startswith("hf_ebm.pipelines.")]
    return {name: getattr(hf_ebm, name) for name in names if name != "EnergyScoringPipeline"}


def draw_samples(images: Any, limit: int, seed: int) -> Any:
    """At most `limit` of the images, selected with the seed; a stream, whose length is unknown, as it is."""
    if not hasattr(images, "__len__") or len(images) <= limit or isinstance(images, str | dict):
        return images
    rows = draw_rows(len(images), limit, seed)
    if isinstance(images, Tensor | np.ndarray):
        return images[rows]
    select = getattr(images, "select", None)  # of a data set
    return select(rows) if select else [images[row] for row in rows]


@dataclass
class EnergyScoringOutput(BaseOutput):
    """Output of `EnergyScoringPipeline`, on the CPU, in the order of the images; tensors but `maps` are of shape (N,).

    Attributes:
        energies: ``E(x, 0)``, low = likely, float32.
        scores: The chosen score, larger = more out of distribution, float64.
        p_values: Conformal p-values, in (0, 1], small = out of distribution; None before a calibration.
        is_ood: Whether ``p_values <= target_fpr``; None before a calibration.
        contributions: With a density score, a text per image, flagged or not: the statistic that is farthest from
            in-distribution images, and on which side. With ``density_encoder`` it names the features where their
            distance is the larger term.
        maps: On request, how unusual each pixel is, larger = more unusual, shape (N, H, W), float32.
    """

    energies: Tensor
    scores: Tensor
    p_values: Tensor | None = None
    is_ood: Tensor | None = None
    contributions: list[str] | None = None
    maps: Tensor | None = None


def explain(statistics: dict[str, Tensor], score: str, fitted: Fitted) -> list[str]:
    """For each image what is farthest from the reference; see `EnergyScoringOutput.contributions`."""
    neighbours = fitted.neighbours(SCORES[score].statistics)
    sentences = neighbours.explain(statistics)
    if not SCORES[score].needs_encoder:
        return sentences
    density = fitted.moments["density"].standardise(neighbours.distance(statistics))
    features = fitted.moments["encoder"].standardise(SCORES["encoder"].function(statistics, fitted))
    return [
        f"farthest statistic: the encoder's features, their distance {abs(b):.1f} standard deviations "
        f"{'above' if b > 0 else 'below'} the reference's mean"
        if b > a
        else sentence
        for a, b, sentence in zip(density.tolist(), features.tolist(), sentences, strict=True)
    ]


class EnergyScoringPipeline(EBMPipeline):
    """Score samples by how unlike the training data they are.

    Args:
        energy_model: Any energy of the package.
        scheduler: Of the generation pipeline; a `DDAEBMScheduler` (or a stock one made from it) has the noise levels.
        generator_model: For the scores with a reconstruction; of Dual-MCMC Teaching they need the next two as well.
        inference_model: See there.
        latent_scheduler: See there.
        image_processor: Preparation of images; None = one of the energy's size, padded as in training.
        image_encoder: Network for the scores ``encoder`` and ``density_encoder``: the Hub id or folder of a
            transformers vision model, such a model, or any module that maps images in [-1, 1], (B, C, H, W), to
            features (B, D); see `hf_ebm.scoring.encoder.ImageEncoder`. It is an attribute, not a component: saved are
            its id, commit and a hash of its weights, in ``calibration.json``. Without one, the Hub's that a calibration
            names is fetched when one of these scores is asked for.
        feature_extractor: Image processor of a transformers model that is given as `image_encoder`.
    """

    method_name = "an energy for scoring"
    model_cpu_offload_seq = "inference_model->generator_model->energy_model"
    _loads_any = True
    _extra_files = (FILE_NAME, REFERENCE_FILE)
    _optional_components = ["scheduler", *RECONSTRUCTION, "image_processor"]  # noqa: RUF012 (diffusers' own form)

    def __init__(
        self,
        energy_model: EnergyModel,
        scheduler: SchedulerMixin | None = None,
        generator_model: ModelMixin | None = None,
        inference_model: ModelMixin | None = None,
        latent_scheduler: EnergySampler | None = None,
        image_processor: EBMImageProcessor | None = None,
        image_encoder: str | Path | nn.Module | None = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__()
        check_energy_model(energy_model)
        self.register_modules(
            energy_model=energy_model,
            scheduler=scheduler,
            generator_model=generator_model,
            inference_model=inference_model,
            latent_scheduler=latent_scheduler,
            image_processor=self.make_image_processor(image_processor, energy_model),
        )
        self.calibration: Calibration | None = None
        self.image_encoder, self.feature_extractor = image_encoder, feature_extractor
        self._encoder: tuple[Any, Any, ImageEncoder] | None = None  # of these two, once it was needed
        self.check_encoded()

    @classmethod
    def component_names(cls) -> list[str]:
        """What is saved and loaded: the encoder is not."""
        return [name for name in super().component_names() if name not in ENCODER]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load from a folder or Hub repository of any of our pipelines, with its calibration where there is one.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            kwargs: As for every diffusers pipeline, ``image_encoder`` and ``feature_extractor`` (see the class), and
                ``load_reconstruction`` (default False): whether to load what
                the scores with a reconstruction need (the generator, and of Dual-MCMC Teaching the inference model
                and the z-chain's scheduler); ``"auto"`` = if it exists.

        Raises:
            ValueError: If what is there cannot be used, or lacks the components that ``load_reconstruction=True`` asks
                for.
            OSError: If nothing is found, or the Hub cannot be reached.
        """
        pretrained_model_name_or_path = expand_home(pretrained_model_name_or_path)
        of_encoder = {name: kwargs.pop(name) for name in ENCODER if name in kwargs}
        load_reconstruction = kwargs.pop("load_reconstruction", False)
        if not isinstance(load_reconstruction, bool) and load_reconstruction != "auto":
            raise ValueError(f"load_reconstruction must be True, False or 'auto', got {load_reconstruction!r}.")
        if not load_reconstruction:
            kwargs = {**dict.fromkeys(RECONSTRUCTION), **kwargs}
        folder = cls.find_folder(pretrained_model_name_or_path, kwargs)
        index = read_index(folder / INDEX, kwargs.get("trust_remote_code", False))
        given = {name for name, value in kwargs.items() if value is not None}
        there = given | {*wanted_components(index, RECONSTRUCTION, kwargs)}
        methods = generation_pipelines()
        source = methods.get(str(index["_class_name"]))  # None: a scorer, which was saved with what it needs
        needed = there if source is None else {*source.reconstruction_components}
        unused = {*RECONSTRUCTION} - (needed if needed <= there else set())
        kwargs = {**dict.fromkeys(unused), **kwargs}
        pipeline = super().from_pretrained(folder, **kwargs)
        for name, value in of_encoder.items():
            setattr(pipeline, name, value)
        pipeline.check_encoded()
        if load_reconstruction is True and not pipeline.can_reconstruct:
            choices = [{*cls.reconstruction_components} - there for cls in ([source] if source else methods.values())]
            lacking = min(filter(None, choices), key=len, default=set())
            why = f"need {sorted(lacking)}, and this {index['_class_name']} lacks them"
            raise ValueError(
                f"load_reconstruction must be False (or 'auto') for {pretrained_model_name_or_path}: scores with a "
                f"reconstruction {why if lacking else 'are not defined for its method'}; leave load_reconstruction "
                "out, or give another model."
            )
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline.calibration = Calibration.load(folder)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Score by another pipeline's networks, shared with it, and by its calibration if it scores as well.

        Args:
            pipeline: Any of our pipelines.
            kwargs: As for every diffusers pipeline: components in place of its own, ``dtype``, ...
        """
        shared = {name: part for name, part in pipeline.components.items() if name in cls.component_names()}
        if not isinstance(pipeline, cls):
            shared |= dict.fromkeys({*RECONSTRUCTION} - {*pipeline.reconstruction_components})
        of_encoder = {name: kwargs.pop(name, getattr(pipeline, name, None)) for name in ENCODER}
        scorer = super().from_pipe(pipeline, **{**shared, **kwargs})
        for name, value in of_encoder.items():
            setattr(scorer, name, value)
        scorer.check_encoded()
        scorer.calibration = getattr(pipeline, "calibration", None)
        return scorer

    def save_extra_files(self, folder: Path) -> None:
        """Save the calibration as ``calibration.json``."""
        if self.calibration is not None:
            self.calibration.save(folder)

    def check_encoded(self) -> None:
        """Raise a `ValueError` if there is an encoder, and no images for it."""
        if self.image_encoder is not None and len(self.sample_shape) != 3:
            raise ValueError("image_encoder must be None for a model of vectors; it encodes images.")

    def find_encoder(self) -> ImageEncoder:
        """The encoder that was given, or else the Hub's that the calibration names; it is loaded once.

        Raises:
            ValueError: If there is none, or it cannot be used.
        """
        saved = None if self.calibration is None else self.calibration.encoder
        if self.image_encoder is None and saved is not None and saved["id"] is not None:
            encoder = ImageEncoder.load(saved["id"], saved["revision"])
            self.image_encoder, self.feature_extractor = encoder.module, encoder.feature_extractor
            self._encoder = (self.image_encoder, self.feature_extractor, encoder)
        elif self.image_encoder is None:
            made = "" if saved is None else f" The calibration was made with {saved['name']}, which is not on the Hub."
            raise ValueError(
                f"the scores 'encoder' and 'density_encoder' need image_encoder= (--encoder), and none was given.{made}"
            )
        if self._encoder is None or self._encoder[:2] != (self.image_encoder, self.feature_extractor):
            given: Any = self.image_encoder
            by_name = isinstance(given, str | Path)
            encoder = (
                ImageEncoder.load(str(expand_home(given))) if by_name else ImageEncoder(given, self.feature_extractor)
            )
            self._encoder = (given, self.feature_extractor, encoder)
        encoder = self._encoder[2]
        if execution_device(encoder.module) != self._execution_device:
            encoder.module.to(self._execution_device)
        return encoder

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        return self.energy_model.sample_shape

    @property
    def tasks(self) -> list[str]:
        """It scores, and generates nothing."""
        return ["score"]

    @property
    def data_noise_std(self) -> float:
        """As of the generation pipeline."""
        q = self.coefficients
        return super().data_noise_std if q is None else (1.0 - q.alphas_cumprod[0].item()) ** 0.5

    @property
    def can_reconstruct(self) -> bool:
        """Whether the scores with a reconstruction are possible: if a method reconstructs by these components."""
        return self.find_reconstruction_error(0) is not None

    @property
    def has_noise_levels(self) -> bool:
        """Whether the energy has noise levels, ``E(x, t)``."""
        return getattr(self.energy_model.config, "num_timesteps", 1) > 1

    @property
    def available_scores(self) -> list[str]:
        """Scores that the loaded components allow."""
        names = [name for name, score in SCORES.items() if not score.needs_reconstruction]
        if len(self.sample_shape) != 3:
            names.remove("complexity")
        if not self.has_noise_levels:
            names.remove("multiscale")
        if self.can_reconstruct:
            names += [name for name, score in SCORES.items() if score.needs_reconstruction]
        return names if self.image_encoder is not None else [name for name in names if not SCORES[name].needs_encoder]

    def check_score(self, score: str) -> None:
        """Raise a `ValueError` if `score` is unknown, not possible here, or needs a calibration first."""
        if score not in SCORES:
            raise ValueError(f"score must be one of {list(SCORES)}, got {score!r}.")
        if SCORES[score].needs_encoder and self.calibration is not None:
            self.calibration.check_has(score)
            encoder = self.find_encoder()
            if self.calibration.encoder is not None:
                encoder.check_is(self.calibration.encoder)
        if score not in self.available_scores:
            raise ValueError(
                f"score {score!r} cannot be computed from this model's components; they allow {self.available_scores}. "
                "'reconstruction', 'combined' and 'density_full' need its generator (in Python "
                "load_reconstruction=True, where it has one; the commands do so), 'multiscale' an energy with noise "
                "levels, 'complexity' images, 'encoder' and 'density_encoder' images and image_encoder= (--encoder)."
            )
        if SCORES[score].needs_fitting and self.calibration is None:
            raise ValueError(f"score {score!r} needs in-distribution statistics: {how_to_calibrate()}.")
        if self.calibration is not None:
            self.calibration.check_has(score)

    @property
    def available_maps(self) -> list[str]:
        """Kinds of heat maps that the loaded components allow, the better one first; none for vectors."""
        if len(self.sample_shape) != 3:
            return []
        possible = {
            "reconstruction": self.find_reconstruction(0) is not None,
            "terms": has_energy_terms(self.energy_model),
        }
        return [kind for kind in MAP_KINDS if possible[kind]]

    @property
    def calibrated_maps(self) -> list[str]:
        """Those of them that the calibration standardises."""
        moments = {} if self.calibration is None else self.calibration.pixel_moments
        return [kind for kind in self.available_maps if kind in moments]

    def choose_maps(self, output_maps: bool | str) -> str | None:
        """The kind of heat maps for `output_maps` of a call; None = no maps.

        Raises:
            ValueError: If they are not possible here, or need a calibration first.
        """
        if output_maps is False:
            return None
        if output_maps is not True and output_maps not in MAP_KINDS:
            raise ValueError(f"output_maps must be True, False or one of {list(MAP_KINDS)}, got {output_maps!r}.")
        if len(self.sample_shape) != 3:
            raise ValueError(
                f"output_maps must be False for a model of vectors, got {output_maps!r}: heat maps are of images."
            )
        available = self.available_maps
        if not available or (output_maps is not True and output_maps not in available):
            raise ValueError(
                f"output_maps={output_maps!r} is not possible with this model's components, which allow {available}: "
                "'reconstruction' needs its generator (load_reconstruction=True, where it has one), 'terms' an energy "
                "1/2 ||x - U(x, t)||^2, as DDAEBM's."
            )
        if self.calibration is None:
            raise ValueError(f"output_maps needs in-distribution statistics of each pixel: {how_to_calibrate()}.")
        calibrated = self.calibrated_maps
        if not calibrated or (output_maps is not True and output_maps not in calibrated):
            raise ValueError(
                f"output_maps={output_maps!r} needs statistics of each pixel, and the calibration has those of "
                f"{sorted(self.calibration.pixel_moments)}, while this model allows {available}; calibrate again: "
                f"{how_to_calibrate()}."
            )
        return calibrated[0] if output_maps is True else output_maps

    def __call__(
        self,
        images: Any,
        score: str | None = None,
        batch_size: int = 256,
        image_column: str | None = None,
        num_workers: int = 0,
        return_dict: bool = True,
        output_maps: bool | str = False,
    ) -> EnergyScoringOutput | tuple[Tensor, ...]:
        """Energies and scores of images.

        Args:
            images: PIL images, arrays, or tensors in [0, 1]; paths or URLs, one or a list; or a `datasets.Dataset` or
                streaming `IterableDataset`, which is read batch by batch. All are prepared by the image processor, as
                in training; which files are opened is in `hf_ebm.data.image_files`.
            score: A name of `hf_ebm.scoring.scores.SCORES`; larger = more out of distribution. None = `default_score`:
                ``density`` once it is calibrated, else ``energy``.
            batch_size: Images in memory at a time; it does not change a score.
            image_column: Of a data set; None = its only image column.
            num_workers: Processes that open and prepare the next batches meanwhile; 0 = none. Not for streaming sets.
            return_dict: Whether to return an `EnergyScoringOutput` or a tuple.
            output_maps: Whether to return heat maps, which need a calibration: True = the first kind of
                `hf_ebm.scoring.maps.MAP_KINDS` that is possible, or the name of one. ``"reconstruction"`` needs
                ``load_reconstruction=True``; ``"terms"`` an energy ``1/2 ||x - U(x, t)||^2``, as DDAEBM's.

        Raises:
            ValueError: If an image cannot be read or does not fit, or the score or the maps cannot be computed.
        """
        score = self.default_score if score is None else score
        self.check_score(score)
        kind = self.choose_maps(output_maps)
        names = self.needed(score) | (set() if kind is None else {f"{kind}_map"})
        statistics = self.compute_statistics(images, names, batch_size, image_column, num_workers)
        maps = None if kind is None else statistics.pop(f"{kind}_map")
        output = self.judge(statistics, score)
        if SCORES[score].uses_reference and score != "encoder" and self.calibration is not None:
            output.contributions = explain(statistics, score, self.calibration.fitted)
        output.maps = maps
        return output if return_dict else output.to_tuple()

    def needed(self, *scores: str) -> set[str]:
        """The statistics that `judge` needs for these scores, of those that the model has."""
        names = {"energy", *(name for score in scores for name in SCORES[score].statistics)}
        if len(self.sample_shape) != 3:
            names.discard("compressed_size")
        return names if has_class_scores(self.energy_model) else names - {*CLASS_STATISTICS}

    def judge(self, statistics: dict[str, Tensor], score: str, ids: Sequence[Any] | None = None) -> EnergyScoringOutput:
        """The score of samples from their statistics, and once calibrated its p-values and decisions.

        Args:
            statistics: The statistics that `needed` names, each of shape (N,) or (N, T).
            score: The score.
            ids: Names of the samples for an error message; None = their numbers.

        Raises:
            ValueError: If a compute or score is NaN.
        """
        for name, values in statistics.items():
            check_not_nan(name, values, ids)
        scores = SCORES[score].function(statistics, Fitted() if self.calibration is None else self.calibration.fitted)
        check_not_nan(f"score {score!r}", scores, ids)
        if self.calibration is None:
            return EnergyScoringOutput(statistics["energy"], scores)
        p_values = self.calibration.p_values(score, scores)
        return EnergyScoringOutput(statistics["energy"], scores, p_values, p_values <= self.calibration.target_fpr)

    @property
    def default_score(self) -> str:
        """The score that is used where none is named: ``density`` once it is calibrated, else ``energy``."""
        return "energy" if self.calibration is None else self.calibration.default_score

    def threshold(self, score: str | None = None) -> float:
        """The largest score that is not flagged as OOD; None = of the `default_score`.

        Raises:
            ValueError: If nothing was calibrated yet, or not this score.
        """
        if self.calibration is None:
            raise ValueError("there is no threshold before a calibration: call pipe.calibrate(held_out) first.")
        return self.calibration.threshold(self.default_score if score is None else score)

    def calibrate(
        self,
        images: Any,
        target_fpr: float = 0.05,
        batch_size: int = 256,
        image_column: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
        reference: Any = None,
    ) -> Calibration:
        """Fit statistics and thresholds of all available scores on held-out in-distribution data.

        Use images that the model was not trained on: those it was trained on have lower energies. Scores
        with fitted statistics (``multiscale``, ``typicality``, ``complexity``, ``combined``) fit them on a
        random half of the images and calibrate on the other half, the other scores on all images. So the
        p-values of n calibration scores are exact, ``P(p <= a) = floor(a (n + 1)) / (n + 1)``, on average
        over calibration sets; see `hf_ebm.scoring.calibration`. What is kept of an image are a few numbers;
        the calibration is saved with the pipeline.

        Args:
            images, batch_size, image_column, num_workers: As for scoring.
            target_fpr: False positive rate: the share of in-distribution samples to flag as OOD, in (0, 1). It needs
                ``1 / target_fpr - 1`` images, and twice as many for the scores with fitted statistics, which are left
                out with a warning otherwise.
            seed: Seed of the split, and of the noise in the statistics.
            reference: Further in-distribution images, with which the density scores and those with an encoder compare,
                as `images`; at most 2,000 are kept, and the encoder's features of at most 10,000. The training images
                are the natural choice. None = a random half of `images`. Heat maps are standardised by at most 500 of
                them, or of `images`.

        Raises:
            ValueError: If there are too few images for `target_fpr`, one cannot be read, or an energy is NaN.
        """
        check_fraction("target_fpr", target_fpr)
        seed, batch_size = check_seed("seed", seed), check_count("batch_size", batch_size, 1)
        statistics = self.compute_statistics(
            images, self.needed(*self.available_scores), batch_size, image_column, num_workers, seed
        )
        of_reference, of_pixels = None, images
        if reference is not None:
            names = self.needed(*(name for name in self.available_scores if SCORES[name].uses_reference))
            options = (batch_size, image_column, num_workers, seed)
            of_pixels = draw_samples(reference, MAX_DENSITY_REFERENCE, seed)
            of_reference = self.compute_statistics(of_pixels, names - {FEATURES}, *options)
            if FEATURES in names:
                bank = draw_samples(reference, MAX_BANK, seed)
                of_reference |= self.compute_statistics(bank, {FEATURES}, *options)
        preprocessing = "as given" if self.image_processor is None else self.image_processor.describe()
        calibration = Calibration.fit(statistics, target_fpr, seed, preprocessing, of_reference)
        if "encoder" in calibration.reference:
            calibration = dataclasses.replace(calibration, encoder=self.find_encoder().describe())
        elif self.calibration is not None and self.calibration.encoder is not None:
            logger.warning(
                "the new calibration has no scores with an encoder, which the earlier one has with %s; give "
                "image_encoder= (--encoder) to keep them.",
                self.calibration.encoder["name"],
            )
        moments = self.fit_maps(draw_samples(of_pixels, MAX_MAP_REFERENCE, seed), batch_size, image_column, seed)
        self.calibration = dataclasses.replace(calibration, pixel_moments=moments)
        return self.calibration

    def fit_maps(self, images: Any, batch_size: int, image_column: str | None, seed: int) -> dict[str, PixelMoments]:
        """Mean and standard deviation of the pixels' values for all possible kinds of heat maps.

        Of the first `MAX_MAP_REFERENCE` of these images. A kind whose values are the same for all is left out with a
        warning.
        """
        values = {kind: self.make_pixel_values(kind, seed) for kind in self.available_maps}
        parts: dict[str, list[Tensor]] = {kind: [] for kind in values}
        batches = sample_batches(images, batch_size, self.sample_shape, self.image_processor, image_column)
        left = MAX_MAP_REFERENCE if values else 0
        while left > 0 and (x := next(batches, None)) is not None:
            for kind, function in values.items():
                parts[kind].append(function(x[:left]).cpu())
            left -= len(x)
        self.maybe_free_model_hooks()
        moments = {}
        for kind, found in parts.items():
            try:
                moments[kind] = PixelMoments.of(torch.cat(found))
            except ValueError as error:
                logger.warning("heat maps %r are left out: %s", kind, error)
        return moments

    def make_pixel_values(self, kind: str, seed: int) -> Callable[[Tensor], Tensor]:
        """``x -> the values of its pixels`` for a kind of heat maps, shape (B, K, H, W), where the model is."""
        if kind == "terms":
            return functools.partial(energy_term_values, self.energy_model)
        reconstruct = self.find_reconstruction(seed)
        assert reconstruct is not None
        return functools.partial(reconstruction_values, self.energy_model, reconstruct=reconstruct)

    def compute_statistics(
        self,
        images: Any,
        names: Collection[str],
        batch_size: int = 256,
        image_column: str | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """The named statistics of all images, batch by batch, each of shape (N,) or (N, T).

        Raises:
            ValueError: If an image cannot be read or does not fit, or one of its statistics is NaN.
        """
        batch_size = check_count("batch_size", batch_size, 1)
        compute = self.make_statistics_function(names, seed)
        batches = sample_batches(images, batch_size, self.sample_shape, self.image_processor, image_column, num_workers)
        bar = self.progress_bar(batches)
        if not getattr(bar, "desc", None):  # the caller's own, by `set_progress_bar_config`, stays
            bar.set_description_str("scoring batches", refresh=False)
        parts = [statistics for _, statistics in statistics_of_batches(bar, compute)]
        self.maybe_free_model_hooks()
        if not parts:
            raise ValueError("images is empty; give at least one image.")
        statistics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in statistics.items():
            check_not_nan(name, values)
        return statistics

    def make_statistics_function(
        self, names: Collection[str], seed: int | None = None
    ) -> Callable[[Tensor], dict[str, Tensor]]:
        """``x -> the named statistics``, each (B,) or (B, T), of samples in the model's range, shape (B, ...).

        See `hf_ebm.scoring.statistics`. What all batches share is made once.

        Args:
            names: Which statistics, and maps: ``terms_map``, ``reconstruction_map``, each (B, H, W).
            seed: Of their noise; None = the calibration's, 0 without one.
        """
        if seed is None:
            seed = 0 if self.calibration is None else self.calibration.seed
        coefficients = self.coefficients if "energies" in names else None
        reconstructs = not {*RECONSTRUCTIONS}.isdisjoint(names)
        reconstruction_error = self.find_reconstruction_error(seed) if reconstructs else None
        encoder = self.find_encoder() if FEATURES in names else None
        compute = make_statistics_function(self.energy_model, names, seed, coefficients, reconstruction_error, encoder)
        kinds = [kind for kind in MAP_KINDS if f"{kind}_map" in names]
        if not kinds or self.calibration is None:
            return compute
        moments = self.calibration.pixel_moments
        values = {kind: self.make_pixel_values(kind, seed) for kind in kinds}

        def compute_with_maps(x: Tensor) -> dict[str, Tensor]:
            return {**compute(x), **{f"{kind}_map": moments[kind].heat_maps(of(x)) for kind, of in values.items()}}

        return compute_with_maps

    def find_reconstruction_error(self, seed: int) -> ReconstructionError | None:
        """The reconstruction error of the method that can reconstruct with these components; None if none can.

        Methods that need more of them are asked first.
        """
        methods = sorted(generation_pipelines().values(), key=lambda cls: -len(cls.reconstruction_components))
        errors = (cls.make_reconstruction_error(self.components, seed) for cls in methods)
        return next((error for error in errors if error is not None), None)

    def find_reconstruction(self, seed: int) -> Callable[[Tensor], Tensor] | None:
        """``x -> reconstructions`` of the method that can with these components; None if none can."""
        methods = sorted(generation_pipelines().values(), key=lambda cls: -len(cls.reconstruction_components))
        found = (cls.make_reconstruction(self.components, seed) for cls in methods)
        return next((function for function in found if function is not None), None)

    @property
    def coefficients(self) -> Any:
        """The noise levels the energy was trained on; None for an energy without any."""
        if not self.has_noise_levels:
            return None
        if self.scheduler is None:
            raise ValueError("the energy has noise levels, and this pipeline was loaded without the scheduler's.")
        own = getattr(self.scheduler, "coefficients", None)  # a stock scheduler has only the chain's settings
        return DDAEBMScheduler.from_config(self.scheduler.config).coefficients if own is None else own
