"""Figures of merit: known values, and the definitions of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise_engine.errors import BadInput
from equipoise_engine.metrics import nmse, psnr, ssim
from equipoise_engine.phantoms import random_images


def test_known_values() -> None:
    truth = torch.ones((2, 16, 16))
    image = truth.clone()
    image[0] += 0.1
    image[1, 0, 0] += 1.6
    np.testing.assert_allclose(psnr(image, truth, 1.0), [20.0, 20.0], atol=1e-4)
    np.testing.assert_allclose(psnr(image, truth, 10.0), [40.0, 40.0], atol=1e-4)
    np.testing.assert_allclose(nmse(image, truth), [0.01, 0.01], rtol=1e-5)


def test_equal_images_have_no_error() -> None:
    truth = random_images(1, 16, torch.Generator().manual_seed(0))
    assert psnr(truth, truth, 1.0)[0] == math.inf
    assert ssim(truth, truth, 1.0)[0] == pytest.approx(1)
    assert nmse(truth, truth)[0] == 0


def test_constant_images_have_the_similarity_of_their_means() -> None:
    one, other = torch.full((1, 16, 16), 0.5), torch.full((1, 16, 16), 0.25)
    small = (0.01 * 1.0) ** 2
    expected = (2 * 0.5 * 0.25 + small) / (0.5**2 + 0.25**2 + small)
    assert ssim(one, other, 1.0)[0] == pytest.approx(expected, rel=1e-6)


def test_similarity_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = random_images(1, 24, generator).double()
    image = truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    axis = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = window / window.sum()
    kernel = (window[:, None] * window[None, :])[None, None]

    def local(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x[:, None], kernel)

    x, y = local(image), local(truth)
    variances = local(image**2) - x**2, local(truth**2) - y**2
    joint = local(image * truth) - x * y
    first, second = 0.01**2, 0.03**2
    similarity = (2 * x * y + first) * (2 * joint + second)
    similarity = similarity / ((x**2 + y**2 + first) * (sum(variances) + second))
    assert ssim(image, truth, 1.0)[0] == pytest.approx(float(similarity.mean()), rel=1e-3)


def test_complex_images_count_by_their_magnitude() -> None:
    truth = random_images(2, 16, torch.Generator().manual_seed(4))
    image = 0.9 * truth * torch.exp(torch.tensor(1j))
    assert np.isfinite(psnr(image, truth, 1.0)).all()
    np.testing.assert_allclose(nmse(image, truth.to(torch.complex64)), [0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(ssim(image, truth, 1.0), ssim(0.9 * truth, truth, 1.0), rtol=1e-5)


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = torch.ones((1, 16, 16)), torch.ones((1, 16, 17))
    with pytest.raises(BadInput, match="16, 17"):
        psnr(one, other, 1.0)
    with pytest.raises(BadInput, match="data range of 0"):
        ssim(one, one, 0.0)
    with pytest.raises(BadInput, match="smaller than the window"):
        ssim(one[:, :8, :8], one[:, :8, :8], 1.0)
