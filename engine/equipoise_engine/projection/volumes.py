"""Line integrals through volumes along any rays, and the exact transpose, without a stored matrix."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.threads import match_threads

_Reals = NDArray[np.float64]

COLUMNS_AT_A_TIME = 16
"""Detector columns that a thread projects before it takes the next ones."""
PLANES_AT_A_TIME = 32
"""At most so many planes of the volume does a thread spread rays onto at a time."""
PLANES_OF_A_RAY = 16
"""Planes that a single ray is spread onto before the next ray."""
BYTES_OF_RAYS = 2**25
"""Rays of several views are worked out together up to this amount of memory; of one view at least."""


class VolumeProjector:
    """Joseph's projector for volumes: rays are sampled in the planes across their main axis, bilinearly.

    The main axis of a ray is the one along which it crosses most voxels; the samples are weighted by the distance that
    the ray covers from one plane to the next, and voxels outside the volume are zero. The grid lies with its middle at
    the origin; a column grows with x, a row falls with y, a slice grows with z. Forward and adjoint use the same
    positions and weights, worked out in double precision from the vectors of a view, and each sample of a batch is
    computed alone. Sums are in the precision of the argument, whose device they return to; the work is done on the
    host. No order of summation depends on the number of threads.

    Parameters
    ----------
    geometry
        Where the rays run; any set of views, tilted, shifted or curved.
    detector
        Number of detector rows and columns.
    shape
        Slices, rows and columns of the volume `(z, y, x)`.
    voxel_mm
        Side of a voxel.
    slice_mm
        Distance between slices; None takes `voxel_mm`.

    Raises
    ------
    BadInput
        A size is not positive.

    Source: P. M. Joseph 1982, doi:10.1109/TMI.1982.4307572.
    """

    def __init__(
        self,
        geometry: VectorGeometry,
        detector: tuple[int, int],
        shape: tuple[int, int, int],
        voxel_mm: float,
        *,
        slice_mm: float | None = None,
    ) -> None:
        _check_sizes(detector, shape)
        slice_mm = voxel_mm if slice_mm is None else slice_mm
        for length in (voxel_mm, slice_mm):
            if not 0 < length < math.inf:
                raise BadInput(f"a voxel of {length:g} mm is not a length above zero")
        self.shape = shape
        self.range = (geometry.views, *detector)
        self._sides = np.array([voxel_mm, voxel_mm, slice_mm])
        self._rays = _rays_in_voxels(geometry, detector[1], shape, self._sides)
        self._upright = _is_upright(self._rays, detector[0])
        slices, rows, columns = shape
        self._views_together = max(1, min(geometry.views, BYTES_OF_RAYS // (48 * detector[0] * detector[1])))
        # slices lie side by side in memory: rays of one detector column then share lines of the cache
        self._padded = (rows + 3, columns + 3, slices + 3)

    @property
    def bytes(self) -> int:
        """Memory that is held from one call to the next."""
        return sum(part.nbytes for part in self._rays)

    def forward(self, x: Tensor) -> Tensor:
        """Return line integrals `(batch, view, row, column)` of volumes `(batch, z, y, x)`, in mm times their unit.

        Raises
        ------
        BadInput
            The shape does not fit.
        """
        _check_shape(x, self.shape, "(batch, z, y, x)")
        match_threads()
        out = torch.empty((x.shape[0], *self.range), dtype=x.dtype)
        padded = torch.zeros(self._padded, dtype=x.dtype)
        for sample, volume in zip(out, x.detach().cpu(), strict=True):
            padded[1:-2, 1:-2, 1:-2].copy_(volume.permute(1, 2, 0))
            project = _project_upright if self._upright else _project
            project(padded.numpy().reshape(-1), _grid(self.shape), *self._rays, self._sides, sample.numpy())
        return out.to(x.device)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transpose applied to `(batch, view, row, column)`: volumes `(batch, z, y, x)`.

        Raises
        ------
        BadInput
            The shape does not fit.
        """
        _check_shape(y, self.range, "(batch, view, row, column)")
        match_threads()
        out = torch.empty((y.shape[0], *self.shape), dtype=y.dtype)
        for volume, sample in zip(out, y.detach().cpu().contiguous(), strict=True):
            padded = torch.zeros(self._padded, dtype=y.dtype)
            _spread(
                padded.numpy().reshape(-1),
                _grid(self.shape),
                *self._rays,
                self._sides,
                sample.numpy(),
                self._upright,
                numba.get_num_threads(),
                self._views_together,
            )
            volume.copy_(padded[1:-2, 1:-2, 1:-2].permute(2, 0, 1))
        return out.to(y.device)


