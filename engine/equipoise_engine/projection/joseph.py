"""Joseph's projector on the CPU, without a matrix: several slices at a time, in threads.

A ray meets each image line between two pixels and takes them in proportion (P. M. Joseph 1982,
doi:10.1109/TMI.1982.4307572). The forward projector and its transpose walk along the same lines with the same weights,
so they are exact transposes of each other. Slices are cut into groups of eight that lie next to each other in memory:
positions and weights are then computed once for all eight. What comes out for one slice does not depend on the others.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.lanes import LANES, add_scaled
from equipoise_engine.projection.lines import Lines, trace
from equipoise_engine.projection.threads import match_threads

_Array = NDArray[Any]

# A group of this many slices or more is quicker in eight lanes, some of them empty, than one by one.
_WORTH_LANES = 3
_RAYS_PER_TASK = 64
_IMAGE_LINES_PER_BLOCK = 16
_CACHE_LINE_BYTES = 64


@numba.njit(parallel=True, cache=True, nogil=True)
def _project_one(
    image: _Array, start: _Array, slope: _Array, ray: _Array, first: _Array, last: _Array, scale: float, out: _Array
) -> None:
    """Put line integrals of `image (line, position)` into `out (ray,)`; one zero stands before each image line."""
    rays = start.shape[0]
    one = image.dtype.type(1)
    for task in numba.prange((rays + _RAYS_PER_TASK - 1) // _RAYS_PER_TASK):
        for r in range(task * _RAYS_PER_TASK, min(rays, (task + 1) * _RAYS_PER_TASK)):
            begin, step = start[r] + 1.0, slope[r]
            total = image.dtype.type(0)
            for k in range(first[r], last[r]):
                position = begin + step * k
                left = np.int64(position)
                fraction = image.dtype.type(position - left)
                line = image[np.uint64(k)]
                total += (one - fraction) * line[np.uint64(left)]
                total += fraction * line[np.uint64(left + 1)]
            out[ray[r]] = total * image.dtype.type(scale * math.sqrt(1.0 + step * step))


@numba.njit(parallel=True, cache=True, nogil=True)
def _backproject_one(
    values: _Array, start: _Array, slope: _Array, ray: _Array, first: _Array, last: _Array, scale: float, out: _Array
) -> None:
    """Add the transpose of `_project_one` at `values (ray,)` to `out (line, position)`."""
    rays, lines = start.shape[0], out.shape[0]
    one = values.dtype.type(1)
    for task in numba.prange((lines + _IMAGE_LINES_PER_BLOCK - 1) // _IMAGE_LINES_PER_BLOCK):
        top, bottom = task * _IMAGE_LINES_PER_BLOCK, min(lines, (task + 1) * _IMAGE_LINES_PER_BLOCK)
        for r in range(rays):
            from_line, to_line = max(top, first[r]), min(bottom, last[r])
            if from_line >= to_line:
                continue
            begin, step = start[r] + 1.0, slope[r]
            value = values[ray[r]] * values.dtype.type(scale * math.sqrt(1.0 + step * step))
            for k in range(from_line, to_line):
                position = begin + step * k
                left = np.int64(position)
                fraction = values.dtype.type(position - left)
                line = out[np.uint64(k)]
                line[np.uint64(left)] += (one - fraction) * value
                line[np.uint64(left + 1)] += fraction * value


@numba.njit(parallel=True, cache=True, nogil=True)
def _project_lanes(
    image: _Array, start: _Array, slope: _Array, ray: _Array, first: _Array, last: _Array, scale: float, out: _Array
) -> None:
    """Put line integrals of `image (line, position, 8)` into `out (8, ray)`: what `_project_one` does, eight times."""
    rays = start.shape[0]
    one = image.dtype.type(1)
    pixels, pitch = image.reshape(-1), image.shape[1]
    for task in numba.prange((rays + _RAYS_PER_TASK - 1) // _RAYS_PER_TASK):
        from_ray, to_ray = task * _RAYS_PER_TASK, min(rays, (task + 1) * _RAYS_PER_TASK)
        sums = np.zeros(_RAYS_PER_TASK * LANES, image.dtype)
        top, bottom = image.shape[0], 0
        for r in range(from_ray, to_ray):
            top, bottom = min(top, first[r]), max(bottom, last[r])
        # neighbouring rays add to different sums, and need not wait for each other as the steps of one ray would
        for k in range(top, bottom):
            for r in range(from_ray, to_ray):
                if first[r] <= k < last[r]:
                    position = start[r] + 1.0 + slope[r] * k
                    left = np.int64(position)
                    fraction = image.dtype.type(position - left)
                    here, at = (k * pitch + left) * LANES, (r - from_ray) * LANES
                    add_scaled(sums, at, pixels, here, one - fraction)
                    add_scaled(sums, at, pixels, here + LANES, fraction)
        for r in range(from_ray, to_ray):
            weight = image.dtype.type(scale * math.sqrt(1.0 + slope[r] * slope[r]))
            for lane in range(LANES):
                out[lane, ray[r]] = sums[(r - from_ray) * LANES + lane] * weight


@numba.njit(parallel=True, cache=True, nogil=True)
def _backproject_lanes(
    values: _Array, start: _Array, slope: _Array, ray: _Array, first: _Array, last: _Array, scale: float, out: _Array
) -> None:
    """Add the transpose of `_project_lanes` at `values (ray, 8)` to `out (line, position, 8)`."""
    rays, lines = start.shape[0], out.shape[0]
    one = values.dtype.type(1)
    pixels, pitch = out.reshape(-1), out.shape[1]
    for task in numba.prange((lines + _IMAGE_LINES_PER_BLOCK - 1) // _IMAGE_LINES_PER_BLOCK):
        top, bottom = task * _IMAGE_LINES_PER_BLOCK, min(lines, (task + 1) * _IMAGE_LINES_PER_BLOCK)
        scaled = np.empty(LANES, values.dtype)
        for r in range(rays):
            from_line, to_line = max(top, first[r]), min(bottom, last[r])
            if from_line >= to_line:
                continue
            begin, step = start[r] + 1.0, slope[r]
            weight = values.dtype.type(scale * math.sqrt(1.0 + step * step))
            for lane in range(LANES):
                scaled[lane] = values[ray[r], lane] * weight
            for k in range(from_line, to_line):
                position = begin + step * k
                left = np.int64(position)
                fraction = values.dtype.type(position - left)
                here = (k * pitch + left) * LANES
                add_scaled(pixels, here, scaled, 0, one - fraction)
                add_scaled(pixels, here + LANES, scaled, 0, fraction)


class JosephProjector(Projector):
    """Joseph's projector on the CPU without a matrix.

    Parameters
    ----------
    geometry
        The views; z is left out of account.
    columns
        Number of detector columns.
    shape
        Rows and columns of the image.
    pixel_mm
        Side of an image pixel.

    Raises
    ------
    BadInput
        As of `lines.trace`.
    """

    engine = "matrix-free"

    def __init__(self, geometry: VectorGeometry, columns: int, shape: tuple[int, int], pixel_mm: float) -> None:
        super().__init__(shape, (geometry.views, columns))
        self._pixel_mm = pixel_mm
        self._along_y, self._along_x = trace(geometry, columns, shape, pixel_mm)

    @property
    def bytes(self) -> int:
        """Memory that the rays take."""
        return self._along_y.bytes + self._along_x.bytes

    def _forward(self, x: Tensor) -> Tensor:
        image = x.cpu()
        out = torch.empty((image.shape[0], math.prod(self.range)), dtype=image.dtype)
        match_threads()
        for group in groups(image.shape[0]):
            part = image[group]
            lanes = part.shape[0] > 1
            sums = out[group] if not lanes or part.shape[0] == LANES else out.new_empty((LANES, out.shape[1]))
            for lines, flipped in ((self._along_y, False), (self._along_x, True)):
                if lines.start.size:
                    packed = _packed(part.transpose(1, 2) if flipped else part, lines)
                    if lanes:
                        _project_lanes(packed, *_arrays(lines), self._pixel_mm, sums.numpy())
                    else:
                        _project_one(packed[:, :, 0], *_arrays(lines), self._pixel_mm, sums[0].numpy())
            if lanes and part.shape[0] < LANES:
                out[group] = sums[: part.shape[0]]
        return out.reshape(-1, *self.range).to(x.device)

    def _adjoint(self, y: Tensor) -> Tensor:
        sinogram = y.cpu().flatten(1)
        out = torch.zeros((y.shape[0], *self.shape), dtype=y.dtype)
        match_threads()
        for group in groups(y.shape[0]):
            part = sinogram[group]
            lanes = part.shape[0] > 1
            if lanes:
                values = part.new_zeros((part.shape[1], LANES))
                values[:, : part.shape[0]] = part.T
            else:
                values = part[0].contiguous()
            for lines, flipped in ((self._along_y, False), (self._along_x, True)):
                if lines.start.size:
                    grid = np.zeros(_packed_shape(lines, part), dtype=values.numpy().dtype)
                    if lanes:
                        _backproject_lanes(values.numpy(), *_arrays(lines), self._pixel_mm, grid)
                    else:
                        _backproject_one(values.numpy(), *_arrays(lines), self._pixel_mm, grid[:, :, 0])
                    image = torch.from_numpy(grid)[:, 1 : lines.length + 1, : part.shape[0]].permute(2, 0, 1)
                    out[group] += image.transpose(1, 2) if flipped else image
        return out.to(y.device)


def groups(batch: int) -> list[slice]:
    """Return the parts of a batch that are worked on together: eight slices, fewer at the end, or single ones."""
    whole = batch - batch % LANES
    parts = [slice(first, first + LANES) for first in range(0, whole, LANES)]
    if batch - whole >= _WORTH_LANES:
        return [*parts, slice(whole, batch)]
    return parts + [slice(one, one + 1) for one in range(whole, batch)]


def _arrays(lines: Lines) -> tuple[_Array, _Array, _Array, _Array, _Array]:
    return lines.start, lines.slope, lines.ray, lines.first, lines.last


def _packed_shape(lines: Lines, part: Tensor) -> tuple[int, int, int]:
    """Return the shape `(line, position, lane)` with a zero before each line and two behind it.

    An odd number of cache lines lies between neighbouring image lines, or those that a ray meets one after the other
    would crowd into the same few sets of the cache.
    """
    lanes = LANES if part.shape[0] > 1 else 1
    step = max(1, _CACHE_LINE_BYTES // (lanes * part.element_size()))
    steps = -(-(lines.length + 3) // step)
    return lines.count, (steps + 1 - steps % 2) * step, lanes


def _packed(image: Tensor, lines: Lines) -> _Array:
    """Return `image (batch, line, position)` as `_packed_shape` says."""
    out = image.new_zeros(_packed_shape(lines, image))
    out[:, 1 : lines.length + 1, : image.shape[0]] = image.permute(1, 2, 0)
    return np.asarray(out.numpy())
