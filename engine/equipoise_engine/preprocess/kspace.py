"""Bringing encoded k-space into the form that reconstruction expects: zero frequency at index `n // 2`, full matrix.

Fourier transforms are orthonormal, so that white noise stays white with the same variance, and centred: the origin
of either space lies at index `n // 2`. Arrays keep their precision, complex64 or complex128.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from equipoise_engine.errors import BadInput

ComplexArray = NDArray[np.complexfloating[Any, Any]]


def to_image(kspace: ComplexArray, axes: Sequence[int]) -> ComplexArray:
    """Return the orthonormal centred inverse Fourier transform along `axes`, of the same shape."""
    values = fft.ifftn(fft.ifftshift(kspace, axes), axes=axes, norm="ortho", overwrite_x=True, workers=-1)
    return np.asarray(fft.fftshift(values, axes))


def to_kspace(image: ComplexArray, axes: Sequence[int]) -> ComplexArray:
    """Return the orthonormal centred Fourier transform along `axes`, of the same shape."""
    values = fft.fftn(fft.ifftshift(image, axes), axes=axes, norm="ortho", overwrite_x=True, workers=-1)
    return np.asarray(fft.fftshift(values, axes))


def embedded(
    kspace: ComplexArray,
    matrix: Sequence[int],
    centre: Sequence[int] | None = None,
    *,
    sampled: NDArray[np.bool_] | None = None,
) -> tuple[ComplexArray, NDArray[np.bool_]]:
    """Return k-space laid into the reconstruction matrix with the echo at its place, and what of it was measured.

    Samples beyond the matrix are left out, which lowers the resolution and keeps the field of view; positions that
    were not encoded (asymmetric echo, partial Fourier, interpolation) are zero. Samples themselves are unchanged.

    Parameters
    ----------
    kspace
        `(..., ky, kx)`, or `(..., kz, ky, kx)` for three entries in `matrix`; complex.
    matrix
        Size along the last axes, as many as it has entries: `(y, x)` or `(z, y, x)`.
    centre
        Index of zero frequency along the same axes of the encoded k-space; None stands for `n // 2`.
    sampled
        Which encoded positions were measured, bool, of the last axes' shape; None stands for all.

    Returns
    -------
    kspace, sampled
        `(..., *matrix)` and `(*matrix)` bool.

    Raises
    ------
    BadInput
        The matrix is not positive, has more axes than k-space, or the centre lies outside what was encoded.
    """
    count = len(matrix)
    if not 1 <= count <= kspace.ndim or min(matrix) < 1:
        raise BadInput(f"a matrix of {tuple(matrix)} does not fit k-space of shape {kspace.shape}")
    encoded = kspace.shape[-count:]
    at = tuple(size // 2 for size in encoded) if centre is None else tuple(centre)
    if len(at) != count or not all(0 <= place < size for place, size in zip(at, encoded, strict=True)):
        raise BadInput(f"zero frequency at {at} lies outside the encoded k-space of {encoded}")
    if sampled is not None and sampled.shape != encoded:
        raise BadInput(f"a mask of {sampled.shape} does not fit the encoded k-space of {encoded}")
    taken: list[slice] = []
    put: list[slice] = []
    for place, size, wanted in zip(at, encoded, matrix, strict=True):
        offset = wanted // 2 - place
        first, last = max(offset, 0), min(offset + size, wanted)
        put.append(slice(first, last))
        taken.append(slice(first - offset, last - offset))
    result = np.zeros((*kspace.shape[:-count], *matrix), dtype=kspace.dtype)
    leading = [slice(None)] * (kspace.ndim - count)
    result[tuple(leading + put)] = kspace[tuple(leading + taken)]
    mask = np.zeros(tuple(matrix), dtype=np.bool_)
    mask[tuple(put)] = True if sampled is None else sampled[tuple(taken)]
    return result, mask


def without_oversampling(kspace: ComplexArray, axis: int, matrix: int) -> ComplexArray:
    """Return k-space of the central `matrix` pixels along an axis, its other axes unchanged.

    Pixel values and the variance of white noise are kept. The axis must be fully sampled: positions that were not
    measured mix with the others.

    Parameters
    ----------
    kspace
        Complex, zero frequency at index `n // 2` of `axis`.
    axis
        The oversampled one, as a rule the readout.
    matrix
        Pixels to keep.

    Raises
    ------
    BadInput
        `matrix` is below one or above the size of the axis.
    """
    return to_kspace(_central(to_image(kspace, (axis,)), axis, matrix), (axis,))


def coil_combinations(values: ComplexArray, matrix: ComplexArray, *, axis: int = -3) -> ComplexArray:
    """Return values whose coils are replaced by linear combinations of them: whitening, compression.

    Parameters
    ----------
    values
        Complex, with the coils along `axis`: by default `(..., coil, ky, kx)`.
    matrix
        `(new coil, coil)`, complex.
    axis
        The coil axis.

    Returns
    -------
    combined
        As `values`, with the new coils along `axis`; contiguous, of the precision of `values`.

    Raises
    ------
    BadInput
        The matrix does not fit the number of coils.
    """
    if not -values.ndim <= axis < values.ndim or matrix.ndim != 2 or matrix.shape[1] != values.shape[axis]:
        raise BadInput(f"a coil matrix of {matrix.shape} does not fit values of shape {values.shape}, coils on {axis}")
    place = axis % values.ndim
    before, after = values.shape[:place], values.shape[place + 1 :]
    flat = values.reshape(*before, values.shape[place], -1)
    mixed = np.matmul(matrix.astype(values.dtype), flat)
    return np.asarray(mixed.reshape(*before, matrix.shape[0], *after))


def _central(values: ComplexArray, axis: int, size: int) -> ComplexArray:
    whole = values.shape[axis]
    if not 1 <= size <= whole:
        raise BadInput(f"{size} pixels cannot be cut out of {whole}")
    start = whole // 2 - size // 2
    return values[(slice(None),) * (axis % values.ndim) + (slice(start, start + size),)]