def _check_sizes(detector: tuple[int, int], shape: tuple[int, int, int]) -> None:
    if min(*detector, *shape) < 1:
        raise BadInput(f"a volume of {shape} voxels and a detector of {detector} elements: each needs one at least")


def _check_shape(x: Tensor, sample: tuple[int, ...], axes: str) -> None:
    if tuple(x.shape[1:]) != sample:
        raise BadInput(f"an array of shape {tuple(x.shape)} does not fit {axes} with {sample} in a sample")


def _grid(shape: tuple[int, int, int]) -> tuple[int, int, int, int, int, int]:
    """Return the number of voxels along x, y and z, and how far apart neighbours lie in the padded volume."""
    slices, rows, columns = shape
    return columns, rows, slices, slices + 3, (columns + 3) * (slices + 3), 1


def _rays_in_voxels(
    geometry: VectorGeometry, columns: int, shape: tuple[int, int, int], sides: _Reals
) -> tuple[_Reals, _Reals, _Reals, _Reals]:
    """Return the rays in steps of the padded grid along (x, y, z).

    The ray to `(row, column)` starts at `origin[column] + row * origin_step` and runs along `direction[column] + row *
    direction_step`: `origin (view, column, 3)`, `origin_step (view, 3)`, `direction (view, column, 3)`,
    `direction_step (view, 3)`.
    """
    slices, rows, wide = shape
    scale = np.array([1.0, -1.0, 1.0]) / sides
    # the padding begins one voxel before the volume
    middle = np.array([(wide + 1) / 2, (rows + 1) / 2, (slices + 1) / 2])
    across = (np.arange(columns) - geometry.reference_px[1])[None, :, None] * geometry.column_step[:, None]
    still = np.zeros_like(geometry.row_step)
    first_row = -geometry.reference_px[0] * geometry.row_step[:, None]
    if geometry.parallel:
        origin = geometry.detector[:, None] + across + first_row
        direction = np.broadcast_to(geometry.source[:, None], origin.shape)
        steps = (geometry.row_step, still)
    else:
        towards = geometry.detector - geometry.source
        aim = towards[:, None] + across
        if geometry.curved:
            distance = np.linalg.norm(towards, axis=-1)[:, None, None]
            angle = np.sign(np.arange(columns) - geometry.reference_px[1])[:, None]
            angle = angle * np.linalg.norm(across, axis=-1, keepdims=True) / distance
            width = np.linalg.norm(geometry.column_step, axis=-1)[:, None, None]
            sideways = geometry.column_step[:, None] / width
            aim = np.cos(angle) * towards[:, None] + distance * np.sin(angle) * sideways
        direction = aim + first_row
        origin = np.broadcast_to(geometry.source[:, None], direction.shape)
        steps = (still, geometry.row_step)
    return (
        np.ascontiguousarray(origin * scale + middle),
        np.ascontiguousarray(steps[0] * scale),
        np.ascontiguousarray(direction * scale),
        np.ascontiguousarray(steps[1] * scale),
    )


def _is_upright(rays: tuple[_Reals, _Reals, _Reals, _Reals], rows: int) -> bool:
    """Whether the rays of each detector column lie in one plane along z, and none is steeper than it runs forward."""
    _, origin_step, direction, direction_step = rays
    if np.any(origin_step[:, :2]) or np.any(direction_step[:, :2]):
        return False
    forward = np.abs(direction[..., :2]).max(axis=-1)
    lowest = np.abs(direction[..., 2])
    highest = np.abs(direction[..., 2] + (rows - 1) * direction_step[:, None, 2])
    return bool((np.maximum(lowest, highest) < forward).all())


