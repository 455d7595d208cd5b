"""From detector counts to line integrals of attenuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Samples
from equipoise_engine.errors import BadInput

MAX_BAD_SHARE = 0.05
"""Largest share of values that are not finite and are made up from their neighbours."""
DEAD_SHARE = 0.01
"""A pixel whose open-beam signal is below this share of its row's median is dead."""
TRANSMISSION_FLOOR = 1e-4
"""Smallest transmission of data that are not counts; counts are clipped to half a count."""


@dataclass(frozen=True)
class Prepared:
    """Sinograms, and what was done to the numbers on the way.

    Parameters
    ----------
    sinograms
        Line integrals of attenuation `(slice, view, column)`, float32, without unit.
    repaired_pixels
        Number of detector pixels and of single values that were made up from their neighbours.
    clipped
        Number of values whose transmission was not positive, or below the floor.
    """

    sinograms: NDArray[np.float32]
    repaired_pixels: int
    clipped: int


def attenuation(scan: CtAcquisition, rows: slice) -> NDArray[np.float32]:
    """Return line integrals of attenuation `(slice, view, column)`, float32, of the detector rows in `rows`.

    Raises
    ------
    BadInput
        More than 5 % of the values are not finite, or a whole detector row is dead.
    """
    return prepare(scan, rows).sinograms


def prepare(scan: CtAcquisition, rows: slice) -> Prepared:
    """Return line integrals of attenuation of the detector rows in `rows`, and what was repaired.

    Counts `p` become `-log((p - d) / (f - d))` with the mean dark frame `d` and the mean open-beam frame `f`.
    Dead pixels and values that are not finite are interpolated between their neighbours along the columns.

    Raises
    ------
    BadInput
        More than 5 % of the values are not finite, or a whole detector row is dead.
    """
    start, stop, step = rows.indices(scan.shape[1])
    if not range(start, stop, step):
        raise BadInput(f"{scan.path.name}: no slices in {start}:{stop}; the scan has {scan.shape[1]}")
    values = np.asarray(scan.projections[:, rows, :]).astype(np.float32).transpose(1, 0, 2)
    values = np.ascontiguousarray(values)
    bad = ~np.isfinite(values)
    _check_bad(bad, scan, start, step)
    dead = np.zeros((values.shape[0], values.shape[2]), dtype=bool)
    clipped = 0
    match scan.state:
        case DataState.COUNTS:
            beam, dark = _beam(scan, rows, values)
            with np.errstate(invalid="ignore"):
                dead = ~np.isfinite(beam) | (beam <= 0)
                typical = _row_medians(np.where(dead, np.nan, beam), scan, start, step)
                dead |= ~(beam > DEAD_SHARE * typical[:, None])
            beam = np.where(dead, 1.0, beam).astype(np.float32)
            values -= np.where(dead, 0.0, dark).astype(np.float32)[:, None, :]
            values /= beam[:, None, :]
            floor = np.clip(0.5 / typical, 1e-7, 1e-2).astype(np.float32)[:, None, None]
            clipped = _negative_log(values, floor, bad | dead[:, None, :])
        case DataState.TRANSMISSION:
            clipped = _negative_log(values, np.float32(TRANSMISSION_FLOOR), bad)
        case DataState.ATTENUATION:
            pass
        case _:
            raise BadInput(f"{scan.path.name}: {scan.state.value} cannot be turned into attenuation")
    single = int(np.count_nonzero(bad & ~dead[:, None, :]))
    _repair(values, bad | dead[:, None, :])
    return Prepared(values, int(np.count_nonzero(dead)) + single, clipped)


def _check_bad(bad: NDArray[np.bool_], scan: CtAcquisition, start: int, step: int) -> None:
    count = int(np.count_nonzero(bad))
    if count <= MAX_BAD_SHARE * bad.size:
        return
    row, view, column = (int(n) for n in np.argwhere(bad)[0])
    raise BadInput(
        f"{scan.path.name}: {count} of {bad.size} values ({100 * count / bad.size:.1f} %, at most"
        f" {100 * MAX_BAD_SHARE:.0f} % can be repaired) are not finite; the first is at (view, row, column) ="
        f" ({view}, {start + step * row}, {column})",
        "Export the projections again.",
    )


def _mean(frames: Samples, rows: slice) -> NDArray[np.float64]:
    """Return the mean `(row, column)` of frames, leaving out values that are not finite."""
    total: NDArray[np.float64] | None = None
    number: Any = 0
    for index in range(frames.shape[0]):
        frame = np.asarray(frames[index, rows, :], dtype=np.float64)
        good = np.isfinite(frame)
        frame = np.where(good, frame, 0.0)
        total = frame if total is None else total + frame
        number = number + good
    if total is None:
        raise BadInput("there is no frame to take the mean of")
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _beam(
    scan: CtAcquisition, rows: slice, values: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return open beam minus dark, and dark, each `(slice, column)`."""
    size = (values.shape[0], values.shape[2])
    dark = np.zeros(size) if scan.darks is None else np.nan_to_num(_mean(scan.darks, rows), nan=0.0)
    if scan.flats is not None:
        return _mean(scan.flats, rows) - dark, dark
    # Without open-beam frames the brightest pixels of a slice are the best guess.
    finite = np.where(np.isfinite(values), values, -np.inf)
    brightest = np.partition(finite.reshape(size[0], -1), -max(values[0].size // 100, 1), axis=1)
    level = brightest[:, -max(values[0].size // 100, 1)].astype(np.float64)
    return np.broadcast_to(level[:, None], size) - dark, dark


def _row_medians(beam: NDArray[np.float64], scan: CtAcquisition, start: int, step: int) -> NDArray[np.float64]:
    """Return the median open-beam signal of each row `(slice,)`."""
    empty = np.flatnonzero(~np.isfinite(beam).any(axis=1))
    if empty.size:
        raise BadInput(
            f"{scan.path.name}: detector row {start + step * int(empty[0])} has no open-beam signal in any of"
            f" its {beam.shape[1]} pixels (open beam minus dark is not positive)",
            "Leave out this row, or check which frames are open-beam and which are dark.",
        )
    return np.asarray(np.nanmedian(beam, axis=1), dtype=np.float64)


def _negative_log(
    values: NDArray[np.float32], floor: NDArray[np.float32] | np.float32, left_out: NDArray[np.bool_]
) -> int:
    """Replace transmissions by their negative logarithm in place; return how many were below the floor."""
    values[left_out] = 1.0
    clipped = int(np.count_nonzero(values < floor))
    np.maximum(values, floor, out=values)
    np.log(values, out=values)
    np.negative(values, out=values)
    return clipped


def _repair(values: NDArray[np.float32], bad: NDArray[np.bool_]) -> None:
    """Interpolate bad values in place: along the columns, or between views where a view has no good one."""
    for row in np.flatnonzero(bad.any(axis=(1, 2))):
        sinogram, faulty = values[row], bad[row]
        lost = faulty.all(axis=1)
        columns = np.arange(sinogram.shape[1])
        for view in np.flatnonzero(faulty.any(axis=1) & ~lost):
            hole = faulty[view]
            sinogram[view, hole] = np.interp(columns[hole], columns[~hole], sinogram[view, ~hole])
        if lost.any() and not lost.all():
            kept = np.flatnonzero(~lost)
            for view in np.flatnonzero(lost):
                after = int(np.searchsorted(kept, view))
                left, right = kept[max(after - 1, 0)], kept[min(after, kept.size - 1)]
                share = 0.0 if left == right else (view - left) / (right - left)
                sinogram[view] = (1.0 - share) * sinogram[left] + share * sinogram[right]
