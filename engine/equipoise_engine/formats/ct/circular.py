"""Circular scans of a point source: from the lengths that a scanner gives to a fan or a cone, and which way it turned.

In a full turn each line in the plane of the source is measured twice, from both ends. The two values agree only where
the angles run the right way, which tells the direction where makers differ about it.

Source: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, section 3.4 (rays of a fan).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import LARGEST_TILT_RAD, ConeBeam, FanBeam

_Reals = NDArray[np.float64]

MAX_VIEWS, MAX_BINS = 120, 48
"""Views and groups of columns that tell the direction."""
CENTRES = 33
"""Rotation centres that are tried, over a fifth of the detector."""
CLEAR = 0.6
"""Disagreement of the better direction, as a share of that of the other, for the direction to be clear."""
FIT = 0.25
"""Disagreement of the better direction at most, as a share of what the values differ by."""


@dataclass(frozen=True)
class Circle:
    """Lengths of a circular scan as a scanner gives them.

    Parameters
    ----------
    source_axis_mm, source_detector_mm
        Distance from the source to the rotation axis and to the detector.
    pixel_mm, row_mm
        Distance from one detector column, or row, to the next.
    centre_px, middle_px
        Detector column that sees the axis, and row that sees the plane of the source; None where it is not known: the
        row in the middle is taken.
    roll_rad, pitch_rad
        As of a `ConeBeam`.
    """

    source_axis_mm: float
    source_detector_mm: float
    pixel_mm: float
    row_mm: float
    centre_px: float | None = None
    middle_px: float | None = None
    roll_rad: float = 0.0
    pitch_rad: float = 0.0

    def geometry(self, angle_rad: _Reals, rows: int, columns: int, name: str) -> FanBeam | ConeBeam:
        """Return the geometry of views `(view,)` by a detector of so many rows and columns: of one row, a fan.

        Raises
        ------
        BadInput
            The lengths cannot be those of a scanner; the message begins with `name`.
        """
        try:
            # the beam checks its lengths before they are divided by
            fan = FanBeam(angle_rad, self.source_axis_mm, self.source_detector_mm, self.pixel_mm, self.centre_px)
            half = math.atan(0.5 * columns * self.pixel_mm / self.source_detector_mm)
            if half > LARGEST_TILT_RAD:
                raise BadInput(
                    f"{columns} columns of {self.pixel_mm:g} mm at {self.source_detector_mm:g} mm would span"
                    f" {2 * math.degrees(half):.0f} degrees"
                )
            if rows == 1:
                return fan
            return ConeBeam(
                angle_rad,
                self.source_axis_mm,
                self.source_detector_mm,
                self.pixel_mm,
                self.row_mm,
                (rows - 1) / 2 if self.middle_px is None else self.middle_px,
                self.centre_px,
                self.roll_rad,
                self.pitch_rad,
            )
        except BadInput as error:
            raise BadInput(f"{name}: {error.message}", error.hint or "Check the lengths in the file.") from error

    @property
    def match(self) -> Match:
        """The lengths, for the user."""
        said = (
            f"source to axis {self.source_axis_mm:.6g} mm, source to detector {self.source_detector_mm:.6g} mm, element"
            f" {self.pixel_mm:.6g} mm"
        )
        return Match("beam", "the lengths in the file", (), said)


def rightly_turned(scan: CtAcquisition, reason: str) -> CtAcquisition:
    """Return a scan of a fan or a cone whose angles run the way that its views show, where they show it.

    Parameters
    ----------
    reason
        Why the angles run as they do, where the views do not show another way.
    """
    geometry = scan.geometry
    if not isinstance(geometry, (FanBeam, ConeBeam)):
        return scan
    shown = _shown(scan, geometry)
    if shown < 0:
        reason = "rays measured from both ends agree this way only, which is the other way than usual"
        geometry = replace(geometry, angle_rad=-geometry.angle_rad)
    elif shown > 0:
        reason = f"{reason}; rays measured from both ends agree"
    match = Match("direction", "the views" if shown else "files of this kind", (), reason)
    return replace(scan, geometry=geometry, matched=(*scan.matched, match))


def _shown(scan: CtAcquisition, geometry: FanBeam | ConeBeam) -> int:
    """Return 1 where the views agree with the angles as they run, -1 with the opposite, 0 where neither is clear."""
    angle_rad = geometry.angle_rad
    views, rows, columns = scan.shape
    steps = np.diff(angle_rad)
    if views < 24 or columns < 16 or not (np.all(steps > 0) or np.all(steps < 0)):
        return 0
    if abs(float(angle_rad[-1] - angle_rad[0])) < 2 * np.pi - 2.5 * float(np.abs(steps).max()):
        return 0
    chosen = np.unique(np.linspace(0, views - 1, min(views, MAX_VIEWS)).round().astype(int))
    row = (rows - 1) / 2 if isinstance(geometry, FanBeam) else geometry.middle_px
    at = int(np.clip(round(row), 0, rows - 1))
    sinogram, width = _binned(_attenuated(scan, chosen, at))
    if not np.isfinite(sinogram).all() or np.ptp(sinogram) == 0:
        return 0
    pitch = width * geometry.pixel_mm / geometry.source_detector_mm
    curved = isinstance(geometry, FanBeam) and geometry.detector == "curved"
    bins = sinogram.shape[1]
    middle = (bins - 1) / 2
    if geometry.centre_px is None:
        centres = middle + np.linspace(-0.1, 0.1, CENTRES) * bins
    else:
        centres = np.array([(geometry.centre_px + 0.5) / width - 0.5])
    usual, other = (
        min(_disagreement(sinogram, sign * angle_rad[chosen], float(centre), pitch, curved) for centre in centres)
        for sign in (1.0, -1.0)
    )
    spread = float(np.abs(sinogram - np.median(sinogram)).mean())
    if min(usual, other) < min(CLEAR * max(usual, other), FIT * spread):
        return 1 if usual < other else -1
    return 0


def _attenuated(scan: CtAcquisition, views: NDArray[np.int64], row: int) -> _Reals:
    """Return attenuation of some views along a row, `(view, column)`, roughly."""
    values = np.stack([np.asarray(scan.projections[int(view), row], dtype=np.float64) for view in views])
    if scan.state is DataState.ATTENUATION:
        return values
    if scan.state is DataState.COUNTS:
        dark = 0.0 if scan.darks is None else np.asarray(scan.darks[0, row], dtype=np.float64)
        beam = np.max(values) if scan.flats is None else np.asarray(scan.flats[0, row], dtype=np.float64)
        values = (values - dark) / np.maximum(beam - dark, 1e-6)
    return np.asarray(-np.log(np.clip(values, 1e-4, 1e4)))


def _binned(sinogram: _Reals) -> tuple[_Reals, float]:
    """Return a sinogram with columns put together, and how many columns make one."""
    columns = sinogram.shape[1]
    width = max(columns // MAX_BINS, 1)
    bins = columns // width
    return sinogram[:, : bins * width].reshape(sinogram.shape[0], bins, width).mean(axis=2), float(width)


def _disagreement(sinogram: _Reals, angle_rad: _Reals, centre: float, pitch: float, curved: bool) -> float:
    """Return how much lines measured from both ends differ, on the average."""
    views, bins = sinogram.shape
    if angle_rad[-1] < angle_rad[0]:
        sinogram, angle_rad = sinogram[::-1], angle_rad[::-1]
    offset = (np.arange(bins) - centre) * pitch
    gamma = offset if curved else np.arctan(offset)
    # the other end of a ray: the source beyond the axis, the column as far on the other side of it
    column = np.broadcast_to(2 * centre - np.arange(bins), (views, bins))
    turned = (angle_rad[:, None] + np.pi - 2 * gamma[None, :] - angle_rad[0]) % (2 * np.pi)
    place = np.interp(turned, np.append(angle_rad - angle_rad[0], 2 * np.pi), np.arange(views + 1))
    inside = (column >= 0) & (column <= bins - 1)
    if inside.mean() < 0.5:
        return math.inf
    view, high = np.floor(place).astype(int), np.clip(np.floor(column).astype(int), 0, bins - 2)
    share, across = place - view, np.clip(column - high, 0.0, 1.0)
    first, second = view % views, (view + 1) % views
    other = (1 - share) * ((1 - across) * sinogram[first, high] + across * sinogram[first, high + 1]) + share * (
        (1 - across) * sinogram[second, high] + across * sinogram[second, high + 1]
    )
    return float(np.abs(other - sinogram)[inside].mean())