@numba.njit(inline="always")
def _ray(origin, origin_step, direction, direction_step, row, sides):  # type: ignore[no-untyped-def]
    """Return the main axis of a ray and where it crosses its planes.

    At plane k of the main axis it lies at `first_start + first_slope * k` and `second_start + second_slope * k` of
    the other axes (x before y before z); the last value is the distance from plane to plane in mm.
    """
    ox = origin[0] + row * origin_step[0]
    oy = origin[1] + row * origin_step[1]
    oz = origin[2] + row * origin_step[2]
    dx = direction[0] + row * direction_step[0]
    dy = direction[1] + row * direction_step[1]
    dz = direction[2] + row * direction_step[2]
    length = math.sqrt((dx * sides[0]) ** 2 + (dy * sides[1]) ** 2 + (dz * sides[2]) ** 2)
    if abs(dx) > abs(dy) and abs(dx) >= abs(dz):
        first, second = dy / dx, dz / dx
        return 0, oy - ox * first, first, oz - ox * second, second, length / abs(dx)
    if abs(dy) >= abs(dz):
        first, second = dx / dy, dz / dy
        return 1, ox - oy * first, first, oz - oy * second, second, length / abs(dy)
    first, second = dx / dz, dy / dz
    return 2, ox - oz * first, first, oy - oz * second, second, length / abs(dz)


@numba.njit(inline="always")
def _span(start, slope, size, first, last):  # type: ignore[no-untyped-def]
    """Return which of the planes from `first` to before `last` see the ray within a voxel of the volume."""
    if abs(slope) < 1e-12:
        inside = 0.0 < start + slope * first < size + 1.0
        return first, (last if inside else first)
    one, other = -start / slope, (size + 1.0 - start) / slope
    low, high = min(one, other), max(one, other)
    begin = np.int64(math.ceil(min(max(low, first), last)))
    end = np.int64(math.floor(min(max(high, first - 1.0), last - 1.0))) + 1
    return begin, max(begin, end)


@numba.njit(inline="always")
def _axes(axis, grid):  # type: ignore[no-untyped-def]
    """Return sizes and strides of the axes across a main axis, then its own."""
    nx, ny, nz, sx, sy, sz = grid
    if axis == 0:
        return ny, sy, nz, sz, nx, sx
    if axis == 1:
        return nx, sx, nz, sz, ny, sy
    return nx, sx, ny, sy, nz, sz


@numba.njit(nogil=True, fastmath={"reassoc", "nsz"}, cache=True)
def _sum_along(volume, lines, ray, begin, end):  # type: ignore[no-untyped-def]
    """Return the sum of bilinear samples of the volume over planes."""
    first_size, first_stride, second_size, second_stride, stride = lines
    first_start, first_slope, second_start, second_slope = ray
    number = volume.dtype.type
    one = number(1.0)
    total = number(0.0)
    for plane in range(begin, end):
        u = min(max(first_start + first_slope * plane, 0.0), first_size + 1.0)
        v = min(max(second_start + second_slope * plane, 0.0), second_size + 1.0)
        left, below = np.int32(u), np.int32(v)
        place = plane * stride + np.int64(left) * first_stride + np.int64(below) * second_stride
        s, t = number(u - left), number(v - below)
        near = (one - t) * volume[np.uint64(place)] + t * volume[np.uint64(place + second_stride)]
        place += first_stride
        far = (one - t) * volume[np.uint64(place)] + t * volume[np.uint64(place + second_stride)]
        total += (one - s) * near + s * far
    return total


@numba.njit(nogil=True, fastmath={"reassoc", "nsz"}, cache=True)
def _sum_lines(lines, width, start, slope, size, begin, end):  # type: ignore[no-untyped-def]
    """Return the sum of linear samples of consecutive lines."""
    number = lines.dtype.type
    one = number(1.0)
    total = number(0.0)
    for plane in range(begin, end):
        v = min(max(start + slope * plane, 0.0), size + 1.0)
        below = np.int32(v)
        t = number(v - below)
        place = (plane - 1) * width + np.int64(below)
        total += (one - t) * lines[np.uint64(place)] + t * lines[np.uint64(place + 1)]
    return total


