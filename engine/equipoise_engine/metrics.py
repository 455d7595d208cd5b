"""Figures of merit against a ground truth: PSNR, SSIM, NMSE, one value per image; complex images by their magnitude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from equipoise_engine.errors import BadInput

_Values = NDArray[np.float64]


def psnr(image: Tensor, truth: Tensor, data_range: float) -> _Values:
    """Return 10 log10(data_range^2 / mean squared error) in dB `(batch,)`, infinite for equal images.

    Parameters
    ----------
    image, truth
        `(batch, y, x)`, real or complex.
    data_range
        Span of the values that a picture may have; the same for all images that are compared.

    Raises
    ------
    BadInput
        The shapes differ or the range is not positive.
    """
    pairs = _pairs(image, truth, data_range)
    # the library divides by the error; no error is infinite, not a warning
    return np.array(
        [
            peak_signal_noise_ratio(y, x, data_range=data_range)  # type: ignore[no-untyped-call]
            if np.any(x != y)
            else np.inf
            for x, y in zip(*pairs, strict=True)
        ]
    )


def ssim(image: Tensor, truth: Tensor, data_range: float) -> _Values:
    """Return the structural similarity with a Gaussian window of width 1.5 pixels `(batch,)`, at most one.

    Images below 11 pixels are smaller than the window and refused. Parameters as for `psnr`.

    Source: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli 2004, doi:10.1109/TIP.2003.819861.

    Raises
    ------
    BadInput
        As `psnr`, or the images are smaller than the window.
    """
    pairs = _pairs(image, truth, data_range)
    if min(truth.shape[-2:]) < 11:
        raise BadInput(f"images of {tuple(truth.shape[-2:])} pixels are smaller than the window of SSIM, 11 x 11")
    return np.array(
        [
            structural_similarity(  # type: ignore[no-untyped-call]
                y, x, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for x, y in zip(*pairs, strict=True)
        ]
    )


def nmse(image: Tensor, truth: Tensor) -> _Values:
    """Return ||image - truth||^2 / ||truth||^2 `(batch,)` of images `(batch, y, x)`.

    Raises
    ------
    BadInput
        The shapes differ.
    """
    x, y = _pairs(image, truth, 1.0)
    return np.asarray(np.square(x - y).sum(axis=(1, 2)) / np.square(y).sum(axis=(1, 2)), dtype=np.float64)


def _pairs(image: Tensor, truth: Tensor, data_range: float) -> tuple[_Values, _Values]:
    if image.shape != truth.shape or image.ndim != 3:
        raise BadInput(f"images {tuple(image.shape)} and truth {tuple(truth.shape)} must both be (batch, y, x)")
    if not data_range > 0:
        raise BadInput(f"a data range of {data_range:g} is not positive")
    one, other = ((t.abs() if t.is_complex() else t).detach().cpu().double().numpy() for t in (image, truth))
    return one, other
