"""The terms of labels against closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_ebm import MLPEnergyConfig, MLPEnergyModel
from hf_ebm.losses import conditional as L

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [1.0, 3.0, 0.5], [5.0, 1.0, 1.0]])


def test_classification_term_is_the_mean_over_labelled_samples():
    labels = torch.tensor([0, 2, -1, -1])
    expected = (math.log(math.e**2 + 1 + 1 / math.e) - 2.0 + math.log(3.0)) / 2
    assert_close(L.classification_term(LOGITS, labels).item(), expected, rtol=1e-5, atol=0)


def test_classification_term_without_labels_is_zero_with_a_gradient():
    logits = LOGITS.clone().requires_grad_(True)
    term = L.classification_term(logits, torch.full((4,), -1))
    term.backward()
    assert term.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_classification_gradient_is_the_probability_minus_the_label():
    logits, labels = LOGITS.clone().requires_grad_(True), torch.tensor([1, -1, 2, 0])
    L.classification_term(logits, labels).backward()
    expected = (LOGITS.softmax(1) - torch.eye(3)[labels]) / 3
    expected[1] = 0.0
    assert_close(logits.grad, expected)


def test_drop_labels():
    labels = torch.arange(10).repeat(2000)
    dropped = L.drop_labels(labels, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(dropped, L.drop_labels(labels, 0.1, torch.Generator().manual_seed(0)))
    gone = dropped < 0
    assert abs(gone.float().mean().item() - 0.1) < 4 * math.sqrt(0.09 / len(labels))
    assert torch.equal(dropped[~gone], labels[~gone]) and (dropped[gone] == -1).all()
    assert torch.equal(L.drop_labels(labels, 0.0), labels) and (L.drop_labels(labels, 1.0) == -1).all()
    assert labels.min() == 0  # the argument is not changed
    for probability in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="label_dropout must be a probability from 0 to 1, got"):
            L.drop_labels(labels, probability)


def test_unscaled_guided_energy_is_that_of_the_forward_pass():
    tau = 0.3
    model = MLPEnergyModel(MLPEnergyConfig(num_classes=3, hidden_dims=(8,), energy_temperature=tau))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, -1, 1])
    output = model(x)
    expected = model(x, class_labels=labels).energy
    assert_close(L.guided_energy(output.energy, output.logits, labels, tau, 1.0), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_energy_is_that_of_the_tilted_density(scale):
    """exp(-E / tau) is p(x) p(y | x)^s, on 1-D Gaussians whose p(y | x) is known."""
    tau, x = 0.2, torch.linspace(-3, 3, 7)
    means, labels = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0, 1, 2, 0, 1, 2, -1])
    log_joint = -0.5 * (x[:, None] - means).square()
    log_marginal = log_joint.logsumexp(1)
    energy = L.guided_energy(-tau * log_marginal, log_joint, labels, tau, scale)
    p_y = (log_joint - log_marginal[:, None]).exp()[torch.arange(7), labels.clamp(min=0)]
    p_y = torch.where(labels < 0, 1.0, p_y)
    assert_close((-energy / tau).exp(), log_marginal.exp() * p_y**scale, rtol=1e-4, atol=1e-7)
