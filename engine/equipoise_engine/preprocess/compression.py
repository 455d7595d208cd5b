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
