"""The open beam: what each detector element counts without an object, and when the beam is off."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Samples
from equipoise_engine.errors import BadInput

LEAST_SHARE = 1e-6
"""An element whose open-beam signal is below this share of its row's median cannot be divided by."""

LOOKED_AT = 100
"""Places of a view, at least where there are so many, that tell how bright it is."""
UNLIT = 0.02
"""Share of the usual level below which a view may have no beam."""
ABRUPT = 20.0
"""How many times as bright as such views those right before and after are."""


@dataclass(frozen=True)
class OpenBeam:
    """What the detector elements of some rows see of the beam.

    Parameters
    ----------
    signal
        Open beam minus dark `(row, column)`, float64, counts; NaN of an element that sees nothing.
    dark
        Mean or median beam-off frame `(row, column)`, float64, counts.
    typical
        Median of `signal` along each row `(row,)`, float64; NaN of a row that sees nothing.
    """

    signal: NDArray[np.float64]
    dark: NDArray[np.float64]
    typical: NDArray[np.float64]

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Elements that see nothing `(row, column)`."""
        return np.isnan(self.signal)

    @property
    def floor(self) -> NDArray[np.float32]:
        """Smallest transmission that can be told from none `(row,)`, float32: half a count."""
        return np.clip(0.5 / np.nan_to_num(self.typical, nan=1.0), 1e-7, 1e-2).astype(np.float32)

    def below(self, share: float) -> NDArray[np.bool_]:
        """Return which elements see less than a share of their row's median, or nothing, `(row, column)`."""
        with np.errstate(invalid="ignore"):
            return ~(self.signal > share * self.typical[:, None])


def open_beam(
    scan: CtAcquisition,
    rows: NDArray[np.intp],
    average: Literal["mean", "median"],
    level: NDArray[np.float64] | None = None,
) -> OpenBeam:
    """Return the open beam of detector rows.

    Parameters
    ----------
    scan
        Its flats and darks; without darks zero is taken.
    rows
        Indices of detector rows, rising.
    average
        How frames are put together; values that are not finite are left out.
    level
        Counts of the open beam `(row,)`, where the scan has no flats.
    """
    size = (rows.size, scan.shape[2])
    dark = np.zeros(size) if scan.darks is None else np.nan_to_num(_together(scan.darks, rows, average), nan=0.0)
    if scan.flats is not None:
        signal = _together(scan.flats, rows, average) - dark
    elif level is not None:
        signal = level[:, None] - dark
    else:
        raise BadInput(f"{scan.path.name}: there are no open-beam frames")
    with np.errstate(invalid="ignore"):
        signal = np.where(np.isfinite(signal) & (signal > 0), signal, np.nan)
        typical = np.full(rows.size, np.nan)
        seen = ~np.isnan(signal).all(axis=1)
        # without holes, the usual case, the plain median takes half the time
        median = np.nanmedian if np.isnan(signal).any() else np.median
        typical[seen] = median(signal[seen], axis=1)
        signal[~(signal > LEAST_SHARE * typical[:, None])] = np.nan
    return OpenBeam(signal, dark, typical)


def brightest(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the counts that one in a hundred values of each row reaches `(row,)`, of values `(row, view, column)`.

    Without open-beam frames this is the best guess at the open beam.
    """
    finite = np.where(np.isfinite(values), values, -np.inf).reshape(values.shape[0], -1)
    place = -max(finite.shape[1] // 100, 1)
    return np.partition(finite, place, axis=1)[:, place].astype(np.float64)


def level_of(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how bright views are `(row, view)`, float64, of transmission `(row, view, column)`.

    It is the mean over places spread evenly, at each of which the median of three columns is taken: single elements
    that measure wrongly do not matter, and an object that turns changes it little by little. It is NaN where all are.
    """
    columns = values.shape[2]
    if columns < 3:
        return np.asarray(values.mean(axis=2, dtype=np.float64))
    apart = 3 * max(1, columns // (3 * LOOKED_AT))
    first, second, third = (values[:, :, n : columns - 2 + n : apart] for n in range(3))
    low, high = np.fmin(first, second), np.fmax(first, second)
    middle = np.fmax(low, np.fmin(high, third))
    good = ~np.isnan(middle)
    if good.all():
        return np.asarray(middle.mean(axis=2, dtype=np.float64))
    total = np.where(good, middle, 0).sum(axis=2, dtype=np.float64)
    number = good.sum(axis=2)
    return np.asarray(np.where(number > 0, total / np.maximum(number, 1), np.nan))


def is_low(levels: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which views may have no beam `(row, view)`, after their levels, and the usual ones `(row,)`."""
    with np.errstate(invalid="ignore"):
        return np.asarray(levels < UNLIT * np.maximum(usual, 0.0)[:, None])


def without_beam(levels: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return in which views the beam was off `(row, view)`, bool.

    There hardly anything is left of the usual level, and the views right before and after are far brighter: where an
    object hides all of the beam, it grows dark little by little.

    Parameters
    ----------
    levels
        As `level_of`, `(row, view)`.
    usual
        Median over views of the whole scan `(row,)`.
    """
    low = is_low(levels, usual)
    for row in np.flatnonzero(low.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], low[row], [False]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2):
            beside = [
                levels[row, n] for n in (first - 1, last) if 0 <= n < levels.shape[1] and not np.isnan(levels[row, n])
            ]
            if not beside or min(beside) < ABRUPT * float(levels[row, first:last].max()):
                low[row, first:last] = False
    return low


def taken(samples: Samples, frames: range, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return part of a stack of frames `(frame, row, column)` as it is stored; `rows` are rising indices."""
    return _cut(samples, frames, _pieces(rows))


def runs(rows: NDArray[np.intp]) -> list[slice]:
    """Return the parts of rising indices that follow each other without a gap."""
    ends = [0, *(int(n) + 1 for n in np.flatnonzero(np.diff(rows) > 1)), rows.size]
    return [slice(first, last) for first, last in pairwise(ends)]


def _pieces(rows: NDArray[np.intp]) -> list[slice]:
    """Return slices that make up rising indices: one where they are evenly spaced."""
    steps = np.diff(rows)
    if steps.size == 0 or (steps == steps[0]).all():
        return [slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]) if steps.size else 1)]
    return [slice(int(rows[run][0]), int(rows[run][-1]) + 1) for run in runs(rows)]


def _cut(samples: Samples, frames: range, pieces: list[slice]) -> NDArray[Any]:
    parts = [np.asarray(samples[frames.start : frames.stop, piece, :]) for piece in pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _together(frames: Samples, rows: NDArray[np.intp], average: Literal["mean", "median"]) -> NDArray[np.float64]:
    """Return the mean or median `(row, column)` of frames, leaving out values that are not finite."""
    if frames.shape[0] == 0:
        raise BadInput("there is no frame to take the mean of")
    if average == "median":
        return np.concatenate([_median(frames, rows[n : n + 1]) for n in range(rows.size)])
    pieces = _pieces(rows)
    total = np.zeros((rows.size, frames.shape[2]))
    number = np.full(total.shape, frames.shape[0])
    for index in range(frames.shape[0]):
        frame = _cut(frames, range(index, index + 1), pieces)[0].astype(np.float64)
        good = np.isfinite(frame)
        if not good.all():
            frame[~good] = 0.0
            number -= ~good
        total += frame
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _median(frames: Samples, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    values = taken(frames, range(frames.shape[0]), rows).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    result = np.full(values.shape[1:], np.nan)
    seen = ~np.isnan(values).all(axis=0)
    result[seen] = np.nanmedian(values[:, seen], axis=0)
    return result
