"""The axis about which half a turn and its mirror image make a full turn whose spectrum is a double wedge.

Source: Vo, Drakopoulos, Atwood, Reinhard 2014, doi:10.1364/OE.22.019078: the Fourier transform of a sinogram of a full
turn is empty where the angular frequency is higher than the object's radius allows for; a seam in a sinogram that was
put together about a wrong axis leaves something there. Other than there, edges are transformed instead of the numbers
themselves, and only where both halves see the object, so that the axis may lie well off the middle and the object may
reach beyond the detector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter1d, spline_filter1d

from equipoise_engine.preprocess.centre.estimate import (
    CentreEstimate,
    binned,
    clearness,
    estimate,
    joined,
    lowest,
    steadiness,
)
from equipoise_engine.preprocess.centre.halfturn import half_turn, liveliest

_Reals = NDArray[np.float64]
_Rows = NDArray[np.float32]

COARSE_COLUMNS = 256
"""Columns that the first look goes by; of wider detectors some are put together."""
SLICES = 1
"""Slices that are looked at."""
SMOOTHING = 1.5
"""Width of the derivative along columns: places between smooth columns are as rough as columns."""
PARTS = 5
"""Parts of the spectrum whose axes tell how sure the axis of all is."""
LOWEST = 6
"""Angular frequencies below this hold what the object and stripes leave there."""
TOGETHER_BYTES = 2**26
"""Memory for the sinograms that are transformed together; of one at least."""


def double_wedge(sinograms: _Rows, angle_rad: _Reals, between: tuple[float, float]) -> CentreEstimate | None:
    """Return the axis from the empty part of the spectrum, or None where the views do not make half a turn.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    angle_rad
        `(view,)`, float64.
    between
        First and last column that the axis may lie at.
    """
    found = half_turn(liveliest(sinograms, SLICES), angle_rad)
    if found is None or between[1] - between[0] < 2.0:
        return None
    rows = found[0]
    factor = -(-rows.shape[2] // COARSE_COLUMNS)
    looked = np.arange(between[0], between[1] + 0.5 * factor, factor)
    coarse = _leakage(binned(rows, factor), (looked - (factor - 1) / 2) / factor).mean(axis=0)
    near = float(looked[int(np.argmin(coarse))])
    if factor > 1:
        around = np.arange(near - 1.5 * factor, near + 1.5 * factor + 0.5)
        near = float(around[int(np.argmin(_leakage(rows, around).mean(axis=0)))])
    near = float(np.clip(near, *between))
    fine = near + np.arange(-3.0, 3.01, 0.25)
    fine = fine[(fine >= between[0]) & (fine <= between[1])]
    parts = _leakage(rows, fine)
    sharp = parts.mean(axis=0)
    clear = clearness(coarse)
    error, steady = steadiness(np.array([lowest(fine, part) for part in parts]))
    reason = f"its minimum stands out by {100 * clear:.0f} %, uncertain by {error:.2f} px"
    # wider columns leak less: the curves meet at the minimum
    scale = float(coarse.min() / max(sharp.min(), 1e-30)) if factor > 1 else 1.0
    curve = joined((looked, coarse), (fine, sharp * scale))
    return estimate("double wedge", lowest(fine, sharp), 0.9 * steady * min(1.0, 2.0 * clear), reason, *curve)


def _leakage(rows: _Rows, centres: _Reals) -> _Reals:
    """Return what is outside the wedge, relative to all `(part, centre)`, of half turns `(slice, view, column)`.

    Each part goes by angular frequencies of its own. Only columns are taken that both halves of the turn see, fading
    out towards the ends of those.
    """
    _, views, columns = rows.shape
    edges = gaussian_filter1d(rows, SMOOTHING, axis=2, order=1, mode="nearest")
    splines = spline_filter1d(edges[:, :, ::-1], axis=2, mode="mirror").astype(np.float32)
    angular = np.abs(fft.fftfreq(2 * views, 1 / (2 * views)))[:, None]
    radial = np.abs(fft.rfftfreq(columns))[None, :]
    # of an object that may reach as far as the detector is wide from the axis
    empty = (angular > 2 * np.pi * columns * radial) & (angular >= LOWEST)
    place = np.arange(columns)
    result = np.zeros((PARTS, centres.size))
    together = max(1, TOGETHER_BYTES // (4 * 4 * views * columns))
    for one, spline in zip(edges, splines, strict=True):
        whole = float(np.sum(one.astype(np.float64) ** 2))
        for first in range(0, centres.size, together):
            some = centres[first : first + together]
            full = np.empty((some.size, 2 * views, columns), dtype=np.float32)
            for full_turn, centre in zip(full, some, strict=True):
                reach = min(float(centre), columns - 1 - float(centre)) + 0.5
                away = np.abs(place - float(centre)) / reach
                window = np.cos(0.5 * np.pi * np.clip(2 * away - 1, 0.0, 1.0)) ** 2
                full_turn[:views] = one * window.astype(np.float32)
                _mirror(spline, 2 * float(centre) - (columns - 1), full_turn[views:])
                full_turn[views:] *= -window.astype(np.float32)
            seen = np.sum(full.astype(np.float64) ** 2, axis=(1, 2))
            spectrum = np.abs(fft.rfft2(full, axes=(1, 2), norm="ortho"))
            left = np.sum(spectrum * empty, axis=2) / np.sqrt(empty.sum())
            left /= np.sqrt(seen + 0.02 * whole + 1e-30)[:, None]
            for part in range(PARTS):
                result[part, first : first + some.size] += PARTS * left[:, part::PARTS].sum(axis=1)
    return result / len(rows)


def _mirror(spline: _Rows, shift: float, out: _Rows) -> None:
    """Put the mirrored half turn, moved by `shift` columns, into `out (view, column)`; zeros where it does not see."""
    columns = spline.shape[1]
    whole = int(np.floor(shift))
    part = np.float32(shift - whole)
    # the cubic B-spline at the four places around
    weights = (part**3, 1 + 3 * part + 3 * part**2 - 3 * part**3, 4 - 6 * part**2 + 3 * part**3, (1 - part) ** 3)
    out[:] = 0.0
    first, last = max(0, whole + 2), min(columns, columns + whole - 1)
    if last <= first:
        return
    for number, weight in enumerate(weights):
        start = first - whole + number - 2
        out[:, first:last] += np.float32(weight / 6) * spline[:, start : start + last - first]
