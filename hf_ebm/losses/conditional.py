"""The terms that labels add to the objectives, for every method: class scores l (B, K), labels y (B,), temperature tau.

    classification:  classification_weight * mean cross_entropy(l(x_t, t), y)        on real, noised samples
    label dropout:   y -> -1 with probability p, so that a null class and the marginal are trained too
    energies:        E(x, t, y) = E(x, t) - tau log p(y | x_t), the marginal E(x, t) where y = -1

The losses of a method take the energies of the samples' own labels, the same label for a real sample and the generated
one it is contrasted with. Their contrast leaves the classes' offsets free: an energy may add any function of x to all
l_y and subtract it from E_base, and any constant to one l_y. With ``classification_weight=0`` neither the marginal nor
p(y | x) means anything. A label of -1 is "no label" everywhere, so that partly labelled data train the marginal.

Source: the terms are ours; classifying with an energy is Grathwohl et al., ICLR 2020, and label dropout and guidance
are Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_term(logits: Tensor, class_labels: Tensor) -> Tensor:
    """``mean -log p(y | x_t)`` over the labelled samples, a scalar; 0 if there are none.

    Args:
        logits: ``l_y(x_t, t)`` of real, noised samples, shape (B, K).
        class_labels: y, before label dropout, shape (B,), int64; -1 = no label.
    """
    total = F.cross_entropy(logits.float(), class_labels, ignore_index=-1, reduction="sum")
    return total / (class_labels >= 0).sum().clamp(min=1)


def drop_labels(class_labels: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Each label, or -1 with `probability`, independently: shape (B,), a new tensor.

    Args:
        class_labels: y, shape (B,).
        probability: Within [0, 1].
        generator: Random number generator, on any device.

    Raises:
        ValueError: If `probability` is none.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"label_dropout must be a probability from 0 to 1, got {probability!r}.")
    device = class_labels.device if generator is None else generator.device
    uniform = torch.rand(class_labels.shape, generator=generator, device=device).to(class_labels.device)
    return torch.where(uniform < probability, -1, class_labels)


def log_class_probability(logits: Tensor, class_labels: Tensor) -> Tensor:
    """``log p(y | x_t)``, shape (B,), and 0 where y = -1, in float32.

    Args:
        logits: ``l_y(x_t, t)``, shape (B, K).
        class_labels: y, shape (B,), int64.
    """
    log_p = logits.float().log_softmax(dim=1).gather(1, class_labels.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(class_labels < 0, 0.0, log_p)


def guided_energy(
    marginal: Tensor, logits: Tensor, class_labels: Tensor, temperature: float, guidance_scale: float
) -> Tensor:
    """``E + s (E_y - E)``, shape (B,): the energy of ``p(x) p(y | x)^s``, for chains. s = 1 is E_y, s = 0 is E.

    Args:
        marginal: ``E(x, t)``, shape (B,).
        logits: ``l_y(x_t, t)``, shape (B, K).
        class_labels: y, shape (B,), int64; -1 = unguided.
        temperature: tau, the energy's ``config.energy_temperature``.
        guidance_scale: s.
    """
    return marginal - guidance_scale * temperature * log_class_probability(logits, class_labels)
