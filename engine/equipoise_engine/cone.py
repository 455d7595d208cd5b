"""The physics of cone-beam computed tomography: whole volumes at once, and the reconstruction of Feldkamp."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import (
    filter_rows,
    is_offset,
    margins,
    padded_length,
    ramp_spectrum,
    ray_arcs,
)
from equipoise_engine.geometry import ConeBeam, VectorGeometry
from equipoise_engine.operators import leading_eigenpair
from equipoise_engine.projection.threads import match_threads
from equipoise_engine.projection.volumes import VolumeProjector
from equipoise_engine.thinning import ScannerPhysics

_Reals = NDArray[np.float64]

SLAB_SLICES = 12
"""Slices about the plane of the source on which the norm of the operator is first estimated."""
LANCZOS_STEPS = 18
"""Products that the norm is estimated from."""
FILTERED_BYTES = 2**28
"""Memory for the rows that are filtered together; of one view at least."""


class ConeBeamPhysics(ScannerPhysics[ConeBeam]):
    """Projection of volumes by a circular cone beam.

    Images are volumes `(batch, z, y, x)`, attenuation per millimetre; measurements are `(batch, view, row, column)`,
    dimensionless. The grid has its middle on the rotation axis, in the plane of the source.

    Parameters
    ----------
    geometry
        Angles, lengths, tilts and rotation centre; the centre must be known.
    detector
        Number of detector rows and columns.
    shape
        Slices, rows and columns of the volume `(z, y, x)`; None takes `natural_shape`. A wider one is for objects that
        reach beyond the fan.
    voxel_mm
        Side of a voxel; None takes `geometry.image_pixel_mm`.

    Raises
    ------
    BadInput
        The rotation centre is unknown or outside the detector, or the volume reaches the source.
    """

    def __init__(
        self,
        geometry: ConeBeam,
        detector: tuple[int, int],
        shape: tuple[int, int, int] | None = None,
        *,
        voxel_mm: float | None = None,
    ) -> None:
        rows, columns = detector
        self.centre_px = _usable_centre(geometry, columns)
        self.voxel_mm = geometry.image_pixel_mm if voxel_mm is None else voxel_mm
        natural = natural_shape(geometry, detector, self.voxel_mm)
        slices, high, wide = natural if shape is None else shape
        views = geometry.angle_rad.shape[0]
        super().__init__((slices, high, wide), (views, rows, columns))
        self.geometry = geometry
        self._grid = (slices, high, wide)
        _check_room(geometry, self._grid, self.voxel_mm)
        self.projector = VolumeProjector(geometry.vectors(), detector, self._grid, self.voxel_mm)
        self.truncated = high > natural[1] or wide > natural[2]
        self._frame = (min(high, natural[1]), min(wide, natural[2]))
        # Fourier lines of the views overlap below this frequency (cycles per column); there the ramp evens them out
        overlap = views / (np.pi * max(high, wide) * self.voxel_mm / geometry.image_pixel_mm)
        frequency = np.fft.rfftfreq(padded_length(columns))
        spectrum = np.clip(frequency, 0.25 / columns, max(overlap, 0.5 / columns))
        self._unscaled_weight = torch.from_numpy(spectrum)

    @cached_property
    def _weight(self) -> Tensor:
        return self._unscaled_weight / (1.02 * self._norm[0])

    @cached_property
    def _norm(self) -> tuple[float, Tensor]:
        """The largest eigenvalue of A^H W A, W unscaled, and its volume `(1, z, y, x)`.

        Rows and slices line up best about the plane of the source, where a slab tells most of it.
        """
        slices = self._grid[0]
        if slices <= 2 * SLAB_SLICES:
            start = torch.randn((1, *self.domain), generator=torch.Generator().manual_seed(0))
            return leading_eigenpair(self._unscaled_normal, start, steps=LANCZOS_STEPS)
        slab = self._slab(SLAB_SLICES + slices % 2)
        start = torch.zeros((1, *self.domain))
        first = (slices - slab.domain[0]) // 2
        start[:, first : first + slab.domain[0]] = slab._norm[1]
        return leading_eigenpair(self._unscaled_normal, start, steps=LANCZOS_STEPS // 3)

    def _unscaled_normal(self, x: Tensor) -> Tensor:
        return self._adjoint(filter_rows(self._forward(x), self._unscaled_weight))

    def _slab(self, slices: int) -> ConeBeamPhysics:
        """Return the physics of the slices about the plane of the source, and of the rows that see them."""
        geometry, (_, high, wide), (_, rows, columns) = self.geometry, self._grid, self.range
        nearest = geometry.source_axis_mm - math.hypot(high, wide) / 2 * self.voxel_mm
        spread = slices / 2 * self.voxel_mm * geometry.source_detector_mm / nearest / geometry.row_mm
        first = min(max(0, math.floor(geometry.middle_px - spread)), rows - 1)
        last = max(min(rows - 1, math.ceil(geometry.middle_px + spread)), first)
        cut = replace(geometry, middle_px=geometry.middle_px - first)
        return ConeBeamPhysics(cut, (last - first + 1, columns), (slices, high, wide), voxel_mm=self.voxel_mm)

    def _forward(self, x: Tensor) -> Tensor:
        return self.projector.forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.projector.adjoint(y)

    def weight(self, residual: Tensor) -> Tensor:
        """Return W r `(batch, view, row, column)`: a ramp along columns that saturates where the views part."""
        return filter_rows(residual, self._weight)

    def analytic(self, y: Tensor) -> Tensor:
        """Return the reconstruction of Feldkamp with the Ram-Lak filter `(batch, z, y, x)`."""
        return self.fdk(y)

    def fdk(self, y: Tensor, window: str = "ram-lak") -> Tensor:
        """Return the reconstruction of Feldkamp `(batch, z, y, x)`. Raises BadInput for an unknown window."""
        return feldkamp(y, self.geometry, self._grid, self.voxel_mm, window=window)

    def _with_angles(self, angle_rad: _Reals) -> ConeBeamPhysics:
        _, rows, columns = self.range
        geometry = replace(self.geometry, angle_rad=angle_rad)
        other = ConeBeamPhysics(geometry, (rows, columns), self._grid, voxel_mm=self.voxel_mm)
        # fewer views may no longer go all the way round, but they look at the same volume
        other.truncated, other._frame = self.truncated, self._frame
        return other

    def framed(self, image: Tensor) -> Tensor:
        """Return the part as wide as the field of view about the axis `(batch, z, y, x)`."""
        high, wide = self._frame
        top, left = (self._grid[1] - high) // 2, (self._grid[2] - wide) // 2
        return image[..., top : top + high, left : left + wide]

    def seen(self, image: Tensor) -> Tensor:
        """Return volumes `(batch, z, y, x)` with zeros where a view all round the axis misses the voxel.

        What stays is a cylinder about the axis whose ends are cones; tilts of the detector are left out of account.
        """
        geometry, (_, rows, columns) = self.geometry, self.range
        slices, high, wide = image.shape[-3:]
        near = min(self.centre_px, columns - 1 - self.centre_px)
        if is_offset(geometry, columns):
            near = columns - 1 - near
        slope = near * geometry.pixel_mm / geometry.source_detector_mm
        radius = max(self.voxel_mm, geometry.source_axis_mm * slope / math.hypot(1.0, slope))
        z, y, x = ((torch.arange(side) - (side - 1) / 2) * self.voxel_mm for side in (slices, high, wide))
        away = torch.hypot(y[:, None], x)
        steepness = geometry.row_mm / geometry.source_detector_mm
        # of all views, the one with the voxel nearest to its source sees the least height
        reach = (geometry.source_axis_mm - away).clamp(min=0.0)
        top, bottom = (rows - 0.5 - geometry.middle_px) * steepness, (geometry.middle_px + 0.5) * steepness
        height = z[:, None, None]
        inside = (height <= top * reach) & (height >= -bottom * reach) & (away <= radius)
        return image * inside.to(image.device)


def natural_shape(geometry: ConeBeam, detector: tuple[int, int], voxel_mm: float) -> tuple[int, int, int]:
    """Return slices, rows and columns of the volume that the detector sees, its middle on axis and source plane.

    Raises
    ------
    BadInput
        The rotation centre is unknown or outside the detector.
    """
    rows, columns = detector
    centre = _usable_centre(geometry, columns)
    wide = float(columns)
    if is_offset(geometry, columns):
        wide = 2.0 * max(centre, columns - 1 - centre) + 1
    high = 2.0 * max(geometry.middle_px, rows - 1 - geometry.middle_px) + 1
    side = max(1, math.ceil(wide * geometry.image_pixel_mm / voxel_mm - 1e-6))
    slices = max(1, math.ceil(high * geometry.row_mm / geometry.magnification / voxel_mm - 1e-6))
    return slices, side, side


def feldkamp(
    y: Tensor, geometry: ConeBeam, shape: tuple[int, int, int], voxel_mm: float, *, window: str = "ram-lak"
) -> Tensor:
    """Return the reconstruction of Feldkamp, Davis and Kress `(batch, z, y, x)` of `(batch, view, row, column)`, 1/mm.

    Every ray is weighted by the arc of its view, its share among the rays along the same line (of its fan in the plane
    of the source) and its obliquity; detector rows are filtered with an apodised ramp, and each voxel gathers what its
    shadow sees, bilinearly, weighted by the square of its magnification. In the plane of the source this is the exact
    fan-beam formula also where the detector is pitched or yawed: its distance and obliquity are those of each row's own
    fan. Away from that plane it is the usual approximation. Of a rolled detector, the rows are filtered as they lie,
    not along the plane of the source; that blurs in proportion to the roll. Where the volume is wider than the fan,
    rows go on beyond the edge with their last value.

    Parameters
    ----------
    geometry
        Its rotation centre is known; with the axis off the middle and views all the way round, each half of the object
        is taken from the views that see it.
    shape
        Slices, rows and columns of the volume.
    voxel_mm
        Side of a voxel.
    window
        One of `fbp.FBP_WINDOWS`.

    Raises
    ------
    BadInput
        The window is unknown, the rotation centre is not known or outside the detector, or the volume reaches the
        source.

    Source: L. Feldkamp, L. Davis, J. Kress 1984, doi:10.1364/JOSAA.1.000612; short scans and detectors off the middle:
    see `fbp.redundancy`.
    """
    batch, views, rows, columns = y.shape
    centre = _usable_centre(geometry, columns)
    _check_room(geometry, shape, voxel_mm)
    by_view, by_element = _ray_weights(geometry, rows, columns)
    before, after = margins(columns, centre, max(shape[1:]) * voxel_mm / geometry.image_pixel_mm)
    # what the filter spreads beyond the nearer edge of an offset detector belongs to lines that the other side measures
    offset, near_first = is_offset(geometry, columns), centre < (columns - 1) / 2
    first_mode = "constant" if offset and near_first else "replicate"
    last_mode = "constant" if offset and not near_first else "replicate"
    padded_columns = columns + before + after
    spectrum = torch.from_numpy(ramp_spectrum(padded_columns, window))
    shadows = _shadows(replace(geometry, centre_px=centre + before).vectors(), shape, voxel_mm)
    out = torch.zeros((batch, *shape), dtype=y.dtype)
    together = max(1, FILTERED_BYTES // (4 * padded_length(padded_columns) * rows * y.element_size()))
    match_threads()
    for sample, volume in zip(y.detach().cpu(), out, strict=True):
        for first in range(0, views, together):
            some = slice(first, first + together)
            weighted = sample[some] * torch.from_numpy(by_view[some, None] * by_element).to(y.dtype)
            if padded_columns != columns:
                weighted = torch.nn.functional.pad(weighted, (before, 0), mode=first_mode)
                weighted = torch.nn.functional.pad(weighted, (0, after), mode=last_mode)
            filtered = filter_rows(weighted, spectrum)
            # a border of zeros stands for all that lies beyond the detector
            bordered = filtered.new_zeros((filtered.shape[0], padded_columns + 3, rows + 3))
            bordered[:, 1:-2, 1:-2] = filtered.transpose(1, 2)
            _gather(bordered.numpy().reshape(-1), (padded_columns, rows), shadows[some], volume.numpy())
    return out.to(y.device)


def _usable_centre(geometry: ConeBeam, columns: int) -> float:
    if geometry.centre_px is None:
        raise BadInput("the rotation centre is not known", "Give it, or let it be found.")
    if not 0 <= geometry.centre_px <= columns - 1:
        raise BadInput(
            f"a rotation centre at column {geometry.centre_px:g} lies outside the detector (0 to {columns - 1})",
            "Give a centre inside the detector.",
        )
    return geometry.centre_px


def _check_room(geometry: ConeBeam, shape: tuple[int, int, int], voxel_mm: float) -> None:
    _, high, wide = shape
    if math.hypot(high, wide) * voxel_mm / 2 >= geometry.source_axis_mm:
        raise BadInput(
            f"a volume of {wide} by {high} voxels of {voxel_mm:g} mm reaches the source, {geometry.source_axis_mm:g} "
            "mm from the axis",
            "Choose a smaller volume or smaller voxels.",
        )


def _ray_weights(geometry: ConeBeam, rows: int, columns: int) -> tuple[_Reals, _Reals]:
    """Return arcs times shares `(view, column)`, and obliquity in the filter's unit `(row, column)`."""
    vectors = replace(geometry, angle_rad=np.zeros(1)).vectors()
    row_offset, column_offset = np.arange(rows) - geometry.middle_px, np.arange(columns) - vectors.reference_px[1]
    towards = (vectors.detector - vectors.source)[0]
    along = vectors.column_step[0] / geometry.pixel_mm
    row_middles = towards + row_offset[:, None] * vectors.row_step[0]
    rays = row_middles[:, None] + column_offset[:, None] * vectors.column_step[0]
    # where a row meets the plane through source and axis (x = 0 at angle 0): the middle of its fan
    middles = row_middles - (row_middles[:, :1] / along[0]) * along
    across = row_middles - (row_middles @ along)[:, None] * along
    cosine = np.einsum("rcd,rd->rc", rays, middles)
    cosine /= np.linalg.norm(rays, axis=-1) * np.linalg.norm(middles, axis=-1)[:, None]
    by_element = geometry.source_axis_mm * cosine / np.linalg.norm(across, axis=-1)[:, None] / geometry.pixel_mm
    middle_row = towards + column_offset[:, None] * vectors.column_step[0]
    tangent = middle_row[:, 0] / middle_row[:, 1]
    return ray_arcs(geometry.angle_rad, tangent, np.arctan(tangent)), np.asarray(by_element)


