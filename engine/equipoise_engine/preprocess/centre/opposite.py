"""The axis about which views and those half a turn later mirror each other; this holds for truncated objects too.

Source: Padfield 2012, doi:10.1109/TIP.2011.2181402, eq. 20 (normalised correlation over the overlap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter1d

from equipoise_engine.preprocess.centre.estimate import CentreEstimate, estimate, steadiness

_Reals = NDArray[np.float64]

MAX_PAIRS = 48
"""Opposite pairs of views that are looked at."""
SAME_RAD = np.deg2rad(1.0)
"""Views half a turn apart but for this are taken as opposite, where views are not even closer."""
MIN_VIEWS = 5
"""Fewest views that an axis is found from."""
ALONE = 0.45
"""Most confidence in views that were not measured but told from their neighbours: others must back it."""
STRAIGHT_ON_PX = 6.0
"""How far the object may move between views for one more view to be told from the last two."""
PARTS = 4
"""Parts of the pairs whose axes tell how sure the axis of all is, found within"""
NEAR_PX = 6.0
"""of that."""
SCALES = (0.7, 2.0, 5.0)
"""Widths of the edges that are compared, in columns: noise hides the fine ones."""
MAX_GAP_RAD = np.deg2rad(8.0)
"""Largest distance from half a turn that is put up with."""


def opposite_views(
    sinograms: NDArray[np.float32], angle_rad: _Reals, between: tuple[float, float]
) -> CentreEstimate | None:
    """Return the axis from the correlation of views with their mirrored opposites, or None without such views.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    angle_rad
        `(view,)`, float64.
    between
        First and last column that the axis may lie at.
    """
    order = np.argsort(angle_rad, kind="stable")
    angles = angle_rad[order]
    rising = np.diff(angles)
    step = float(np.median(rising[rising > 0])) if (rising > 0).any() else 0.0
    if step <= 0 or rising.size + 1 < MIN_VIEWS:
        return None
    near_enough = min(0.26 * step, SAME_RAD)
    rows = sinograms[:, order, :]
    short = np.pi - float(angles[-1] - angles[0])
    trust = 1.0
    diagonal = np.abs(0.5 * np.diff(np.diff(rows[:, : 2 * MAX_PAIRS], axis=2), axis=1))
    noise = float(np.median(diagonal)) / 0.6745
    if short <= near_enough:
        pairs = _paired(angles, step, near_enough)
    elif short < min(1.5 * step, MAX_GAP_RAD):
        # The views that are missing at either end go on as before.
        before, behind = 2 * rows[:, :1] - rows[:, 1:2], 2 * rows[:, -1:] - rows[:, -2:-1]
        rows = np.concatenate([before, rows, behind], axis=1)
        last = rows.shape[1] - 1
        pairs = _Pairs(np.array([0, 1]), np.array([last - 1, last]), np.zeros(2, dtype=np.float32))
        noise *= 2.0
        # what lies far out moves on by this many columns from view to view
        trust = float(np.clip(STRAIGHT_ON_PX / (step * rows.shape[2] / 2), 0.0, ALONE))
    elif short <= MAX_GAP_RAD:
        pairs = _Pairs(np.array([0]), np.array([angles.size - 1]), np.zeros(1, dtype=np.float32))
        trust = 0.4
    else:
        return None
    if pairs.first.size == 0:
        return None
    found = [_at_scale(rows, pairs, scale, noise, trust, between) for scale in SCALES]
    return max(found, key=lambda one: one.confidence)


@dataclass(frozen=True)
class _Pairs:
    """Views `first (pair,)`, and those half a turn later: `second`, or between it and the next at `share`."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    share: NDArray[np.float32]


