"""The views of half a turn of a parallel beam at even angles, as methods of Fourier transforms take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Reals = NDArray[np.float64]

MAX_VIEWS = 360
"""Views that half a turn is thinned to."""
MIN_VIEWS = 24
"""Fewest views of half a turn."""
MISSING_STEPS = 3.5
"""Largest gap between views that is bridged, in usual steps."""


def half_turn(sinograms: NDArray[np.float32], angle_rad: _Reals) -> tuple[NDArray[np.float32], _Reals] | None:
    """Return sinograms `(slice, view, column)` of half a turn at even angles `(view,)`; None where views are missing.

    The angles start at the first view; the one half a turn later is not among them.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    angle_rad
        `(view,)`, float64, in any order and over any number of turns.
    """
    turned = np.mod(angle_rad, 2 * np.pi) if np.ptp(angle_rad) > 2.1 * np.pi else angle_rad
    order = np.argsort(turned, kind="stable")
    angles = turned[order] - turned[order[0]]
    rising = np.diff(angles)
    rising = rising[rising > 1e-6]
    if rising.size < MIN_VIEWS - 1:
        return None
    step = float(np.median(rising))
    views = round(np.pi / step)
    if views < MIN_VIEWS:
        return None
    views = min(views, MAX_VIEWS)
    wanted = np.arange(views) * np.pi / views
    within = angles <= np.pi + step
    largest = float(np.diff(angles[within]).max())
    if largest > MISSING_STEPS * step or wanted[-1] - angles[-1] > 1.1 * step:
        return None
    after = np.clip(np.searchsorted(angles, wanted, side="left"), 1, angles.size - 1)
    gap = angles[after] - angles[after - 1]
    share = np.clip((wanted - angles[after - 1]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0).astype(np.float32)
    before, behind = sinograms[:, order[after - 1]], sinograms[:, order[after]]
    return (1 - share[:, None]) * before + share[:, None] * behind, wanted + turned[order[0]]


def liveliest(sinograms: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most `count` of the sinograms `(slice, view, column)`, those with the most edges."""
    if sinograms.shape[0] <= count:
        return sinograms
    edges = np.array([float(np.abs(np.diff(one, axis=1)).mean()) for one in sinograms])
    return sinograms[np.sort(np.argsort(edges)[-count:])]