def _shadows(vectors: VectorGeometry, shape: tuple[int, int, int], voxel_mm: float) -> _Reals:
    """Return how each view sees a voxel `(view, 3, 4)`, for columns and rows that count from one.

    With the index `(x, y, z, 1)` of a voxel, the products are `(column * depth, row * depth, depth)`; the depth is 1 on
    the detector and falls to 0 at the source.
    """
    slices, high, wide = shape
    scale = np.array([1.0, -1.0, 1.0]) * voxel_mm
    corner = -scale * (np.array([wide, high, slices]) - 1) / 2
    towards = vectors.detector - vectors.source
    normal = np.cross(vectors.column_step, vectors.row_step)
    # vectors that measure a place on the detector in columns and in rows
    column = np.cross(vectors.row_step, normal) / np.sum(normal**2, axis=-1, keepdims=True)
    row = np.cross(normal, vectors.column_step) / np.sum(normal**2, axis=-1, keepdims=True)
    depth = normal / np.sum(normal * towards, axis=-1, keepdims=True)
    result = np.empty((vectors.views, 3, 4))
    for index, direction in enumerate((column, row, depth)):
        if index < 2:
            place = vectors.reference_px[1 - index] + 1 - np.sum(direction * towards, axis=-1, keepdims=True)
            direction = direction + place * depth
        result[:, index, :3] = direction * scale
        result[:, index, 3] = np.sum(direction * (corner - vectors.source), axis=-1)
    return result