def _paired(angles: _Reals, step: float, near_enough: float) -> _Pairs:
    """Return pairs of views at `angles (view,)`, ascending, at most MAX_PAIRS."""
    wanted = angles + np.pi
    first = np.flatnonzero(wanted <= angles[-1] + near_enough)
    after = np.clip(np.searchsorted(angles, wanted[first], side="left"), 1, angles.size - 1)
    gap = angles[after] - angles[after - 1]
    share = np.clip((wanted[first] - angles[after - 1]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
    # between views that lie next to each other only, unless one of them is right there
    share = np.where(share < 0.02, 0.0, np.where(share > 0.98, 1.0, share))
    usable = np.flatnonzero((gap < 1.5 * step) | (share == 0) | (share == 1))
    kept = usable[np.unique(np.linspace(0, usable.size - 1, min(usable.size, MAX_PAIRS)).astype(int))]
    return _Pairs(first[kept], after[kept] - 1, share[kept].astype(np.float32))


def _at_scale(
    rows: NDArray[np.float32],
    pairs: _Pairs,
    scale: float,
    noise: float,
    trust: float,
    between: tuple[float, float],
) -> CentreEstimate:
    """Return the axis from edges as wide as `scale` columns of rows `(slice, view, column)` with such noise."""
    # Edges are compared, not the smooth bulk, which would pull the optimum to the middle of the detector.
    share = pairs.share[:, None]
    opposite = (1 - share) * rows[:, pairs.second]
    if share.any():
        opposite += share * rows[:, pairs.second + 1]
    own = gaussian_filter1d(rows[:, pairs.first], scale, axis=2, order=1, mode="nearest").reshape(-1, rows.shape[2])
    other = -gaussian_filter1d(opposite, scale, axis=2, order=1, mode="nearest").reshape(-1, rows.shape[2])[:, ::-1]
    likeness = _likeness(own, other)
    centre, best, rival = _peak(likeness, between)
    near = (max(between[0], centre - NEAR_PX), min(between[1], centre + NEAR_PX))
    if own.shape[0] >= PARTS:
        alone = [_peak(_likeness(own[n::PARTS], other[n::PARTS]), near)[0] for n in range(PARTS)]
        error, steady = steadiness(np.array(alone))
    else:
        # too few rows to be taken apart: they are made as noisy again
        random = np.random.default_rng(0)

        def noisier(edges: NDArray[np.floating]) -> NDArray[np.floating]:
            more = random.normal(scale=noise, size=edges.shape)
            return np.asarray(edges + gaussian_filter1d(more, scale, axis=1, order=1, mode="nearest"))

        alone = [_peak(_likeness(noisier(own), noisier(other)), near)[0] for _ in range(PARTS)]
        error, steady = steadiness(np.array(alone) * np.sqrt(PARTS))
    clear = float(np.clip(2.0 * (best - rival) / max(best, 1e-6), 0.0, 1.0))
    confidence = trust * steady * clear * float(np.clip(1.5 * best, 0.0, 1.0))
    positions = np.arange(likeness.size) / 2.0
    allowed = (positions >= between[0]) & (positions <= between[1])
    reason = f"likeness {best:.2f}, next {rival:.2f}, uncertain by {error:.2f} px"
    return estimate("opposite views", centre, confidence, reason, positions[allowed], 1.0 - likeness[allowed])


def _likeness(own: NDArray[np.floating], other: NDArray[np.floating]) -> _Reals:
    """Return the normalised correlation of rows `(row, column)` with mirrored ones per lag, `(2 column - 1,)`."""
    columns = own.shape[1]
    size = int(fft.next_fast_len(2 * columns, real=True))

    def transformed(rows: NDArray[np.floating]) -> NDArray[np.complex128]:
        return np.asarray(fft.rfft(rows.astype(np.float64), size, axis=-1))

    def lags(product: NDArray[np.complex128]) -> _Reals:
        around = fft.irfft(product, size)
        return np.concatenate([around[size - columns + 1 :], around[:columns]])

    joint = np.zeros(size // 2 + 1, dtype=np.complex128)
    energy_a, energy_b = np.zeros(columns), np.zeros(columns)
    for first in range(0, own.shape[0], MAX_PAIRS):
        some = slice(first, first + MAX_PAIRS)
        joint += (transformed(own[some]) * np.conj(transformed(other[some]))).sum(axis=0)
        energy_a += (own[some].astype(np.float64) ** 2).sum(axis=0)
        energy_b += (other[some].astype(np.float64) ** 2).sum(axis=0)
    ones = transformed(np.ones(columns))
    seen_a = lags(transformed(energy_a) * np.conj(ones))
    seen_b = lags(ones * np.conj(transformed(energy_b)))
    # Empty borders are alike too: an overlap counts for as much as there is to see in it.
    whole = float(np.sqrt(energy_a.sum() * energy_b.sum()))
    return np.asarray(lags(joint) / (np.sqrt(np.maximum(seen_a * seen_b, 0.0)) + 0.02 * whole + 1e-30))


def _peak(likeness: _Reals, between: tuple[float, float]) -> tuple[float, float, float]:
    """Return the axis at the best lag, refined with a parabola, the likeness there and the best elsewhere."""
    columns = (likeness.size + 1) // 2
    centres = np.arange(likeness.size) / 2.0
    allowed = (centres >= between[0]) & (centres <= between[1])
    values = np.where(allowed, likeness, -1.0)
    best = int(np.argmax(values))
    shift = 0.0
    if 0 < best < likeness.size - 1:
        left, top, right = likeness[best - 1 : best + 2]
        bend = left - 2 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    width = max(columns // 20, 3)
    elsewhere = np.concatenate([values[: max(best - width, 0)], values[best + width + 1 :]])
    rival = float(elsewhere.max()) if elsewhere.size else -1.0
    return (best + float(np.clip(shift, -0.5, 0.5))) / 2.0, float(likeness[best]), max(rival, 0.0)
