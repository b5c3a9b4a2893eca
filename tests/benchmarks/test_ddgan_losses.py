"""The DDGAN objective against closed forms: the optimal discriminator, gradients of the losses, R1."""

import math

import pytest
import torch
from ddgan_losses import discriminator_loss, generator_loss, r1_penalty
from torch.testing import assert_close

from hf_ebm.diffusion import DiffusionCoefficients


def gaussian_log_ratio(x, mean_q, mean_p, std):
    """``log q(x) - log p(x)`` of two Gaussians of the same standard deviation, shape (N,)."""
    return ((x - mean_p) ** 2 - (x - mean_q) ** 2) / (2 * std**2)


def test_losses_are_cross_entropies():
    """With the probability of real ``sigmoid(D)``, by torch's own cross entropy and at D = 0 by hand."""
    logit_real, logit_fake = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, -0.4])
    entropy = torch.nn.functional.binary_cross_entropy
    ones, zeros = torch.ones(3), torch.zeros(2)
    expected = entropy(logit_real.sigmoid(), ones) + entropy(logit_fake.sigmoid(), zeros)
    assert_close(discriminator_loss(logit_real, logit_fake), expected)
    assert_close(generator_loss(logit_fake), entropy(logit_fake.sigmoid(), torch.ones(2)))
    assert_close(discriminator_loss(torch.zeros(3), torch.zeros(2)), torch.tensor(2 * math.log(2)))
    assert_close(generator_loss(torch.zeros(2)), torch.tensor(math.log(2)))


def test_slopes_with_respect_to_the_logits():
    """``-sigmoid(-D)`` on real logits, ``sigmoid(D)`` on fakes, and ``-sigmoid(-D)`` for the generator, each a mean."""
    logit_real = torch.tensor([0.0, 3.0, -30.0], requires_grad=True)
    logit_fake = torch.tensor([0.0, 2.0, -30.0, 30.0], requires_grad=True)
    real, fake = torch.autograd.grad(discriminator_loss(logit_real, logit_fake), (logit_real, logit_fake))
    assert_close(real, -torch.sigmoid(-logit_real.detach()) / 3)
    assert_close(fake, torch.sigmoid(logit_fake.detach()) / 4)
    (slope,) = torch.autograd.grad(generator_loss(logit_fake), logit_fake)
    assert_close(slope, -torch.sigmoid(-logit_fake.detach()) / 4)
    assert_close(slope[2].item(), -0.25)  # a detected fake still gives a gradient: the loss does not saturate


def test_the_best_discriminator_is_the_log_ratio_of_the_densities():
    """No offset and no scale of ``log q - log p`` has a smaller loss, which is ``2 log 2 - 2 JS(q, p)``."""
    random = torch.Generator().manual_seed(0)
    real = 0.5 + 0.7 * torch.randn(200_000, generator=random, dtype=torch.float64)
    fake = -0.3 + 0.7 * torch.randn(200_000, generator=random, dtype=torch.float64)

    def loss(scale, offset):
        ratio = [scale * gaussian_log_ratio(x, 0.5, -0.3, 0.7) + offset for x in (real, fake)]
        return discriminator_loss(*ratio)

    scale, offset = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    slopes = torch.autograd.grad(loss(scale.requires_grad_(), offset.requires_grad_()), (scale, offset))
    assert max(slope.abs().item() for slope in slopes) < 2e-3
    best = loss(1.0, 0.0).item()
    assert all(loss(*other).item() > best + 1e-4 for other in [(0.8, 0.0), (1.25, 0.0), (1.0, 0.1), (1.0, -0.1)])
    assert loss(-1.0, 0.0).item() > 2 * math.log(2) > best  # the sign separates real from fake

    points = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    q, p = (torch.exp(-((points - mean) ** 2) / (2 * 0.7**2)) / (0.7 * math.sqrt(2 * math.pi)) for mean in (0.5, -0.3))
    middle = (q + p) / 2
    terms = [torch.where(d > 0, d * (d / middle).log(), 0.0) for d in (q, p)]
    jensen_shannon = sum(torch.trapezoid(term, points).item() for term in terms) / 2
    assert best == pytest.approx(2 * math.log(2) - 2 * jensen_shannon, abs=3e-3)


def test_the_generator_goes_where_the_density_ratio_rises():
    """On the best discriminator of two Gaussians, the shift of the fakes is drawn towards the real mean."""
    noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for shift in (-1.0, 1.0):
        mean = torch.tensor(shift, requires_grad=True)
        loss = generator_loss(gaussian_log_ratio(mean + noise, 0.0, shift, 1.0))
        assert torch.autograd.grad(loss, mean)[0].sign() == math.copysign(1.0, shift)


@pytest.mark.parametrize("weight", [0.3, torch.tensor([0.1, 2.0])])
def test_r1_of_a_linear_and_a_quadratic_discriminator(weight):
    """``weight/2 ||a||^2`` of ``D = a . x_t + b . x_next``, ``weight/2 ||c x_t||^2`` of ``D = c ||x_t||^2 / 2``."""
    random = torch.Generator().manual_seed(0)
    x_t, x_next = torch.randn(2, 2, 3, 4, 4, generator=random)
    a, b = torch.randn(2, 3, 4, 4, generator=random)
    x_t.requires_grad_(True)
    weights = torch.as_tensor(weight).expand(2)
    linear = (a * x_t).flatten(1).sum(1) + (b * x_next).flatten(1).sum(1)
    assert_close(r1_penalty(linear, x_t, weight), (weights / 2 * a.square().sum()).mean())
    quadratic = 0.5 * 1.7 * x_t.square().flatten(1).sum(1)
    expected = weights / 2 * (1.7 * x_t.detach()).square().flatten(1).sum(1)
    assert_close(r1_penalty(quadratic, x_t, weight), expected.mean())


def test_r1_reaches_the_discriminators_parameters():
    """Of ``D = c ||x||^2 / 2`` the penalty is ``weight/2 c^2 ||x||^2``, its slope in c ``weight c ||x||^2``."""
    x_t = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    c = torch.tensor(1.3, requires_grad=True)
    penalty = r1_penalty(0.5 * c * x_t.square().flatten(1).sum(1), x_t, weight=0.4)
    (slope,) = torch.autograd.grad(penalty, c)
    assert_close(slope, 0.4 * 1.3 * x_t.detach().square().flatten(1).sum(1).mean())


def test_zero_penalty_means_a_discriminator_that_is_flat_on_the_data():
    """The equilibrium: fakes are real, the best logit is 0 everywhere, and no term asks for anything else."""
    q = DiffusionCoefficients.vp(4)
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_t = q.q_sample(x, torch.zeros(6, dtype=torch.long), torch.zeros_like(x)).requires_grad_(True)
    scale = torch.zeros((), requires_grad=True)
    logits = scale * x_t.square().flatten(1).sum(1)
    loss = discriminator_loss(logits, logits) + r1_penalty(logits, x_t, weight=1.0)
    assert_close(torch.autograd.grad(loss, scale)[0], torch.zeros(()))