@numba.njit(nogil=True, fastmath={"reassoc", "nsz"}, error_model="numpy", cache=True)
def _gathered(rows, size, starts, slopes, z):  # type: ignore[no-untyped-def]
    """Return the sum over views of what the voxel's shadow sees, times the square of its magnification."""
    number = rows.dtype.type
    one = number(1.0)
    total = number(0.0)
    wide, high = size
    width = high + 3
    for view in range(starts.shape[1]):
        depth = starts[2, view] + slopes[2, view] * z
        closer = 1.0 / depth
        u = min(max((starts[0, view] + slopes[0, view] * z) * closer, 0.0), wide + 1.0)
        v = min(max((starts[1, view] + slopes[1, view] * z) * closer, 0.0), high + 1.0)
        left, below = np.int32(u), np.int32(v)
        s, t = number(u - left), number(v - below)
        place = (np.int64(view) * (wide + 3) + np.int64(left)) * width + np.int64(below)
        near = (one - t) * rows[np.uint64(place)] + t * rows[np.uint64(place + 1)]
        place += width
        far = (one - t) * rows[np.uint64(place)] + t * rows[np.uint64(place + 1)]
        total += number(closer * closer) * ((one - s) * near + s * far)
    return total


@numba.njit(parallel=True, nogil=True, cache=True)
def _gather(rows, size, shadows, out):  # type: ignore[no-untyped-def]
    """Add flat bordered rows `(view, column, row)` at the shadows of the voxels of `out (z, y, x)`."""
    slices, high, wide = out.shape
    views = shadows.shape[0]
    slopes = shadows[:, :, 2].T.copy()
    for y in numba.prange(high):
        starts = np.empty((3, views))
        for x in range(wide):
            for view in range(views):
                for part in range(3):
                    view_part = shadows[view, part]
                    starts[part, view] = view_part[0] * x + view_part[1] * y + view_part[3]
            for z in range(slices):
                out[z, y, x] += _gathered(rows, size, starts, slopes, z)
