"""The axis about which a quick filtered back-projection is sharpest.

A wrong axis spreads every edge over an arc. The energy of the image hardly changes by that, so the mean length of its
gradient grows over the root of the mean square. Where the object reaches beyond the detector, or has no counts but
something that falls with them, this holds as well.

Source: Donath, Beckmann, Schreyer 2006, doi:10.1364/JOSAA.23.001048, with another measure of sharpness: theirs take an
object inside the field of view, in numbers above zero.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise_engine.fbp import filtered_back_projection
from equipoise_engine.geometry import ParallelBeam, SliceGeometry
from equipoise_engine.preprocess.centre.estimate import (
    CentreEstimate,
    binned,
    clearness,
    estimate,
    joined,
    lowest,
    steadiness,
)
from equipoise_engine.preprocess.centre.halfturn import MIN_VIEWS, half_turn, liveliest
from equipoise_engine.progress import Progress, Watch, unwatched

_Reals = NDArray[np.float64]
_Rows = NDArray[np.float32]

COARSE_COLUMNS = 128
"""Columns of the images of the first look; of wider detectors some are put together."""
FINE_COLUMNS = 512
"""Columns of the images of the last look."""
REACH = 0.48
"""Radius of the disc that is looked at, in sides of the image."""
SLICES = 1
"""Slices that are looked at."""


def sharpness(
    sinograms: _Rows, geometry: SliceGeometry, between: tuple[float, float], watch: Watch = unwatched
) -> CentreEstimate | None:
    """Return the axis from quick images, or None where the views do not make half a turn.

    Parameters
    ----------
    sinograms
        `(slice, view, column)`, float32.
    geometry
        Angles and lengths; its centre is not looked at.
    between
        First and last column that the axis may lie at.
    watch
        Called at each candidate; may raise Cancelled.
    """
    rows = liveliest(sinograms, SLICES)
    if isinstance(geometry, ParallelBeam):
        found = half_turn(rows, geometry.angle_rad)
        if found is None:
            return None
        rows, geometry = found[0], replace(geometry, angle_rad=found[1])
    elif geometry.angle_rad.size < MIN_VIEWS or np.ptp(geometry.angle_rad) < np.pi:
        return None
    columns = rows.shape[2]
    rough, fair = -(-columns // COARSE_COLUMNS), -(-columns // FINE_COLUMNS)
    looked = np.arange(between[0], between[1] + 0.5 * rough, rough)
    small = rows[:, :: max(1, rows.shape[1] // COARSE_COLUMNS)]
    thinned = replace(geometry, angle_rad=geometry.angle_rad[:: max(1, rows.shape[1] // COARSE_COLUMNS)])
    coarse = _blur(small, thinned, looked, rough, watch).mean(axis=0)
    near = float(np.clip(looked[int(np.argmin(coarse))], *between))
    if rough > fair:
        around = np.arange(near - 1.5 * rough, near + 1.5 * rough + 0.1, float(fair))
        around = around[(around >= between[0]) & (around <= between[1])]
        near = float(around[int(np.argmin(_blur(rows, geometry, around, fair, watch).mean(axis=0)))])
    fine = near + np.arange(-3.0, 3.01, 0.5) * fair
    fine = fine[(fine >= between[0]) & (fine <= between[1])]
    parts = _blur(rows, geometry, fine, fair, watch)
    sharp = parts.mean(axis=0)
    clear = clearness(coarse)
    error, steady = steadiness(np.array([lowest(fine, part) for part in parts]))
    reason = f"its minimum stands out by {100 * clear:.0f} %, uncertain by {error:.2f} px"
    scale = float(coarse.min() / max(sharp.min(), 1e-30)) if rough > fair else 1.0
    curve = joined((looked, coarse), (fine, sharp * scale))
    return estimate("sharpness", lowest(fine, sharp), 0.8 * steady * min(1.0, 1.5 * clear), reason, *curve)


def _blur(rows: _Rows, geometry: SliceGeometry, centres: _Reals, factor: int, watch: Watch) -> _Reals:
    """Return how spread out edges are in each quarter of images `(quarter, centre)`, `factor` columns put together.

    That is the mean length of the gradient over its root mean square, for rows `(slice, view, column)`.
    """
    y = torch.from_numpy(np.ascontiguousarray(binned(rows, factor)))
    side = y.shape[-1]
    scaled = replace(geometry, pixel_mm=geometry.pixel_mm * factor)
    middle = np.arange(side - 1) - (side - 2) / 2
    inside = middle[:, None] ** 2 + middle[None, :] ** 2 <= (REACH * side) ** 2
    below, right = middle[:, None] > 0, middle[None, :] > 0
    halves = (False, True)
    quarters = [torch.from_numpy(inside & (below == low) & (right == far)) for low in halves for far in halves]
    result = np.empty((len(quarters), centres.size))
    for number, centre in enumerate(centres):
        watch(Progress("centre", number + 1, centres.size))
        placed = replace(scaled, centre_px=(float(centre) - (factor - 1) / 2) / factor)
        image = filtered_back_projection(y, placed, (side, side), placed.image_pixel_mm, window="hann")
        gradient = torch.hypot(torch.diff(image, dim=-1)[:, 1:], torch.diff(image, dim=-2)[:, :, 1:])
        overall = float(gradient[:, torch.from_numpy(inside)].square().mean().sqrt()) + 1e-30
        for part, quarter in enumerate(quarters):
            result[part, number] = float(gradient[:, quarter].mean()) / overall
    return result
