"""Energies with a label: one network gives the energy of each class, class probabilities and the marginal energy.

With phi(x, t) the last features of the network, averaged over the image or its cells, and tau the
temperature of the method's energy (p ~ exp(-E / tau)), the class scores and the energies are

    l_y(x, t)  = <v_y, phi(x, t)> + b_y                           in float32
    E(x, t, y) = E_base(x, t) - tau l_y(x, t)
    E(x, t)    = E_base(x, t) - tau logsumexp_y l_y(x, t)         the marginal: exp(-E / tau) summed over the classes
    p(y | x_t) = softmax_y l_y(x, t)

so that scores are of order one whatever the scale of the energy. The contrast of real and generated samples alone does
not determine the offsets between classes: p(y | x) and the marginal mean something only after training with
`hf_ebm.losses.conditional.classification_term`.

As the joint energy of Grathwohl et al., "Your Classifier Is Secretly an Energy Based Model and You Should Treat It Like
One", ICLR 2020, with an added E_base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_ebm.models.class_labels import check_classes
from hf_ebm.utils.validation import check_config_types, check_count, check_positive

NORM_EPS = 1e-8  # below the variance of features (1e-3 for the digits), which torch's 1e-5 need not be
DEFAULT_ID2LABEL = {0: "LABEL_0", 1: "LABEL_1"}  # of every config of transformers that sets none


class ConditionalEnergyConfig(PreTrainedConfig):
    """Base of the energies' configs: the settings of the classes.

    The names of the classes are ``id2label`` and ``label2id``, and their number is ``num_labels`` too, as in every
    image classifier of transformers. The file of an unconditional energy has none of these settings.

    Args:
        num_classes: Number of classes; 0 = unconditional.
        class_scores: False: the energy does not depend on the label. It accepts labels, has no logits, and E(x, t, y)
            is E(x, t). The labels are then used by the generator and the inference model only.
        class_prior: The frequency of each class in the training set, from which labels are sampled; None = unknown.
        energy_temperature: tau > 0 of p ~ exp(-E / tau): 1 for DDAEBM, ``(noise_std / step_size)^2`` of the x-chain for
            Dual-MCMC Teaching.
        pseudo_label_centres: Where the classes are clusters: the centre of each, in the values of ``pixel_values``,
            flattened; see `hf_ebm.data.pseudo_labels`. None = the classes are labels.
    """

    num_classes: int = 0
    class_scores: bool = True
    class_prior: list[float] | tuple[float, ...] | None = None
    energy_temperature: float = 1.0
    pseudo_label_centres: list[list[float]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_count("num_classes", self.num_classes, 0)
        self.id2label: Any
        self.label2id: Any
        if self.id2label is None and self.label2id is not None:
            self.id2label = {index: name for name, index in self.label2id.items()}
        if self.num_classes and self.id2label is None:
            kwargs.setdefault("num_labels", self.num_classes)
        if (given := kwargs.get("num_labels")) is not None and self.num_classes and given != self.num_classes:
            raise ValueError(
                f"num_labels must be num_classes={self.num_classes}, got {given}; leave out one of the two."
            )
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.check_classes()

    def check_classes(self) -> None:
        """Raise a `ValueError` unless the settings of the classes fit each other."""
        check_config_types(ConditionalEnergyConfig, vars(self))
        names = self.id2label or {}
        if not self.num_classes and names != DEFAULT_ID2LABEL:
            raise ValueError(
                f"num_classes must be the number of labels, got 0 with id2label={names!r}; set "
                f"num_classes={len(names)}, or leave the labels out."
            )
        if self.num_classes and sorted(names) != list(range(self.num_classes)):
            raise ValueError(
                f"id2label must map 0..{self.num_classes - 1} to names for num_classes={self.num_classes}, got "
                f"{names!r}; name each class."
            )
        check_classes(self.num_classes, self.class_prior, list(names.values()) if self.num_classes else None)
        if self.num_classes and self.label2id != {name: index for index, name in names.items()}:
            raise ValueError(
                f"label2id must be the inverse of id2label={names!r}, got {self.label2id!r}; leave it out."
            )
        check_positive("energy_temperature", self.energy_temperature)
        centres = self.pseudo_label_centres
        if centres is not None and (len(centres) != self.num_classes or len({len(row) for row in centres}) > 1):
            raise ValueError(
                f"pseudo_label_centres must be num_classes={self.num_classes} rows of one length, got {len(centres)} "
                f"rows of lengths {sorted({len(row) for row in centres})}; fit them with hf_ebm.data.pseudo_labels."
            )

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that a config file holds."""
        values = super().to_diff_dict()
        if not self.num_classes:
            for name in ConditionalEnergyConfig.__annotations__:
                values.pop(name, None)
        return values


def conditional_energy(base: Tensor, logits: Tensor, class_labels: Tensor, temperature: float) -> Tensor:
    """``E_base - tau l_y``, and ``E_base - tau logsumexp_y l_y`` of the samples without a label (-1), shape (B,).

    Args:
        base: ``E_base(x, t)``, shape (B,).
        logits: ``l_y(x, t)``, shape (B, num_classes).
        class_labels: y, shape (B,), int64.
        temperature: tau.
    """
    of_class = logits.gather(1, class_labels.clamp(min=0)[:, None]).squeeze(1)
    return base - temperature * torch.where(class_labels < 0, logits.logsumexp(dim=1), of_class)


class ClassScores(nn.Linear):
    """``l_y = <v_y, phi> + b_y``, (B, C) -> (B, num_classes), in float32 whatever the dtype of the network is.

    v and b start at zero, so that the energy starts as the unconditional one minus ``tau log(num_classes)``, and
    p(y | x) as uniform. They have no spectral norm.

    Args:
        num_features: C.
        num_classes: Number of classes.
        layer_norm: Whether phi is standardised over its features, each then with a gain of its own. The features of a
            network with spectral norm are small and nearly constant: without this they do not separate the classes.
    """

    def __init__(self, num_features: int, num_classes: int, layer_norm: bool = False) -> None:
        super().__init__(num_features, num_classes)
        self.gain = nn.Parameter(torch.ones(num_features)) if layer_norm else None
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, phi: Tensor) -> Tensor:
        """Scores of features of shape (B, C)."""
        with torch.autocast(phi.device.type, enabled=False):
            phi = phi.to(torch.promote_types(phi.dtype, torch.float32))
            if self.gain is not None:
                phi = F.layer_norm(phi, phi.shape[1:], self.gain.to(phi.dtype), eps=NORM_EPS)
            return F.linear(phi, self.weight.to(phi.dtype), self.bias.to(phi.dtype))


def register_image_classifier(config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]) -> None:
    """Make `AutoModelForImageClassification` and ``pipeline("image-classification")`` load this energy.

    They load a `model_class`; one without class scores is a `ValueError`.
    """

    def from_pretrained(_cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = model_class.from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.class_scores is None:
            raise ValueError(
                f"{name} must be an energy with class scores to classify images, got num_classes="
                f"{model.config.num_classes}, class_scores={model.config.class_scores}; train one with classes, or "
                "load it with AutoModel for its energies."
            )
        return loaded

    members = {"from_pretrained": classmethod(from_pretrained), "__module__": model_class.__module__}
    classifier = type(model_class.__name__, (model_class,), members)
    AutoModelForImageClassification.register(config_class, classifier)
    # Its pipeline compares the class's name with these, and logs an error if it is not there.
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__
