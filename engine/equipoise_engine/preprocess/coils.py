"""Coil sensitivities from the fully sampled centre of k-space, or from images of the coils.

Source: M. Uecker et al. 2014, ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI, doi:10.1002/mrm.24751.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import ComplexArray

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
WALSH_WINDOW = 7
"""Side of the neighbourhood, in pixels, that the adaptive combination takes its statistics from."""


@dataclass(frozen=True)
class MapSets:
    """Several sets of coil sensitivities, for pixels that show more than one place of the object.

    Parameters
    ----------
    maps
        `(set, coil, y, x)`, complex64. In each pixel the sets are orthonormal, but for those that are zero there.
    eigenvalues
        `(set, y, x)`, float32, 0 to 1: near one where the calibration data support a set, falling with the set.
    """

    maps: NDArray[np.complex64]
    eigenvalues: NDArray[np.float32]


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
    covariances = _Covariances(kspace, sampled)
    maps = np.empty((coils, rows, columns), dtype=np.complex64)
    for start, stop in covariances.blocks:
        maps[:, start:stop] = _leading(covariances.of_rows(start, stop), covariances.strongest).numpy()
    return maps


def coil_map_sets(
    kspace: NDArray[np.complex64], sampled: NDArray[np.bool_], *, sets: int = 2, threshold: float = 0.9
) -> MapSets:
    """Return several sets of coil sensitivities, for an object that wraps around a too small field of view.

    Where two places of the object fall on one pixel, no single sensitivity explains the coil images: the first two
    eigenvectors together do, and the image has one value for each. The first set covers the whole image, as that of
    `coil_maps`; the others are zero where the calibration data do not support them, since a further unknown where
    there is nothing to explain only amplifies noise.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex64, zero frequency at index `n // 2`.
    sampled
        Which positions were measured, `(ky, kx)`, bool.
    sets
        How many.
    threshold
        Smallest eigenvalue, 0 to 1, for which a set after the first is kept in a pixel.

    Raises
    ------
    BadInput
        As for `coil_maps`, or there are more sets than coils.

    Source: M. Uecker et al. 2014, doi:10.1002/mrm.24751, section "soft SENSE".
    """
    coils, rows, columns = kspace.shape
    if not 1 <= sets <= coils:
        raise BadInput(f"{sets} sets of coil sensitivities are outside 1 to {coils}, the number of coils")
    if not 0 <= threshold <= 1:
        raise BadInput(f"an eigenvalue threshold of {threshold:g} is outside 0 to 1")
    covariances = _Covariances(kspace, sampled)
    maps = np.empty((sets, coils, rows, columns), dtype=np.complex64)
    eigenvalues = np.empty((sets, rows, columns), dtype=np.float32)
    for start, stop in covariances.blocks:
        vectors, values = _leading_sets(covariances.of_rows(start, stop), covariances.strongest, sets)
        maps[:, :, start:stop] = vectors.numpy()
        eigenvalues[:, start:stop] = values.numpy()
    maps[1:] *= (eigenvalues[1:] >= threshold)[:, None]
    return MapSets(maps, eigenvalues)


def walsh_maps(images: ComplexArray, *, window: int = WALSH_WINDOW) -> NDArray[np.complex64]:
    """Return coil sensitivities `(coil, y, x)`, complex64, sum of squared magnitudes one, from images of the coils.

    In each pixel the filter that matches the statistics of its neighbourhood: the eigenvector of the largest
    eigenvalue of the coils' covariance there. The product of conjugate maps and images, summed over the coils, is the
    adaptive combination. Their phase is relative to the combination of coils with the most signal. Whiten the noise
    first; the paper's noise covariance is then the identity.

    Parameters
    ----------
    images
        Coil images without aliasing `(coil, y, x)`, complex; low resolution does.
    window
        Side of the neighbourhood, odd, in pixels.

    Raises
    ------
    BadInput
        The window is even or larger than the image, or the images hold no finite signal.

    Source: D. O. Walsh, A. F. Gmitro, M. W. Marcellin 2000,
    doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.
    """
    if images.ndim != 3:
        raise BadInput(f"coil images must be (coil, y, x), not of shape {images.shape}")
    coils, rows, columns = images.shape
    if window < 1 or window % 2 == 0 or window > min(rows, columns):
        raise BadInput(f"a window of {window} pixels must be odd and fit into an image of {rows} x {columns}")
    largest = float(np.abs(images).max())
    if not np.isfinite(largest) or largest == 0.0:
        raise BadInput("the coil images hold no signal, or values that are not finite")
    if coils == 1:
        return np.ones((1, rows, columns), dtype=np.complex64)
    scaled = (images / largest).astype(np.complex64)
    strongest = torch.from_numpy(_strongest_combination(scaled.astype(np.complex128)).astype(np.complex64))
    maps = np.empty((coils, rows, columns), dtype=np.complex64)
    half = window // 2
    block = max(BLOCK_VALUES // (coils * coils * columns), 1)
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        first, last = max(start - half, 0), min(stop + half, rows)
        near = scaled[:, first:last]
        products = near[:, None] * near[None].conj()
        for axis in (2, 3):
            products = ndimage.uniform_filter1d(products, window, axis=axis, mode="constant")
        covariance = np.ascontiguousarray(products[:, :, start - first : stop - first])
        maps[:, start:stop] = _leading(torch.from_numpy(covariance), strongest).numpy()
    return maps


class _Covariances:
    """The covariance of the kernels' images, whose eigenvectors are the sensitivities, for blocks of rows.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex.
    sampled
        `(ky, kx)`, bool.
    """

    def __init__(self, kspace: NDArray[np.complex64], sampled: NDArray[np.bool_]) -> None:
        coils, rows, columns = kspace.shape
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
        self.strongest = torch.from_numpy(_strongest_combination(centre).astype(np.complex64))
        self._down = _harmonics(rows).T
        self._side = waves @ _harmonics(columns)
        block = max(BLOCK_VALUES // (coils * coils * columns), 1)
        self.blocks = [(start, min(start + block, rows)) for start in range(0, rows, block)]

    def of_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the covariance `(coil, coil, y, x)`, complex64, of a block of rows."""
        return self._down[start:stop] @ self._side


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