@numba.njit(parallel=True, cache=True, nogil=True)
def _project(volume, grid, origin, origin_step, direction, direction_step, sides, out):  # type: ignore[no-untyped-def]
    """Fill `out (view, row, column)` with line integrals through a flat padded volume `(y, x, z)`."""
    views, rows, columns = out.shape
    for task in numba.prange(views * columns):
        view, column = task // columns, task % columns
        for row in range(rows):
            axis, a, b, c, d, weight = _ray(
                origin[view, column], origin_step[view], direction[view, column], direction_step[view], row, sides
            )
            first_size, first_stride, second_size, second_stride, planes, stride = _axes(axis, grid)
            begin, end = _span(a, b, first_size, 1, planes + 1)
            begin, end = _span(c, d, second_size, begin, end)
            lines = (first_size, first_stride, second_size, second_stride, stride)
            total = _sum_along(volume, lines, (a, b, c, d), begin, end)
            out[view, row, column] = volume.dtype.type(weight) * total


@numba.njit(parallel=True, cache=True, nogil=True)
def _project_upright(  # type: ignore[no-untyped-def]
    volume, grid, origin, origin_step, direction, direction_step, sides, out
):
    """Do the same where the rays of a detector column share a plane along z: its lines are blended once for all."""
    views, rows, columns = out.shape
    chunks = (columns + COLUMNS_AT_A_TIME - 1) // COLUMNS_AT_A_TIME
    number = volume.dtype.type
    width = grid[2] + 3
    for task in numba.prange(views * chunks):
        view, chunk = task // chunks, task % chunks
        blended = np.empty(max(grid[0], grid[1]) * width, volume.dtype)
        for column in range(chunk * COLUMNS_AT_A_TIME, min(columns, (chunk + 1) * COLUMNS_AT_A_TIME)):
            o, d = origin[view, column], direction[view, column]
            axis, a, b, _, _, _ = _ray(o, origin_step[view], d, direction_step[view], 0, sides)
            first_size, first_stride, second_size, _, planes, stride = _axes(axis, grid)
            begin, end = _span(a, b, first_size, 1, planes + 1)
            for plane in range(begin, end):
                u = min(max(a + b * plane, 0.0), first_size + 1.0)
                left = np.int32(u)
                s = number(u - left)
                rest = number(1.0) - s
                place = plane * stride + np.int64(left) * first_stride
                near = volume[place : place + width]
                far = volume[place + first_stride : place + first_stride + width]
                line = blended[(plane - 1) * width : plane * width]
                for z in range(width):
                    line[z] = rest * near[z] + s * far[z]
            for row in range(rows):
                _, _, _, c, e, weight = _ray(o, origin_step[view], d, direction_step[view], row, sides)
                low, high = _span(c, e, second_size, begin, end)
                total = _sum_lines(blended, width, c, e, second_size, low, high)
                out[view, row, column] = number(weight) * total


@numba.njit(nogil=True, cache=True)
def _spread_ray(volume, lines, ray, value, begin, end, places, shares):  # type: ignore[no-untyped-def]
    """Add a value to the voxels that `_sum_along` reads, with its weights; the last two are room to work in."""
    first_size, first_stride, second_size, second_stride, stride = lines
    first_start, first_slope, second_start, second_slope = ray
    number = volume.dtype.type
    one = number(1.0)
    # places come first, on their own: without writing to the volume, several are worked out at once
    for step in range(end - begin):
        plane = begin + step
        u = min(max(first_start + first_slope * plane, 0.0), first_size + 1.0)
        v = min(max(second_start + second_slope * plane, 0.0), second_size + 1.0)
        left, below = np.int32(u), np.int32(v)
        places[step] = plane * stride + np.int64(left) * first_stride + np.int64(below) * second_stride
        shares[0, step], shares[1, step] = number(u - left), number(v - below)
    for step in range(end - begin):
        place, s, t = places[step], shares[0, step], shares[1, step]
        near, far = (one - s) * value, s * value
        volume[np.uint64(place)] += (one - t) * near
        volume[np.uint64(place + second_stride)] += t * near
        place += first_stride
        volume[np.uint64(place)] += (one - t) * far
        volume[np.uint64(place + second_stride)] += t * far


@numba.njit(nogil=True, cache=True)
def _spread_lines(lines, width, track, size, value, begin, end, origin, places, shares):  # type: ignore[no-untyped-def]
    """Add a value to the places that `_sum_lines` reads, with its weights; `lines` begins at the plane `origin`."""
    start, slope = track
    number = lines.dtype.type
    one = number(1.0)
    for step in range(end - begin):
        plane = begin + step
        v = min(max(start + slope * plane, 0.0), size + 1.0)
        below = np.int32(v)
        places[step] = (plane - origin) * width + np.int64(below)
        shares[1, step] = number(v - below)
    for step in range(end - begin):
        place, t = places[step], shares[1, step]
        lines[np.uint64(place)] += (one - t) * value
        lines[np.uint64(place + 1)] += t * value


