"""What the views of a sinogram of a parallel beam tell of its angles.

Whether they cover half a turn or a full one, and whether the last view repeats the first, is found from the views: half
a turn later a parallel beam sees the mirror image.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from equipoise_engine.recipe import AngleRange

MIN_VIEWS = 8
MAX_STEPS = 12
"""Steps between views at the ends that tell whether the last one repeats the first."""
ALIKE = 1.5
"""How many times as much as views a few steps apart mirrored views may differ."""
MAX_PAIRS = 64
"""Pairs of views half the scan apart that are looked at."""
FINER = 8
"""Parts of a column that views are moved by."""
REPEATED = ", and the last repeats the first"


def find_range(sinogram: NDArray[np.float64]) -> tuple[AngleRange, str, bool]:
    """Return the range of angles that the views cover, why, and whether the views show it.

    Parameters
    ----------
    sinogram
        `(view, column)`, float64.
    """
    views = sinogram.shape[0]
    edge = max(sinogram.shape[1] // 50, 1)
    border = np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1)
    border = border[np.isfinite(border)]
    background = float(np.median(border)) if border.size else 0.0
    rows = np.nan_to_num(sinogram - background, posinf=0.0, neginf=0.0)
    half = views // 2
    offsets = np.arange(half - 2, half + 3)
    across = [_across(rows, int(offset)) for offset in offsets]
    opposite = min(across)
    last = _difference(rows[:1], rows[-1:, ::-1])
    # What views differ by in a few steps is all that mirror images may differ by.
    ends = int(np.clip(views // 24, 2, MAX_STEPS))
    allowed = ALIKE * _difference(rows[:-ends], rows[ends:])
    if opposite < min(last, allowed):
        # The lowest point of a parabola through the differences is the number of views in half a turn.
        bend, slope, _ = np.polyfit(offsets - half, across, 2)
        turn = 2 * half - slope / bend if bend > 0 else views
        repeats = bool(abs(turn - (views - 1)) < abs(turn - views))
        reason = "half the views later the mirror image is seen, so they cover a full turn"
        return (
            AngleRange(start_deg=0.0, stop_deg=360.0, inclusive=repeats),
            reason + (REPEATED if repeats else ""),
            True,
        )
    if last < allowed:
        repeats = _repeats(rows, ends)
        reason = "the last view is the mirror image of the first, so they cover half a turn"
        return (
            AngleRange(start_deg=0.0, stop_deg=180.0, inclusive=repeats),
            reason + (REPEATED if repeats else ""),
            True,
        )
    return (
        AngleRange(start_deg=0.0, stop_deg=180.0),
        "half a turn is usual, but no views are mirror images of each other",
        False,
    )


def _across(rows: NDArray[np.float64], offset: int) -> float:
    """Return what views differ by from the mirrored ones so many views later."""
    count = rows.shape[0] - offset
    pairs = np.unique(np.linspace(0, count - 1, min(count, MAX_PAIRS)).astype(int))
    return _difference(rows[pairs], rows[pairs + offset][:, ::-1])


def _repeats(rows: NDArray[np.float64], ends: int) -> bool:
    """Whether the last view of half a turn is the first one mirrored, or lies a step before it.

    Views k apart by their numbers across the seam are k steps apart where the last repeats the first, and k + 1 where
    it does not; what views near the seam differ by in so many steps tells which.
    """
    near = (rows[: 2 * ends], rows[-2 * ends :])
    steps = [0.0] + [
        float(np.mean([_difference(part[i][None], part[i + k][None]) for part in near for i in range(2 * ends - k)]))
        for k in range(1, ends + 2)
    ]
    repeating = following = 0.0
    for k in range(1, ends + 1):
        seam = np.mean([_difference(rows[k - i : k - i + 1], rows[-1 - i][None, ::-1]) for i in range(k + 1)])
        repeating += abs(float(seam - steps[k]))
        following += abs(float(seam - steps[k + 1]))
    return repeating < following


def _difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean square difference of views `(view, column)` from others, moved along as far as fits best."""
    columns = first.shape[1]
    size = int(scipy.fft.next_fast_len(2 * columns, real=True))
    product = (np.conj(scipy.fft.rfft(first, size)) * scipy.fft.rfft(second, size)).sum(axis=0)
    correlation = FINER * scipy.fft.irfft(product, FINER * size)
    energy = float((first**2).sum() + (second**2).sum())
    return max(energy - 2.0 * float(correlation.max()), 0.0) / first.size
