"""Paths between latents: ends, norms, and cases without a great circle."""

import torch
from torch.testing import assert_close

from hf_ebm.pipelines.dual_mcmc_chains import linear_path, spherical_path

T = torch.linspace(0.0, 1.0, 5)


def test_linear_path_is_the_line():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    path = linear_path(a, b, T)
    assert torch.equal(path[:, 0], a) and torch.equal(path[:, -1], b)
    assert_close(path[:, 1], 0.75 * a + 0.25 * b)


def test_spherical_path_keeps_the_norm_and_turns_evenly():
    a, b = (2.0 * torch.nn.functional.normalize(torch.randn(3, 4)) for _ in range(2))
    path = spherical_path(a, b, T)
    assert torch.equal(path[:, 0], a) and torch.equal(path[:, -1], b)
    assert_close(path.norm(dim=2), torch.full((3, 5), 2.0))
    cosines = (path[:, 1:] * path[:, :-1]).sum(2) / 4
    assert_close(cosines, cosines[:, :1].expand(3, 4), rtol=1e-4, atol=1e-5)
    assert_close(spherical_path(b, a, T).flip(1), path)


def test_a_right_angle_is_a_quarter_circle():
    path = spherical_path(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), T)
    angle = T * torch.pi / 2
    assert_close(path[0], torch.stack([angle.cos(), angle.sin()], dim=1))


def test_without_a_circle_the_line_is_taken():
    a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [1.0, 1.0]])
    assert_close(spherical_path(a, b, T), linear_path(a, b, T))
