"""Phases between the forward and the reversed readouts of echo-planar imaging, from lines without phase encoding.

The gradient's delays shift readouts one way when forward and the other way when reversed; laid out forward, they then
differ by a phase along x, which repeats half a field of view away what every other line holds: the ghost. Navigator
lines show the object's projection both ways, so that the phase is read off.

Sources: H. Bruder et al. 1992, doi:10.1002/mrm.1910230211 (phase correction by navigator lines); C. B. Ahn and Z. H.
Cho 1987, doi:10.1109/TMI.1987.4307795 (slope of a phase by autocorrelation, which does not wrap).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import ComplexArray, to_image, to_kspace

LINE_FITS = 2
"""Least-squares fits of the line after the first guess; what they correct is far below a turn."""


def ghost_phase(navigators: ComplexArray, order: Literal["linear", "pointwise"] = "linear") -> NDArray[np.float64]:
    """Return by how much the phase of reversed readouts is ahead of that of forward ones `(x,)`, float64, in radians.

    Each reversed navigator is compared with the mean of the forward ones before and after it, so that a phase that
    grows from readout to readout, as off resonance, does not enter. Coils count by their signal.

    Parameters
    ----------
    navigators
        Lines through the centre of k-space `(readout, coil, kx)`, complex: alternately forward and reversed, the first
        forward, all laid out forward.
    order
        A straight line along x, or each x by itself.

    Raises
    ------
    BadInput
        There are fewer than two navigators, or their values are not finite.
    """
    if navigators.ndim != 3 or navigators.shape[0] < 2:
        raise BadInput(
            f"navigators of shape {navigators.shape} are not (readout, coil, kx) with a forward and a reversed readout"
        )
    if not np.isfinite(navigators).all():
        raise BadInput(f"{int((~np.isfinite(navigators)).sum())} values of the navigators are not finite")
    profiles = to_image(navigators.astype(np.complex128), (-1,))
    product = np.zeros(navigators.shape[-1], dtype=np.complex128)
    for place in range(1, profiles.shape[0], 2):
        forward = profiles[place - 1 : place + 2 : 2].mean(axis=0)
        product += (profiles[place] * forward.conj()).sum(axis=0)
    return _line(product) if order == "linear" else np.angle(product)


def without_ghosts(
    kspace: ComplexArray, reversed_lines: NDArray[np.bool_], phase_rad: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Return k-space `(coil, ky, kx)`, complex64, whose reversed lines have the phases of the forward ones.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)`, complex, all lines laid out forward.
    reversed_lines
        Which lines were read out backwards `(ky,)`, bool.
    phase_rad
        Of `ghost_phase`.

    Raises
    ------
    BadInput
        The shapes do not fit.
    """
    if reversed_lines.shape != kspace.shape[1:2] or phase_rad.shape != kspace.shape[2:]:
        raise BadInput(
            f"{reversed_lines.size} lines and a phase of {phase_rad.size} samples do not fit k-space of {kspace.shape}"
        )
    result = np.array(kspace, dtype=np.complex64)
    lines = to_image(kspace[:, reversed_lines].astype(np.complex128), (-1,))
    result[:, reversed_lines] = to_kspace(lines * np.exp(-1j * phase_rad), (-1,))
    return result


def _line(product: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return the straight line along the phase of complex values `(x,)`, each weighing by its magnitude."""
    x = np.arange(product.size) - product.size // 2
    weight = np.abs(product)
    if not weight.any():
        return np.zeros(product.size)
    slope = float(np.angle(np.sum(product[1:] * product[:-1].conj())))
    offset = float(np.angle(np.sum(product * np.exp(-1j * slope * x))))
    # of complex values the variance of the phase falls with the square of the magnitude of one profile: with the
    # magnitude of the product of two
    columns = np.stack([np.ones(x.size), x], axis=1) * np.sqrt(weight)[:, None]
    for _ in range(LINE_FITS):
        rest = np.angle(product * np.exp(-1j * (offset + slope * x)))
        change = np.linalg.lstsq(columns, np.sqrt(weight) * rest, rcond=None)[0]
        offset, slope = offset + float(change[0]), slope + float(change[1])
    return np.asarray(offset + slope * x)