@numba.njit(parallel=True, cache=True, nogil=True)
def _spread(  # type: ignore[no-untyped-def]
    volume, grid, origin, origin_step, direction, direction_step, sides, y, upright, threads, together
):
    """Add the transpose of `_project`, or of `_project_upright`, applied to `y (view, row, column)`."""
    views, rows, columns = y.shape
    number = volume.dtype.type
    width = grid[2] + 3
    tracks = np.empty((together, columns, rows, 4))
    values = np.empty((together, columns, rows), volume.dtype)
    spans = np.empty((together, columns, rows, 2), np.int32)
    axes = np.empty((together, columns, rows), np.int8)
    present = np.empty((together, columns, 3), np.bool_)
    for first_view in range(0, views, together):
        some = min(together, views - first_view)
        for task in numba.prange(some * columns):
            member, column = task // columns, task % columns
            view = first_view + member
            present[member, column] = False
            for row in range(rows):
                axis, a, b, c, d, weight = _ray(
                    origin[view, column], origin_step[view], direction[view, column], direction_step[view], row, sides
                )
                first_size, _, second_size, _, planes, _ = _axes(axis, grid)
                begin, end = _span(a, b, first_size, 1, planes + 1)
                begin, end = _span(c, d, second_size, begin, end)
                track = tracks[member, column, row]
                track[0], track[1], track[2], track[3] = a, b, c, d
                spans[member, column, row, 0], spans[member, column, row, 1] = begin, end
                values[member, column, row] = number(weight) * y[view, row, column]
                axes[member, column, row] = axis
                present[member, column, axis] = True
        for axis in range(3):
            if not present[:some, :, axis].any():
                continue
            first_size, first_stride, second_size, second_stride, planes, stride = _axes(axis, grid)
            lines = (first_size, first_stride, second_size, second_stride, stride)
            # planes that a thread owns: no two write to the same voxel
            deep = min(PLANES_AT_A_TIME, -(-planes // threads))
            for block in numba.prange(-(-planes // deep)):
                lowest = 1 + block * deep
                highest = min(lowest + deep, planes + 1)
                blended = np.empty(deep * width, volume.dtype)
                places, shares = np.empty(deep, np.int64), np.empty((2, deep), volume.dtype)
                for ray_column in range(some * columns):
                    member, column = ray_column // columns, ray_column % columns
                    if not present[member, column, axis]:
                        continue
                    track, value, span = tracks[member, column], values[member, column], spans[member, column]
                    if upright:
                        a, b = track[0, 0], track[0, 1]
                        begin, end = _span(a, b, first_size, lowest, highest)
                        if begin >= end:
                            continue
                        blended[(begin - lowest) * width : (end - lowest) * width] = 0
                        for row in range(rows):
                            low, high = max(begin, span[row, 0]), min(end, span[row, 1])
                            height = (track[row, 2], track[row, 3])
                            _spread_lines(
                                blended, width, height, second_size, value[row], low, high, lowest, places, shares
                            )
                        for plane in range(begin, end):
                            u = min(max(a + b * plane, 0.0), first_size + 1.0)
                            left = np.int32(u)
                            s = number(u - left)
                            rest = number(1.0) - s
                            place = plane * stride + np.int64(left) * first_stride
                            near = volume[place : place + width]
                            far = volume[place + first_stride : place + first_stride + width]
                            line = blended[(plane - lowest) * width : (plane - lowest + 1) * width]
                            for z in range(width):
                                near[z] += rest * line[z]
                                far[z] += s * line[z]
                        continue
                    # few planes at once: the processor remembers few pages that it writes to
                    for lower in range(lowest, highest, PLANES_OF_A_RAY):
                        upper = min(lower + PLANES_OF_A_RAY, highest)
                        for row in range(rows):
                            low, high = max(lower, span[row, 0]), min(upper, span[row, 1])
                            if low >= high or axes[member, column, row] != axis:
                                continue
                            ray = (track[row, 0], track[row, 1], track[row, 2], track[row, 3])
                            _spread_ray(volume, lines, ray, value[row], low, high, places, shares)
