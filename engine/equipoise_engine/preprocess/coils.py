"""Coil sensitivities from the fully sampled centre of k-space.

Source: Uecker et al. 2014, ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI, doi:10.1002/mrm.24751.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput

MAX_CALIBRATION = 24
"""Largest side of the calibration region; more only costs time."""
MIN_CALIBRATION = 8
"""Smallest side that the kernels can be fitted to."""
KERNEL = 6
"""Side of the kernels, in k-space samples."""
SIGNAL_SHARE = 0.02
"""Singular values above this share of the largest span the signal."""
SQUARINGS = 6
"""The leading eigenvector is found with the 2 ** 6 th power of each matrix."""
BLOCK_VALUES = 1 << 22
"""Complex values in one block of rows: bounds the memory."""


def coil_maps(kspace: NDArray[np.complex64], sampled: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Return coil sensitivities `(coil, y, x)`, complex64, sum of squared magnitudes one everywhere.

    They are not cropped to the object: an equilibrium model sees noise outside the object either way, while a
    hard edge of the maps would force image values to zero where the signal is merely low (skull, air in the
    nose). Their phase is relative to the combination of coils with the most signal. One coil has the
    sensitivity one.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex64, zero frequency at index `n // 2`.
    sampled
        Which positions were measured, `(ky, kx)`, bool.

    Raises
    ------
    BadInput
        The fully sampled centre is smaller than 8 x 8, or holds no signal.
    """
    coils, rows, columns = kspace.shape
    if coils == 1:
        return np.ones((1, rows, columns), dtype=np.complex64)
    height, width = calibration_size(sampled)
    if min(height, width) < MIN_CALIBRATION:
        raise BadInput(
            f"the fully sampled centre of k-space is {height} x {width}; coil sensitivities need at least"
            f" {MIN_CALIBRATION} x {MIN_CALIBRATION}",
            "Take a scan with calibration lines, or undersample less.",
        )
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    centre = kspace[:, top : top + height, left : left + width].astype(np.complex128)
    largest = float(np.abs(centre).max())
    if not np.isfinite(largest) or largest == 0.0:
        raise BadInput("the centre of k-space holds no signal, or values that are not finite")
    centre /= largest
    waves = torch.from_numpy(_covariance_waves(_kernels(centre)).astype(np.complex64))
    strongest = torch.from_numpy(_strongest_combination(centre).astype(np.complex64))
    across = _harmonics(columns)
    down = _harmonics(rows).T
    side = waves @ across
    maps = np.empty((coils, rows, columns), dtype=np.complex64)
    block = max(BLOCK_VALUES // (coils * coils * columns), 1)
    for start in range(0, rows, block):
        # covariance (coil, coil, y, x) of a block of rows
        covariance = down[start : start + block] @ side
        maps[:, start : start + block] = _leading(covariance, strongest).numpy()
    return maps


def _kernels(centre: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return an orthonormal basis `(kernel, coil, ky, kx)` of the patches in the calibration region."""
    coils = centre.shape[0]
    patches = sliding_window_view(centre, (KERNEL, KERNEL), axis=(1, 2))
    matrix = patches.transpose(1, 2, 0, 3, 4).reshape(-1, coils * KERNEL * KERNEL)
    # The eigenvectors of the Gram matrix are the right singular vectors, at a fraction of the cost.
    energy, vectors = np.linalg.eigh(matrix.T @ matrix.conj())
    kept = np.sqrt(np.maximum(energy, 0.0)) > SIGNAL_SHARE * np.sqrt(energy[-1])
    return np.asarray(vectors[:, kept].T.reshape(-1, coils, KERNEL, KERNEL))


def _covariance_waves(kernels: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the Fourier coefficients `(coil, coil, 2 k - 1, 2 k - 1)` of the covariance of the kernels' images.

    The image of a kernel is a sum of k waves along each axis, so that the covariance is one of 2 k - 1: sampled on
    a small grid, it is known everywhere.
    """
    grid = 2 * KERNEL + 4
    images = np.fft.ifft2(kernels, (grid, grid))
    covariance = np.einsum("ncyx,ndyx->cdyx", images, images.conj(), optimize=True)
    waves = np.fft.fftshift(np.fft.fft2(covariance), axes=(-2, -1))
    first, last = grid // 2 - KERNEL + 1, grid // 2 + KERNEL
    return np.asarray(waves[..., first:last, first:last])


def _harmonics(size: int) -> torch.Tensor:
    """Return the waves from -(k - 1) to k - 1 at the pixels of an axis, `(wave, pixel)`."""
    position = (np.arange(size) - size // 2) / size
    wave = np.arange(-KERNEL + 1, KERNEL)
    return torch.from_numpy(np.exp(2j * np.pi * wave[:, None] * position[None, :]).astype(np.complex64))


def _strongest_combination(centre: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the weights `(coil,)` of the combination of coils with the most signal."""
    flat = centre.reshape(centre.shape[0], -1)
    _, vectors = np.linalg.eigh(flat @ flat.conj().T)
    return np.asarray(vectors[:, -1])


def _leading(covariance: torch.Tensor, strongest: torch.Tensor) -> torch.Tensor:
    """Return the eigenvector of the largest eigenvalue `(coil, y, x)` of covariances `(coil, coil, y, x)`."""
    coils, _, rows, columns = covariance.shape
    power = covariance.permute(2, 3, 0, 1).reshape(-1, coils, coils)
    for _ in range(SQUARINGS):
        trace = power.diagonal(dim1=1, dim2=2).real.sum(dim=1).clamp_min(1e-30)
        power = power / trace[:, None, None]
        power = power @ power
    largest = power.diagonal(dim1=1, dim2=2).real.argmax(dim=1)
    vector = power.gather(2, largest[:, None, None].expand(-1, coils, 1))[:, :, 0]
    vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp_min(1e-30)
    reference = vector @ strongest.conj()
    size = reference.abs()
    turn = torch.where(size > 0, reference.conj() / size.clamp_min(1e-30), torch.ones_like(reference))
    maps: torch.Tensor = (vector * turn[:, None]).T.reshape(coils, rows, columns)
    return maps


def calibration_size(sampled: NDArray[np.bool_]) -> tuple[int, int]:
    """Return height and width of the largest fully sampled region around zero, at most 24 each.

    Parameters
    ----------
    sampled
        `(ky, kx)`, bool.
    """
    rows, columns = sampled.shape

    def full(height: int, width: int) -> bool:
        top, left = rows // 2 - height // 2, columns // 2 - width // 2
        return bool(sampled[top : top + height, left : left + width].all())

    best = (0, 0)
    for height in range(min(MAX_CALIBRATION, rows), 0, -1):
        width = min(MAX_CALIBRATION, columns)
        while width > 0 and not full(height, width):
            width -= 1
        if min(height, width) > min(best) or (min(height, width) == min(best) and height * width > best[0] * best[1]):
            best = (height, width)
    return best
