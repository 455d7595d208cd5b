"""Where measurements were taken: beams of computed tomography, k-space positions of magnetic resonance imaging.

Geometries are immutable values. Coordinates are those of the scanner in millimetres, the rotation axis of a CT scan
being z: a column of an image grows with x, a row falls with y (row 0 has the largest y), a slice grows with z, and the
origin is the middle of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput

_Reals = NDArray[np.float64]

LARGEST_TILT_RAD = np.radians(80.0)
"""Largest angle between a detector and the plane across the central ray."""


@dataclass(frozen=True)
class VectorGeometry:
    """Source and detector of every view as vectors: the geometry that all beams come down to.

    Element `(row, column)` of the detector lies at `detector + (column - reference_px[1]) * column_step +
    (row - reference_px[0]) * row_step`, or, of a curved detector, at the same arc length on the circle about the source
    that touches the flat one.

    Parameters
    ----------
    source
        Position of the source `(view, 3)` in mm along (x, y, z); of a parallel beam, the direction of its rays.
    detector
        Position of the reference point of the detector `(view, 3)`, mm.
    column_step, row_step
        From one detector column or row to the next `(view, 3)`, mm.
    reference_px
        Row and column of the reference point; 0 is the middle of the first element.
    parallel
        Whether the rays of a view are parallel.
    curved
        Whether the detector is an arc about the source, its columns at equal angles.
    """

    source: _Reals
    detector: _Reals
    column_step: _Reals
    row_step: _Reals
    reference_px: tuple[float, float]
    parallel: bool
    curved: bool = False

    @property
    def views(self) -> int:
        """Number of views."""
        return int(self.source.shape[0])

    def select(self, kept: NDArray[np.bool_]) -> VectorGeometry:
        """Return some of the views; `kept (view,)`."""
        return replace(
            self,
            source=self.source[kept],
            detector=self.detector[kept],
            column_step=self.column_step[kept],
            row_step=self.row_step[kept],
        )

    def moved(self, rotation: _Reals, shift_mm: _Reals) -> VectorGeometry:
        """Return the scanner turned and then shifted, as if the object had been moved the other way.

        Parameters
        ----------
        rotation
            Orthogonal `(3, 3)`, or one for each view `(view, 3, 3)`.
        shift_mm
            `(3,)` or `(view, 3)`.
        """

        def turned(vectors: _Reals) -> _Reals:
            return np.asarray(np.einsum("...ij,...j->...i", rotation, vectors))

        return replace(
            self,
            source=turned(self.source) + (0.0 if self.parallel else shift_mm),
            detector=turned(self.detector) + shift_mm,
            column_step=turned(self.column_step),
            row_step=turned(self.row_step),
        )

    def rays(self, columns: _Reals, rows: _Reals) -> tuple[_Reals, _Reals]:
        """Return a point and the unit direction of the rays to detector elements, `(view, ray, 3)` each.

        Parameters
        ----------
        columns, rows
            Position of the elements on the detector in pixels `(ray,)`; fractions are allowed.
        """
        across = (columns - self.reference_px[1])[None, :, None]
        along = (rows - self.reference_px[0])[None, :, None] * self.row_step[:, None]
        if self.parallel:
            elements = self.detector[:, None] + across * self.column_step[:, None] + along
            return elements, np.broadcast_to(_unit(self.source)[:, None], elements.shape)
        middle = self.detector - self.source
        if self.curved:
            distance = np.linalg.norm(middle, axis=-1)[:, None, None]
            step = np.linalg.norm(self.column_step, axis=-1)[:, None, None]
            angle = across * step / distance
            aim = distance * (np.cos(angle) * _unit(middle)[:, None] + np.sin(angle) * _unit(self.column_step)[:, None])
        else:
            aim = middle[:, None] + across * self.column_step[:, None]
        return np.broadcast_to(self.source[:, None], (aim + along).shape), _unit(aim + along)


@dataclass(frozen=True)
class ParallelBeam:
    """Parallel-beam geometry of one scan.

    A ray of view `v` at detector column `c` is the line `x cos(a) + y sin(a) = (c - centre_px) * pixel_mm`
    with `a = angle_rad[v]`.

    Parameters
    ----------
    angle_rad
        Projection angles `(view,)`, float64.
    pixel_mm
        Detector pixel size at the object; 1.0 where the file does not say (`calibrated` is then False).
    centre_px
        Detector column of the rotation axis (0 is the middle of the first column); None until it is given or found.
    calibrated
        Whether `pixel_mm` comes from the file or the user.
    truncated
        Whether the object reaches beyond the detector; images are then made on a larger grid and cropped.

    Raises
    ------
    BadInput
        There is no angle, a number is not finite, or the pixel size is not positive.
    """

    angle_rad: _Reals
    pixel_mm: float = 1.0
    centre_px: float | None = None
    calibrated: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.angle_rad, self.centre_px)
        _check_length(self.pixel_mm)

    @property
    def image_pixel_mm(self) -> float:
        """Size of an image pixel that suits the detector."""
        return self.pixel_mm

    def vectors(self) -> VectorGeometry:
        """Return the views as vectors. Raises BadInput where the rotation centre is not known."""
        across, ahead = _frame(self.angle_rad)
        return VectorGeometry(
            source=ahead,
            detector=np.zeros_like(ahead),
            column_step=across * self.pixel_mm,
            row_step=np.broadcast_to([0.0, 0.0, self.pixel_mm], ahead.shape),
            reference_px=(0.0, _known(self.centre_px)),
            parallel=True,
        )


class _DivergingBeam:
    """What follows from the lengths of a beam that leaves a point."""

    source_axis_mm: float
    source_detector_mm: float
    pixel_mm: float

    @property
    def magnification(self) -> float:
        """How much larger the detector sees an object on the axis."""
        return self.source_detector_mm / self.source_axis_mm

    @property
    def image_pixel_mm(self) -> float:
        """Side of an image pixel or voxel that suits the detector: its element seen at the axis."""
        return self.pixel_mm / self.magnification


@dataclass(frozen=True)
class FanBeam(_DivergingBeam):
    """Fan-beam geometry of one scan: a source on a circle about the axis, a line of detector elements opposite.

    In view `v`, with `a = angle_rad[v]`, the source lies at `source_axis_mm * (sin a, -cos a)`, the detector beyond the
    axis, and its columns grow along `(cos a, sin a)`; far away this is the parallel beam of the same angle.

    Parameters
    ----------
    angle_rad
        Projection angles `(view,)`, float64.
    source_axis_mm, source_detector_mm
        Distance from the source to the rotation axis and to the detector.
    pixel_mm
        Width of a detector element.
    centre_px
        Detector column that the axis is seen at; None until it is given or found.
    detector
        "flat" or "curved": an arc about the source, which has no yaw.
    yaw_rad
        Angle by which a flat detector is turned about an axis parallel to the rotation axis through its centre, from
        being perpendicular to the ray through the axis; counter-clockwise seen from +z.
    calibrated
        Whether lengths come from the file or the user.
    truncated
        Whether the object reaches beyond the fan; images are then made on a larger grid and cropped.

    Raises
    ------
    BadInput
        The axis does not lie between source and detector, there is no angle, a number is not finite, a length not
        positive, or the detector is tilted by more than 80 degrees.
    """

    angle_rad: _Reals
    source_axis_mm: float
    source_detector_mm: float
    pixel_mm: float
    centre_px: float | None = None
    detector: Literal["flat", "curved"] = "flat"
    yaw_rad: float = 0.0
    calibrated: bool = True
    truncated: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.angle_rad, self.centre_px)
        _check_distances(self.source_axis_mm, self.source_detector_mm)
        _check_length(self.pixel_mm)
        _check_tilt("yaw", self.yaw_rad)
        if self.detector == "curved" and self.yaw_rad != 0:
            raise BadInput(f"a curved detector faces its source: a yaw of {self.yaw_rad:g} has no meaning")

    def vectors(self) -> VectorGeometry:
        """Return the views as vectors. Raises BadInput where the rotation centre is not known."""
        _, ahead = _frame(self.angle_rad)
        columns, _ = _frame(self.angle_rad + self.yaw_rad)
        return VectorGeometry(
            source=-self.source_axis_mm * ahead,
            detector=(self.source_detector_mm - self.source_axis_mm) * ahead,
            column_step=columns * self.pixel_mm,
            row_step=np.broadcast_to([0.0, 0.0, self.pixel_mm], ahead.shape),
            reference_px=(0.0, _known(self.centre_px)),
            parallel=False,
            curved=self.detector == "curved",
        )


@dataclass(frozen=True)
class ConeBeam(_DivergingBeam):
    """Circular cone-beam geometry of one scan; angles, source and columns as of a fan beam in the plane z = 0.

    Parameters
    ----------
    angle_rad
        Projection angles `(view,)`, float64.
    source_axis_mm, source_detector_mm
        Distance from the source to the rotation axis and to the detector.
    pixel_mm, row_mm
        Distance from one detector column, or row, to the next.
    centre_px
        Detector column that the axis is seen at in the row `middle_px`; None until it is given or found.
    middle_px
        Detector row that sees the plane of the source; rows grow with z.
    roll_rad
        Angle by which the detector is turned in its own plane about the point `(middle_px, centre_px)`, from columns
        along the plane of the source towards +z.
    pitch_rad
        Angle by which the detector then leans about its columns; positive tips its upper edge away from the source.
    yaw_rad
        Angle by which the detector is then turned about the direction of the rotation axis, as of a fan beam.
    calibrated
        Whether lengths come from the file or the user.
    truncated
        Whether the object reaches beyond the fan; images are then made on a larger grid and cropped.

    Raises
    ------
    BadInput
        The axis does not lie between source and detector, there is no angle, a number is not finite, a length not
        positive, or the detector is tilted by more than 80 degrees.
    """

    angle_rad: _Reals
    source_axis_mm: float
    source_detector_mm: float
    pixel_mm: float
    row_mm: float
    middle_px: float
    centre_px: float | None = None
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0
    calibrated: bool = True
    truncated: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.angle_rad, self.centre_px, self.middle_px, self.roll_rad)
        _check_distances(self.source_axis_mm, self.source_detector_mm)
        _check_length(self.pixel_mm)
        _check_length(self.row_mm)
        _check_tilt("yaw", self.yaw_rad)
        _check_tilt("pitch", self.pitch_rad)

    def slices(self, rows: int) -> int:
        """Return the number of slices that a detector of so many rows sees, the plane of the source in their middle."""
        high = 2.0 * max(self.middle_px, rows - 1 - self.middle_px) + 1
        return max(1, math.ceil(high * self.row_mm / self.pixel_mm - 1e-6))

    def vectors(self) -> VectorGeometry:
        """Return the views as vectors. Raises BadInput where the rotation centre is not known."""
        _, ahead = _frame(self.angle_rad)
        across, away = _frame(self.angle_rad + self.yaw_rad)
        up = np.broadcast_to([0.0, 0.0, 1.0], ahead.shape)
        leaning = np.cos(self.pitch_rad) * up + np.sin(self.pitch_rad) * away
        return VectorGeometry(
            source=-self.source_axis_mm * ahead,
            detector=(self.source_detector_mm - self.source_axis_mm) * ahead,
            column_step=self.pixel_mm * (np.cos(self.roll_rad) * across + np.sin(self.roll_rad) * leaning),
            row_step=self.row_mm * (np.cos(self.roll_rad) * leaning - np.sin(self.roll_rad) * across),
            reference_px=(self.middle_px, _known(self.centre_px)),
            parallel=False,
        )


@dataclass(frozen=True)
class Cartesian:
    """Cartesian sampling of two-dimensional k-space.

    Parameters
    ----------
    sampled
        Which k-space positions were measured, `(ky, kx)`, bool.
    field_of_view_mm
        Extent of the image along `(y, x)`; `(rows, columns)` in pixels where the file does not say.
    slice_mm
        Distance between slices; 1.0 where the file does not say.
    phase_axis
        Axis of `sampled` along which lines can be left out: 0 where lines are rows (ky), 1 where they are columns (kx).
    calibrated
        Whether the field of view comes from the file or the user.
    """

    sampled: NDArray[np.bool_]
    field_of_view_mm: tuple[float, float]
    slice_mm: float = 1.0
    phase_axis: int = 1
    calibrated: bool = False


@dataclass(frozen=True)
class NonCartesian:
    """Sampling of two-dimensional k-space along readouts of any shape: spokes, spirals, others.

    Parameters
    ----------
    trajectory
        k-space positions `(readout, sample, 2)` along (ky, kx) in cycles per field of view, float64: a full matrix of n
        pixels is covered from -n/2 to n/2.
    matrix
        Rows and columns of the image.
    field_of_view_mm
        Extent of the image along `(y, x)`; the matrix where the file does not say.
    density
        Density compensation `(readout, sample)` that came with the scan, or None: it is then computed.
    slice_mm
        Distance between slices; 1.0 where the file does not say.
    calibrated
        Whether the field of view comes from the file or the user.

    Raises
    ------
    BadInput
        A position is not finite or lies outside k-space of the matrix by more than a sample, or the shapes do not fit.
    """

    trajectory: _Reals
    matrix: tuple[int, int]
    field_of_view_mm: tuple[float, float]
    density: _Reals | None = None
    slice_mm: float = 1.0
    calibrated: bool = False

    def __post_init__(self) -> None:
        if self.trajectory.ndim != 3 or self.trajectory.shape[-1] != 2:
            raise BadInput(f"a trajectory of shape {self.trajectory.shape} is not (readout, sample, 2)")
        if not np.isfinite(self.trajectory).all():
            raise BadInput("the trajectory holds positions that are not finite")
        if self.density is not None and self.density.shape != self.trajectory.shape[:2]:
            raise BadInput(f"a density of shape {self.density.shape} does not fit {self.trajectory.shape[:2]} samples")
        furthest = np.abs(self.trajectory).max(axis=(0, 1)) if self.trajectory.size else np.zeros(2)
        for axis, name in enumerate(("ky", "kx")):
            if furthest[axis] > self.matrix[axis] / 2 + 1:
                raise BadInput(
                    f"the trajectory reaches |{name}| = {furthest[axis]:.4g}, beyond {self.matrix[axis] / 2:g} cycles "
                    f"per field of view of a matrix of {self.matrix[axis]}",
                    "Give positions in cycles per field of view, or a larger matrix.",
                )


CtGeometry = ParallelBeam | FanBeam | ConeBeam
SliceGeometry = ParallelBeam | FanBeam
MriGeometry = Cartesian | NonCartesian


def _frame(angle_rad: _Reals) -> tuple[_Reals, _Reals]:
    """Return the directions across the beam and along it `(view, 3)`."""
    cosine, sine, zero = np.cos(angle_rad), np.sin(angle_rad), np.zeros_like(angle_rad)
    return np.stack([cosine, sine, zero], axis=-1), np.stack([-sine, cosine, zero], axis=-1)


def _unit(vectors: _Reals) -> _Reals:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _known(centre_px: float | None) -> float:
    if centre_px is None:
        raise BadInput("the rotation centre is not known", "Give it, or let it be found.")
    return centre_px


def _check_numbers(angle_rad: _Reals, *others: float | None) -> None:
    if angle_rad.ndim != 1 or angle_rad.size == 0:
        raise BadInput(f"angles of shape {angle_rad.shape} are not one for each view")
    bad = np.flatnonzero(~np.isfinite(angle_rad))
    if bad.size:
        raise BadInput(f"the angle of view {int(bad[0])} is not finite ({bad.size} in all)", "Correct the angles.")
    for value in others:
        if value is not None and not np.isfinite(value):
            raise BadInput(f"{value} is no place on a detector and no angle")


def _check_distances(source_axis_mm: float, source_detector_mm: float) -> None:
    if not (0 < source_axis_mm < source_detector_mm < np.inf):
        raise BadInput(
            f"the rotation axis at {source_axis_mm:g} mm does not lie between the source and the detector at "
            f"{source_detector_mm:g} mm",
            "Give the distances from the source to the axis and from the source to the detector.",
        )


def _check_length(pixel_mm: float) -> None:
    if not 0 < pixel_mm < np.inf:
        raise BadInput(f"a detector element of {pixel_mm:g} mm is not a length above zero")


def _check_tilt(name: str, angle_rad: float) -> None:
    if not abs(angle_rad) <= LARGEST_TILT_RAD:
        raise BadInput(
            f"a detector with a {name} of {np.degrees(angle_rad):.4g} degrees is seen edge-on; "
            f"{np.degrees(LARGEST_TILT_RAD):.0f} are the most"
        )
