"""Whitening of the receiver noise: afterwards the noise of all coils is independent and of unit variance.

Least squares on whitened data is the maximum likelihood estimate, and each coil counts by what it can tell.

Sources: K. P. Pruessmann et al. 2001, doi:10.1002/mrm.1241 (virtual coils by a Cholesky factor, sec. "Noise
decorrelation"); P. Kellman and E. R. McVeigh 2005, doi:10.1002/mrm.20713 (units of signal-to-noise ratio).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, MriGeometry
from equipoise_engine.preprocess.kspace import ComplexArray, coil_combinations

SAMPLES_PER_COIL = 4
"""Fewest noise samples for each coil: with less the estimated covariance is close to singular."""
OUTER_SHARE = 0.1
"""Share of the sampled positions, the outermost ones, that count as noise."""
LARGEST_CONDITION = 1e10
"""Largest ratio of the eigenvalues of a covariance whose inverse square root still means something."""


def noise_covariance(samples: ComplexArray) -> NDArray[np.complex128]:
    """Return the covariance E[n n^H] of receiver noise `(coil, coil)`, complex128, in squared units of the samples.

    It is that of complex values: real and imaginary part have half of it each. A constant offset is taken out. Where
    noise was sampled with another dwell time than the data, multiply by the ratio of dwell times, noise over data.

    Parameters
    ----------
    samples
        Noise-only samples `(coil, sample)`, complex.

    Raises
    ------
    BadInput
        Fewer than four samples a coil, or values that are not finite.
    """
    if samples.ndim != 2:
        raise BadInput(f"noise samples must be (coil, sample), not of shape {samples.shape}")
    coils, count = samples.shape
    if count < SAMPLES_PER_COIL * coils:
        raise BadInput(
            f"{count} noise samples for {coils} coils; the covariance needs at least {SAMPLES_PER_COIL * coils}"
        )
    if not np.isfinite(samples).all():
        raise BadInput(f"{int((~np.isfinite(samples)).sum())} noise samples are not finite")
    return np.atleast_2d(np.cov(samples.astype(np.complex128, copy=False)))


def outermost(geometry: MriGeometry) -> NDArray[np.bool_]:
    """Return which samples are among the outermost tenth, where there is hardly any signal, bool.

    For scans without a noise measurement. What signal there is at the edge of k-space enters, so that the noise is
    rather over- than underestimated. Shaped as the samples of a coil: `(ky, kx)`, or `(readout, sample)`.

    Raises
    ------
    BadInput
        Nothing was sampled.
    """
    if isinstance(geometry, Cartesian):
        sampled = geometry.sampled
        y, x = ((np.arange(size) - size // 2) / (size / 2) for size in sampled.shape)
        radius = np.hypot(y[:, None], x[None, :])
    else:
        radius = np.linalg.norm(geometry.trajectory / (0.5 * np.array(geometry.matrix)), axis=-1)
        sampled = np.ones(radius.shape, dtype=np.bool_)
    if not sampled.any():
        raise BadInput("no position of k-space was sampled")
    return np.asarray(sampled & (radius >= np.quantile(radius[sampled], 1 - OUTER_SHARE)))


def whitening_matrix(covariance: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return W `(coil, coil)`, complex128, lower triangular, with W C W^H = 1: the inverse of the Cholesky factor of C.

    Parameters
    ----------
    covariance
        C `(coil, coil)`, Hermitian positive definite.

    Raises
    ------
    BadInput
        C is not square and Hermitian, or it is singular: coils without noise, or copies of each other.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not np.isfinite(covariance).all():
        raise BadInput(f"a covariance must be a square matrix of finite values, not of shape {covariance.shape}")
    if not np.allclose(covariance, covariance.conj().T, rtol=0, atol=1e-6 * np.abs(covariance).max()):
        raise BadInput("the noise covariance is not Hermitian")
    silent = np.flatnonzero(covariance.diagonal().real <= 0)
    if silent.size:
        raise BadInput(f"coil {int(silent[0])} has no noise at all", "Leave out coils that were not connected.")
    # coils may differ in gain by orders of magnitude, which is no singularity
    gain = np.sqrt(covariance.diagonal().real)
    values = np.linalg.eigvalsh(covariance / np.outer(gain, gain))
    if values[0] * LARGEST_CONDITION < values[-1]:
        raise BadInput(
            f"the noise covariance is singular: its correlation has eigenvalues from {values[0]:.2g} to"
            f" {values[-1]:.2g}",
            "Leave out coils that are combinations of others.",
        )
    factor = np.linalg.cholesky(covariance)
    return np.asarray(linalg.solve_triangular(factor, np.eye(factor.shape[0], dtype=factor.dtype), lower=True))


def whitened(values: ComplexArray, matrix: NDArray[np.complex128], *, axis: int = -3) -> ComplexArray:
    """Return values with white noise of E|n|^2 = 1 (real and imaginary part: half of it each).

    Parameters
    ----------
    values
        Complex, with the coils along `axis`: by default `(..., coil, ky, kx)`.
    matrix
        W of `whitening_matrix`.
    axis
        The coil axis.

    Raises
    ------
    BadInput
        The matrix does not fit the number of coils.
    """
    return coil_combinations(values, matrix, axis=axis)
