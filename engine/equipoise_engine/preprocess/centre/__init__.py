"""Finding the rotation axis of a scan from its views: several methods, and their vote.

Views mirror each other half a turn apart; lines that are measured twice agree; the centre of mass of an object inside
the field of view moves on a sinusoid; the spectrum of a full turn is a double wedge; and images about the axis are
sharp. Each method is a module with its source; none of them knows of the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import covers_full_turn
from equipoise_engine.geometry import ConeBeam, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.centre.estimate import CentreEstimate
from equipoise_engine.preprocess.centre.mass import centre_of_mass
from equipoise_engine.preprocess.centre.opposite import opposite_views
from equipoise_engine.preprocess.centre.sharpness import sharpness
from equipoise_engine.preprocess.centre.tilt import tilt_of
from equipoise_engine.preprocess.centre.twice import lines_measured_twice
from equipoise_engine.preprocess.centre.vote import Vote, vote
from equipoise_engine.preprocess.centre.wedge import double_wedge
from equipoise_engine.preprocess.defects import fill_within_views, still_elements
from equipoise_engine.progress import Progress, Watch, unwatched

_Rows = NDArray[np.float32]
_Range = tuple[float, float]

MAX_ROWS = 24
"""Rows that are looked at, spread over the detector,"""
MAX_BYTES = 2**28
"""of no more than this many bytes; one at least."""
STILL = 0.05
"""Share of what its neighbours vary by below which a column stands still."""
ENOUGH = 0.75
"""Confidence of the quick methods from which no other is asked."""
MIN_RANGE_PX = 2.0
"""Narrowest range that an axis is looked for in."""


def find_centre(scan: CtAcquisition) -> Vote:
    """Return the rotation axis by the quick methods, and by the double wedge where those are not sure.

    Raises
    ------
    BadInput
        No method can tell it from these views.
    """
    sinograms, geometry = _looked_at(scan)
    between = _usual_range(geometry, sinograms.shape[2])
    found = _quick(sinograms, geometry, between, unwatched)
    middle = _middle(sinograms, found, between)
    unsure = not found or vote(found, sinograms.shape[2]).confidence < ENOUGH
    if unsure and middle is not None and isinstance(geometry, ParallelBeam):
        other = double_wedge(sinograms, geometry.angle_rad, middle)
        found += [] if other is None else [other]
    return _voted(scan, found, sinograms.shape[2])


def estimates(scan: CtAcquisition, between: tuple[float, float] | None = None, watch: Watch = unwatched) -> Vote:
    """Return the rotation axis by all methods that suit the scan, and what each of them says.

    Parameters
    ----------
    between
        First and last column that the axis may lie at; None takes what can be told from such views.
    watch
        Called as the methods go on; may raise Cancelled.

    Raises
    ------
    BadInput
        The range is empty or leaves the detector, or no method can tell the axis from these views.
    """
    last = scan.shape[2] - 1
    if between is not None and not (between[0] >= 0 and between[0] + MIN_RANGE_PX <= between[1] <= last):
        raise BadInput(
            f"{scan.path.name}: the axis cannot be looked for in columns {between[0]:g} to {between[1]:g}: the range"
            f" must lie in 0 to {last} and be {MIN_RANGE_PX:g} wide"
        )
    sinograms, geometry = _looked_at(scan)
    looked = _usual_range(geometry, sinograms.shape[2]) if between is None else between
    found = _quick(sinograms, geometry, looked, watch)
    middle = _middle(sinograms, found, looked)
    if middle is not None:
        watch(Progress("centre", 4, 5))
        more = [sharpness(sinograms, geometry, middle, watch)]
        if isinstance(geometry, ParallelBeam):
            more.append(double_wedge(sinograms, geometry.angle_rad, middle))
        found += [one for one in more if one is not None]
    return _voted(scan, found, sinograms.shape[2])


def _looked_at(scan: CtAcquisition) -> tuple[_Rows, ParallelBeam | FanBeam]:
    """Return sinograms `(slice, view, column)` of some rows, and the beam that they were measured with."""
    geometry, (views, count, columns) = scan.geometry, scan.projections.shape
    if isinstance(geometry, ConeBeam):
        # away from the plane of the source no line is measured twice
        middle = min(max(round(geometry.middle_px), 0), count - 1)
        lengths = (geometry.source_axis_mm, geometry.source_detector_mm, geometry.pixel_mm)
        fan = FanBeam(geometry.angle_rad, *lengths, yaw_rad=geometry.yaw_rad)
        return _moving(attenuation(scan, slice(middle, middle + 1))), fan
    most = min(count, MAX_ROWS, max(1, MAX_BYTES // (4 * views * columns)))
    step = -(-count // most)
    sinograms = attenuation(scan, slice((count - 1) % step // 2, None, step))
    return _moving(sinograms), replace(geometry, centre_px=None)


def _moving(sinograms: _Rows) -> _Rows:
    """Return sinograms whose columns that stand still among others are made up from those.

    A dead element is its own mirror image about its column, in every view.
    """
    still = still_elements(sinograms.std(axis=1, dtype=np.float64), STILL)
    for row in np.flatnonzero(still.any(axis=1)):
        fill_within_views(sinograms[row], np.broadcast_to(still[row], sinograms[row].shape))
    return sinograms


def _usual_range(geometry: CtGeometry, columns: int) -> _Range:
    """Return the columns between which the axis can be told: nearly all where all lines are measured twice."""
    share = 0.03 if covers_full_turn(geometry.angle_rad) else 0.15
    edge = min(max(share * columns, 4.0), 0.4 * columns)
    return edge, columns - 1 - edge


def _middle(sinograms: _Rows, found: list[CentreEstimate], between: _Range) -> _Range | None:
    """Return the part of the range that is near enough to the middle for one half turn to tell the axis.

    It is None where the axis is already known to lie elsewhere.
    """
    columns = sinograms.shape[2]
    low, high = max(between[0], 0.25 * columns), min(between[1], 0.75 * columns)
    if high - low < MIN_RANGE_PX:
        return None
    if found and (leading := vote(found, columns)).confidence >= 0.5 and not low <= leading.centre_px <= high:
        return None
    return low, high


def _quick(sinograms: _Rows, geometry: ParallelBeam | FanBeam, between: _Range, watch: Watch) -> list[CentreEstimate]:
    found: list[CentreEstimate | None] = []
    if isinstance(geometry, ParallelBeam):
        watch(Progress("centre", 1, 5))
        found.append(opposite_views(sinograms, geometry.angle_rad, between))
        watch(Progress("centre", 2, 5))
        found.append(centre_of_mass(sinograms, geometry.angle_rad, between))
    watch(Progress("centre", 3, 5))
    if isinstance(geometry, FanBeam) or np.ptp(geometry.angle_rad) > 1.5 * np.pi:
        found.append(lines_measured_twice(sinograms, geometry, between))
    return [one for one in found if one is not None]


def _voted(scan: CtAcquisition, found: list[CentreEstimate], columns: int) -> Vote:
    if found:
        return vote(found, columns)
    if isinstance(scan.geometry, ParallelBeam):
        span = np.rad2deg(np.ptp(scan.geometry.angle_rad))
        reason = f"the views span {span:.0f} degrees and do not show the whole object"
    else:
        reason = "hardly any line is measured from both of its ends"
    raise BadInput(f"{scan.path.name}: the rotation axis cannot be found: {reason}", "Give the rotation centre.")


__all__ = ["CentreEstimate", "Vote", "estimates", "find_centre", "tilt_of"]
