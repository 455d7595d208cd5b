"""Angles of the views of a stack: evenly, as the views show, and without those that belong to other frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.formats.angles import evenly, to_radians
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.stacks.sinogram import MIN_VIEWS, find_range
from equipoise_engine.recipe import AngleRange

__all__ = ["found_angles", "trimmed"]

LOOKS = 5
"""Views that tell in which row most changes."""
NEARLY = 0.02
"""Share of a step between angles that repeated ones may differ by."""


def found_angles(
    projections: Samples, flats: Samples | None, darks: Samples | None, missing: tuple[int, ...], name: str
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """Return the even angles that the views show, in radians `(view,)`, why they were taken, and warnings.

    Parameters
    ----------
    projections, flats, darks
        `(frame, row, column)`.
    missing
        Places at which views are missing, of all that there should be.
    name
        File named in messages.

    Raises
    ------
    BadInput
        There is one view only.
    """
    views = int(projections.shape[0])
    covered, reason, sure = AngleRange(start_deg=0.0, stop_deg=180.0), "half a turn is usual", False
    if views >= MIN_VIEWS:
        covered, reason, sure = find_range(_sinogram(projections, flats, darks))
    around = " with those of the missing images between them" if missing else ""
    said = (
        f"The file holds no angles; {covered.start_deg:g} to {covered.stop_deg:g} degrees"
        f" {'with' if covered.inclusive else 'without'} the end{around} were taken: {reason}."
        f"{'' if sure else ' This is a guess.'} Give the angles if they are others."
    )
    angles = np.delete(evenly(covered, views + len(missing)), list(missing))
    angle_rad, _, notes = to_radians(angles, "degrees", where=name)
    return angle_rad, reason, (said, *notes)


def _sinogram(projections: Samples, flats: Samples | None, darks: Samples | None) -> NDArray[np.float64]:
    """Return the row in which most changes from view to view `(view, column)`, float64."""
    views, rows, columns = (int(n) for n in projections.shape)
    check_memory(4 * views * columns * 8, f"one sinogram of {views} views and {columns} columns")
    some = np.stack([_frame(projections, (view * views) // LOOKS) for view in range(min(views, LOOKS))])
    dark = np.zeros((rows, columns)) if darks is None else _frame(darks, darks.shape[0] // 2)
    beam = None if flats is None else _frame(flats, flats.shape[0] // 2) - dark
    if beam is not None:
        typical = np.median(beam[np.isfinite(beam)]) if np.isfinite(beam).any() else 1.0
        beam = np.where(beam > 0.01 * typical, beam, max(float(typical), 1.0))
        some = (some - dark) / beam
    inner = slice(rows // 4, max(rows - rows // 4, rows // 4 + 1))
    row = rows // 4 + int(np.argmax(np.nan_to_num(some[:, inner], posinf=0.0, neginf=0.0).var(axis=0).mean(axis=1)))
    values = np.asarray(projections[:, row, :], dtype=np.float64)
    if beam is None:
        return values
    values = (values - dark[row]) / beam[row]
    return np.asarray(-np.log(np.clip(np.nan_to_num(values, nan=1.0), 1e-4, 1e4)))


def _frame(samples: Samples, index: int) -> NDArray[np.float64]:
    return np.asarray(samples[index], dtype=np.float64)


def trimmed(angle_deg: NDArray[np.float64], views: int) -> tuple[NDArray[np.float64], str]:
    """Return angles without those that repeat the first or the last where the others are as many as the views.

    While flats and darks are taken the object stands still: their angles repeat those of the first and the last view.
    The text says what was left out, and is empty where nothing was.

    Parameters
    ----------
    angle_deg
        `(angle,)`, float64.
    views
        Number of projections.
    """
    extra = angle_deg.size - views
    if extra <= 0 or views < 2:
        return angle_deg, ""
    steps = np.abs(np.diff(angle_deg))
    moving = np.flatnonzero(steps > NEARLY * float(np.median(steps[steps > 0])) if (steps > 0).any() else steps > 0)
    if moving.size == 0:
        return angle_deg, ""
    first, last = int(moving[0]), angle_deg.size - 2 - int(moving[-1])
    if first + last != extra:
        return angle_deg, ""
    return angle_deg[first : angle_deg.size - last], (
        f"{first} repeats of the first and {last} of the last angle were left out, which belong to other frames"
    )
