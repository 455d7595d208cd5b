"""Coil compression: a few virtual coils, linear combinations of the measured ones, that keep nearly all of the signal.

Whiten the noise first: with orthonormal combinations it stays white.

Sources: M. Buehrer et al. 2007, doi:10.1002/mrm.21237 (array compression); T. Zhang et al. 2013,
doi:10.1002/mrm.24267 (geometric compression, one matrix for each position along the readout, aligned).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import ComplexArray, coil_combinations


@dataclass(frozen=True)
class Compression:
    """Combinations of coils.

    Parameters
    ----------
    matrix
        `(virtual coil, coil)`, complex128, rows orthonormal; in order of falling energy.
    kept
        Share of the energy of the calibration data that the virtual coils keep, 0 to 1.
    """

    matrix: NDArray[np.complex128]
    kept: float

    def apply(self, values: ComplexArray, *, axis: int = -3) -> ComplexArray:
        """Return values with virtual coils along `axis`: by default `(..., coil, ky, kx)`. Raises BadInput."""
        return coil_combinations(values, self.matrix, axis=axis)


@dataclass(frozen=True)
class GeometricCompression:
    """Combinations of coils for each position along a fully sampled readout.

    Parameters
    ----------
    matrices
        `(position, virtual coil, coil)`, complex128, rows orthonormal, aligned so that virtual coils vary smoothly.
    kept
        Share of the energy of the calibration data that the virtual coils keep, 0 to 1.
    """

    matrices: NDArray[np.complex128]
    kept: float

    def apply(self, slices: ComplexArray) -> ComplexArray:
        """Return slices along the readout `(position, coil, ...)` with virtual coils. Raises BadInput."""
        if slices.ndim < 3 or (slices.shape[0], slices.shape[1]) != (self.matrices.shape[0], self.matrices.shape[2]):
            raise BadInput(f"coil matrices of {self.matrices.shape} do not fit slices of shape {slices.shape}")
        flat = slices.reshape(*slices.shape[:2], -1)
        mixed = np.matmul(self.matrices.astype(slices.dtype), flat)
        return np.asarray(mixed.reshape(*mixed.shape[:2], *slices.shape[2:]))


def compression(
    calibration: ComplexArray, *, virtual_coils: int | None = None, energy: float | None = None, axis: int = 0
) -> Compression:
    """Return the combinations of coils with the most energy: the leading left singular vectors of the data.

    Parameters
    ----------
    calibration
        Samples with much signal, as the centre of k-space, `(coil, ...)`, complex; zeros do no harm.
    virtual_coils
        How many to keep; or
    energy
        the share of the energy to keep at least, 0 to 1: as few coils as that needs. Exactly one of the two.
    axis
        The coil axis of `calibration`.

    Raises
    ------
    BadInput
        Not exactly one of the two is given, it is out of range, or the data hold no finite signal.
    """
    flat = np.moveaxis(calibration, axis, 0).reshape(calibration.shape[axis], -1)
    values, vectors = _spectrum(_gram(flat)[None])
    count = _count(values, virtual_coils, energy)
    return Compression(np.ascontiguousarray(vectors[0, :, :count].conj().T), _kept(values, count))


def geometric_compression(
    slices: ComplexArray, *, virtual_coils: int | None = None, energy: float | None = None
) -> GeometricCompression:
    """Return combinations of coils for each position along the readout, aligned from position to position.

    At one position the coils see less of the object than over the whole of it, so that fewer virtual coils do.

    Parameters
    ----------
    slices
        Calibration data after the Fourier transform along the readout `(position, coil, ...)`, complex.
    virtual_coils, energy
        As for `compression`; the energy is that of all positions together.

    Raises
    ------
    BadInput
        As for `compression`.

    Source: T. Zhang et al. 2013, doi:10.1002/mrm.24267: neighbours are aligned by the unitary matrix U V^H of the
    singular value decomposition of their product. It starts from the position with the most energy.
    """
    if slices.ndim < 3:
        raise BadInput(f"calibration slices must be (position, coil, ...), not of shape {slices.shape}")
    gram = np.stack([_gram(one.reshape(slices.shape[1], -1)) for one in slices])
    values, vectors = _spectrum(gram)
    count = _count(values, virtual_coils, energy)
    matrices = np.ascontiguousarray(vectors[:, :, :count].conj().transpose(0, 2, 1))
    start = int(values.sum(axis=1).argmax())
    for position in range(start + 1, slices.shape[0]):
        matrices[position] = _aligned(matrices[position], matrices[position - 1])
    for position in range(start - 1, -1, -1):
        matrices[position] = _aligned(matrices[position], matrices[position + 1])
    return GeometricCompression(matrices, _kept(values, count))


def _gram(flat: ComplexArray) -> NDArray[np.complex128]:
    """Return X X^H `(coil, coil)` of X `(coil, sample)`; its eigenvectors are the left singular vectors of X."""
    precise = flat.astype(np.complex128, copy=False)
    return np.asarray(precise @ precise.conj().T)


def _spectrum(gram: NDArray[np.complex128]) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Return eigenvalues `(position, coil)`, falling, and eigenvectors `(position, coil, vector)`."""
    if not np.isfinite(gram).all() or not gram.any():
        raise BadInput("the calibration data for coil compression hold no signal, or values that are not finite")
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[:, ::-1], 0.0), vectors[:, :, ::-1]


def _count(values: NDArray[np.float64], virtual_coils: int | None, energy: float | None) -> int:
    coils = values.shape[1]
    if (virtual_coils is None) == (energy is None):
        raise BadInput("coil compression takes either a number of virtual coils or a share of the energy")
    if energy is not None:
        if not 0 < energy <= 1:
            raise BadInput(f"a share of {energy:g} of the energy is outside 0 to 1")
        share = values.sum(axis=0).cumsum() / values.sum()
        # rounding may leave the last share just below one
        virtual_coils = min(int(np.searchsorted(share, energy)) + 1, coils)
    if virtual_coils is None or not 1 <= virtual_coils <= coils:
        raise BadInput(f"{virtual_coils} virtual coils are outside 1 to {coils}, the number of coils")
    return virtual_coils


def _kept(values: NDArray[np.float64], count: int) -> float:
    return min(float(values[:, :count].sum() / values.sum()), 1.0)


def _aligned(matrix: NDArray[np.complex128], neighbour: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the rotation of `matrix (virtual coil, coil)` within its span that comes closest to its neighbour."""
    left, _, right = np.linalg.svd(neighbour @ matrix.conj().T)
    return np.asarray((left @ right) @ matrix)