def _leading_sets(covariance: torch.Tensor, strongest: torch.Tensor, sets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvectors `(set, coil, y, x)` of the largest eigenvalues, and these `(set, y, x)`, falling."""
    coils, _, rows, columns = covariance.shape
    # so scaled that 1 says: the kernels span all that the coils can see there
    matrices = covariance.permute(2, 3, 0, 1).reshape(-1, coils, coils) * ((2 * KERNEL + 4) ** 2 / KERNEL**2)
    values, vectors = torch.linalg.eigh(matrices)
    values, vectors = values[:, -sets:].flip(1), vectors[:, :, -sets:].flip(2)
    reference = strongest.conj() @ vectors
    size = reference.abs()
    turn = torch.where(size > 0, reference.conj() / size.clamp_min(1e-30), torch.ones_like(reference))
    maps = (vectors * turn[:, None]).permute(2, 1, 0).reshape(sets, coils, rows, columns)
    return maps, values.T.reshape(sets, rows, columns)


def calibration_size(sampled: NDArray[np.bool_], largest: int = MAX_CALIBRATION) -> tuple[int, int]:
    """Return height and width of the largest fully sampled region around zero, at most `largest` each.

    Parameters
    ----------
    sampled
        `(ky, kx)`, bool.
    largest
        Bound of either side.
    """
    rows, columns = sampled.shape

    def full(height: int, width: int) -> bool:
        top, left = rows // 2 - height // 2, columns // 2 - width // 2
        return bool(sampled[top : top + height, left : left + width].all())

    best = (0, 0)
    for height in range(min(largest, rows), 0, -1):
        width = min(largest, columns)
        while width > 0 and not full(height, width):
            width -= 1
        if min(height, width) > min(best) or (min(height, width) == min(best) and height * width > best[0] * best[1]):
            best = (height, width)
    return best
