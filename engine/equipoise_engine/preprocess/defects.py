"""Detector elements that measure wrongly, and making up what is missing from what is beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NEIGHBOURHOOD = 5
"""Columns whose median an element is compared with."""
BESIDE = 7
"""Columns on either side whose variation an element's is compared with,"""
FEWEST_BESIDE = 3
"""and fewest near an end."""
PROBABLE_ERROR = 0.6745
"""Median size of normally distributed values over their standard deviation."""
LEAST_SPREAD = 1e-4
"""Smallest standard deviation of a row's elements, as a share of their size: data without noise have none at all."""


def hot_elements(mean: NDArray[np.float64], above: float) -> NDArray[np.bool_]:
    """Return which elements stand out from their neighbours, bool `(row, column)`.

    Parameters
    ----------
    mean
        Average over all views `(row, column)`, float64; NaN where there is none.
    above
        Standard deviations of the row's noise, from which one stands out of the median around it.
    """
    hot = np.zeros(mean.shape, dtype=np.bool_)
    for row in np.flatnonzero(~np.isnan(mean).all(axis=1)):
        known = np.flatnonzero(~np.isnan(mean[row]))
        line = mean[row, known]
        # beyond the ends the line goes on as steep as it is, where there is enough of it
        beyond = min(NEIGHBOURHOOD // 2, line.size - 1)
        longer = np.pad(line, beyond, mode="reflect", reflect_type="odd")
        smooth = ndimage.median_filter(longer, NEIGHBOURHOOD, mode="nearest")[beyond : beyond + line.size]
        spread = max(float(noise_of(line)), LEAST_SPREAD * float(np.median(np.abs(line))))
        hot[row, known] = np.abs(line - smooth) > above * spread
    return hot


def still_elements(spread: NDArray[np.floating], below: float) -> NDArray[np.bool_]:
    """Return which elements hardly vary while those on both sides do, bool `(row, column)`.

    An object moves over all elements between two that it moves over; so nothing but a dead element stands still there.

    Parameters
    ----------
    spread
        Standard deviation over the views `(row, column)`; NaN where there is none.
    below
        Share of what those on either side vary by, below which one is still.
    """
    known = np.nan_to_num(spread, nan=0.0)
    columns = known.shape[1]
    # next to an end there are too few on one side to tell
    before, behind = np.zeros_like(known), np.zeros_like(known)
    if columns > BESIDE:
        windows = np.median(np.lib.stride_tricks.sliding_window_view(known, BESIDE, axis=1), axis=-1)
        before[:, BESIDE:], behind[:, : columns - BESIDE] = windows[:, :-1], windows[:, 1:]
    for number in range(FEWEST_BESIDE, min(BESIDE, columns)):
        before[:, number] = np.median(known[:, :number], axis=1)
        behind[:, columns - 1 - number] = np.median(known[:, columns - number :], axis=1)
    return np.asarray(known < below * np.minimum(before, behind))


def noise_of(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the standard deviation of noise along the last axis, `(...)` of values `(..., column)`.

    It is that of second differences, which leave out what changes slowly, after their median, which outliers do not
    move. Fewer than three columns have none.
    """
    if values.shape[-1] < 3:
        return np.zeros(values.shape[:-1], dtype=values.dtype)
    bend = np.abs(2 * values[..., 1:-1] - values[..., :-2] - values[..., 2:])
    return np.asarray(np.median(bend, axis=-1) / (PROBABLE_ERROR * np.sqrt(6.0)))


def rows_with_holes(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return indices of the rows of `values (row, view, column)` in which something is NaN."""
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(np.isnan(values.reshape(values.shape[0], -1).min(axis=1)))


def fill_within_views(
    sinogram: NDArray[np.float32], holes: NDArray[np.bool_], floor: float | None = None
) -> NDArray[np.bool_]:
    """Return which views have no good value `(view,)`, bool; in all others holes are interpolated in place.

    Parameters
    ----------
    sinogram
        `(view, column)`, float32.
    holes
        Which of its values are missing, bool, of the same shape.
    floor
        Interpolate the logarithm of values of at least this; None interpolates the values themselves.
    """
    lost = holes.all(axis=1)
    if lost.all():
        return np.asarray(lost)
    shared = np.asarray(holes[~lost].all(axis=0))
    # an element that is missing everywhere is the usual case, and done at once for all views
    usual = ~lost & (holes == shared).all(axis=1)
    good = np.flatnonzero(~shared)
    for column in np.flatnonzero(shared):
        after = int(np.searchsorted(good, column))
        left, right = int(good[max(after - 1, 0)]), int(good[min(after, good.size - 1)])
        if left == right:
            sinogram[usual, column] = sinogram[usual, left]
            continue
        share = np.float32((column - left) / (right - left))
        beside = _logarithm(sinogram[usual, left], floor), _logarithm(sinogram[usual, right], floor)
        sinogram[usual, column] = _back((1 - share) * beside[0] + share * beside[1], floor)
    columns = np.arange(sinogram.shape[1])
    for view in np.flatnonzero(holes.any(axis=1) & ~lost & ~usual):
        hole = holes[view]
        known = _logarithm(sinogram[view, ~hole], floor)
        sinogram[view, hole] = _back(np.interp(columns[hole], columns[~hole], known).astype(np.float32), floor)
    return np.asarray(lost)


def fill_between_views(sinogram: NDArray[np.float32], lost: NDArray[np.bool_]) -> None:
    """Interpolate lost views `(view,)` of a sinogram `(view, column)` in place, where it has any other."""
    kept = np.flatnonzero(~lost)
    for view in np.flatnonzero(lost) if kept.size else ():
        after = int(np.searchsorted(kept, view))
        left, right = kept[max(after - 1, 0)], kept[min(after, kept.size - 1)]
        share = 0.0 if left == right else (view - left) / (right - left)
        sinogram[view] = (1.0 - share) * sinogram[left] + share * sinogram[right]


def fill_from_rows(values: NDArray[np.float32], lost: NDArray[np.bool_]) -> None:
    """Put the nearest row of the same view in place where `lost (row, view)` of `values (row, view, column)`.

    Views that are lost in all rows become zero.
    """
    for view in np.flatnonzero(lost.any(axis=0)):
        kept = np.flatnonzero(~lost[:, view])
        for row in np.flatnonzero(lost[:, view]):
            values[row, view] = values[kept[np.argmin(np.abs(kept - row))], view] if kept.size else 0.0


def _logarithm(values: NDArray[np.float32], floor: float | None) -> NDArray[np.float32]:
    return values if floor is None else np.asarray(np.log(np.maximum(values, np.float32(floor))))


def _back(values: NDArray[np.float32], floor: float | None) -> NDArray[np.float32]:
    return values if floor is None else np.asarray(np.exp(values))
