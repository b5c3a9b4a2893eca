"""Reconstruction errors in closed form."""

import math

import pytest
import torch

from hf_ebm.evaluation.sample_metrics import reconstruction_metrics


def test_constant_images_in_closed_form():
    a, b = torch.full((2, 1, 8, 8), 0.2), torch.full((2, 1, 8, 8), -0.3)
    b[1] = 0.1
    found = reconstruction_metrics(a, b)
    assert found["mse"].tolist() == pytest.approx([0.25, 0.01])
    assert found["psnr"].tolist() == pytest.approx([10 * math.log10(4 / 0.25), 10 * math.log10(4 / 0.01)])
    x, y, c1 = 0.6, torch.tensor([0.35, 0.55]), 0.01**2  # on [0, 1]; no variance: only the luminance term
    assert found["ssim"].tolist() == pytest.approx(((2 * x * y + c1) / (x**2 + y**2 + c1)).tolist(), abs=1e-6)


def test_perfect_and_inverted():
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    perfect, inverted = reconstruction_metrics(images, images), reconstruction_metrics(images, -images)
    assert perfect["mse"].tolist() == [0, 0, 0] and perfect["ssim"].tolist() == pytest.approx([1, 1, 1])
    assert (inverted["ssim"] < 0).all() and perfect["psnr"].isinf().all()


def test_images_smaller_than_the_window_have_no_ssim():
    assert set(reconstruction_metrics(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5))) == {"mse", "psnr"}
    assert "ssim" in reconstruction_metrics(torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6))
