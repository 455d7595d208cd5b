"""Projection onto detector elements of some width, on the CPU, without a matrix: several slices at a time, in threads.

Seen from the source, a pixel covers a part of the detector. Its footprint is taken as a trapezoid whose corners are the
images of the pixel's corners and whose height is the length of the ray through the pixel's middle; an element receives
the part of it that falls onto the element, divided by the element's width (the separable footprint of Y. Long,
J. A. Fessler and J. M. Balter 2010, doi:10.1109/TMI.2010.2050898, in the plane). In a parallel beam this is exactly the
area that pixel and strip have in common, divided by the width of the strip. Both directions use the same weights, so
they are exact transposes of each other. What comes out for one slice does not depend on the others.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.lanes import LANES, add_scaled
from equipoise_engine.projection.lines import trace
from equipoise_engine.projection.threads import match_threads

_Array = NDArray[Any]
_Reals = NDArray[np.float64]

# A side of the trapezoid may be upright.
_NARROWEST = 1e-200


def footprint_optics(geometry: VectorGeometry, shape: tuple[int, int], pixel_mm: float) -> _Reals:
    """Return what maps the pixels of an image onto detector columns `(view, 11)`.

    Pixel `(row, column)` is seen at `u = o[0] + o[1] * column + o[2] * row` to `v = o[3] + o[4] * column + o[5] * row`:
    on detector column `o[6] + u / v`, or `o[6] + o[7] * atan2(u, v)` where `o[7]` is not zero. The direction from the
    source is `(column - o[8], row - o[9])`. Of a parallel beam, `o[10]` is the height of the footprint in mm; else
    it is the side of a pixel, negative.

    Raises
    ------
    BadInput
        The source is inside the image, or not in front of all of it.
    """
    middle_column, middle_row = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    source, detector, step = geometry.source[:, :2], geometry.detector[:, :2], geometry.column_step[:, :2]

    def affine(origin: _Reals, x: _Reals, y: _Reals) -> list[_Reals]:
        """Return `origin + x * x_mm + y * y_mm` as a function of column and row."""
        column, row = x * pixel_mm, -y * pixel_mm
        return [origin - middle_column * column - middle_row * row, column, row]

    ones, zeros = np.ones(geometry.views), np.zeros(geometry.views)
    reference = np.full(geometry.views, float(geometry.reference_px[1]))
    if geometry.parallel:
        ahead = source / np.linalg.norm(source, axis=-1, keepdims=True)
        scale = _cross(step, ahead)
        above = affine(-_cross(detector, ahead) / scale, ahead[:, 1] / scale, -ahead[:, 0] / scale)
        height = pixel_mm / np.abs(ahead).max(axis=-1)
        return np.stack([*above, *affine(ones, zeros, zeros), reference, zeros, zeros, zeros, height], axis=-1)
    middle = detector - source
    distance, width = np.linalg.norm(middle, axis=-1), np.linalg.norm(step, axis=-1)
    if geometry.curved:
        across, ahead = step / width[:, None], middle / distance[:, None]
        above = affine(-(source * across).sum(-1), across[:, 0], across[:, 1])
        below = affine(-(source * ahead).sum(-1), ahead[:, 0], ahead[:, 1])
        radius = distance / width
    else:
        facing = np.sign(_cross(middle, step))
        above = affine(facing * _cross(source, middle), -facing * middle[:, 1], facing * middle[:, 0])
        below = affine(-facing * _cross(source, step), facing * step[:, 1], -facing * step[:, 0])
        radius = zeros
    columns = np.array([-0.5, shape[1] - 0.5])
    rows = np.array([-0.5, shape[0] - 0.5])
    nearest = below[0] + np.minimum(below[1] * columns[0], below[1] * columns[1])
    nearest = nearest + np.minimum(below[2] * rows[0], below[2] * rows[1])
    if not (nearest > 0).all():
        raise BadInput(
            "the source lies within the image or beside it in some views, so not every pixel is seen on the detector",
            "Choose a smaller image.",
        )
    place = [source[:, 0] / pixel_mm + middle_column, middle_row - source[:, 1] / pixel_mm]
    heights = np.full(geometry.views, -pixel_mm)
    return np.stack([*above, *below, reference, radius, *place, heights], axis=-1)


def _cross(one: _Reals, other: _Reals) -> _Reals:
    return np.asarray(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def seen_column(optics: _Array, row: float, column: float) -> float:
    """Return the detector column that a point of the image is seen at."""
    above = optics[0] + optics[1] * column + optics[2] * row
    below = optics[3] + optics[4] * column + optics[5] * row
    if optics[7] != 0.0:
        return float(optics[6] + optics[7] * math.atan2(above, below))
    return float(optics[6] + above / below)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _area(ends: tuple[float, float, float, float], bends: tuple[float, float], edge: float) -> float:
    """Return the area below `edge` of a trapezoid of height one.

    `ends` are its corners in order, `bends` half the slopes of its two sides. Without branches: where an edge falls
    cannot be foreseen.
    """
    rise = min(max(edge, ends[0]), ends[1]) - ends[0]
    level = min(max(edge, ends[1]), ends[2]) - ends[1]
    fall = ends[3] - min(max(edge, ends[2]), ends[3])
    return rise * rise * bends[0] + level + (0.5 * (ends[3] - ends[2]) - fall * fall * bends[1])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def pixel_footprint(
    optics: _Array, row: int, column: int, left: tuple[float, float], weights: _Array
) -> tuple[int, int, tuple[float, float]]:
    """Put the weights of one pixel on the elements of one view into the beginning of `weights (column,)`.

    Parameters
    ----------
    optics
        As of `footprint_optics`, of the view.
    row, column
        The pixel.
    left
        Where the pixel's upper and lower left corners are seen.
    weights
        As long as the detector has columns.

    Returns
    -------
    first, count
        The first element and how many.
    right
        Where the pixel's right corners are seen: the left ones of the next pixel.
    """
    right = (seen_column(optics, row - 0.5, column + 0.5), seen_column(optics, row + 0.5, column + 0.5))
    low, high = min(left[0], left[1]), max(left[0], left[1])
    other_low, other_high = min(right[0], right[1]), max(right[0], right[1])
    between, beyond = max(low, other_low), min(high, other_high)
    ends = (min(low, other_low), min(between, beyond), max(between, beyond), max(high, other_high))
    columns = weights.shape[0]
    if ends[3] <= -0.5 or ends[0] >= columns - 0.5:
        return 0, 0, right
    first = max(0, math.floor(ends[0] + 0.5))
    last = min(columns - 1, math.floor(ends[3] + 0.5))
    height = optics[10]
    if height < 0.0:
        across, down = abs(column - optics[8]), abs(row - optics[9])
        height = -height * math.sqrt(across * across + down * down) / max(across, down)
    bends = (0.5 / max(ends[1] - ends[0], _NARROWEST), 0.5 / max(ends[3] - ends[2], _NARROWEST))
    before = _area(ends, bends, first - 0.5)
    for element in range(first, last + 1):
        after = _area(ends, bends, element + 0.5)
        weights[element - first] = height * (after - before)
        before = after
    return first, last - first + 1, right


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _project(image: _Array, optics: _Array, out: _Array) -> None:
    """Add line integrals of `image (y, x, 8)` to `out (view, column, 8)`."""
    rows, columns = image.shape[0], image.shape[1]
    views, elements = out.shape[0], out.shape[1]
    pixels = image.reshape(-1)
    for view in numba.prange(views):
        weights = np.empty(elements)
        lens, sums = optics[view], out[view].reshape(-1)
        for row in range(rows):
            left = (seen_column(lens, row - 0.5, -0.5), seen_column(lens, row + 0.5, -0.5))
            for column in range(columns):
                first, count, left = pixel_footprint(lens, row, column, left, weights)
                for n in range(count):
                    weight = image.dtype.type(weights[n])
                    add_scaled(sums, (first + n) * LANES, pixels, (row * columns + column) * LANES, weight)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _backproject(sinogram: _Array, optics: _Array, out: _Array) -> None:
    """Add the transpose of `_project` at `sinogram (view, column, 8)` to `out (y, x, 8)`."""
    rows, columns = out.shape[0], out.shape[1]
    views, elements = sinogram.shape[0], sinogram.shape[1]
    values = sinogram.reshape(-1)
    for row in numba.prange(rows):
        weights = np.empty(elements)
        sums = out[row].reshape(-1)
        for view in range(views):
            lens = optics[view]
            left = (seen_column(lens, row - 0.5, -0.5), seen_column(lens, row + 0.5, -0.5))
            for column in range(columns):
                first, count, left = pixel_footprint(lens, row, column, left, weights)
                for n in range(count):
                    weight = out.dtype.type(weights[n])
                    add_scaled(sums, column * LANES, values, (view * elements + first + n) * LANES, weight)


class StripProjector(Projector):
    """Projector onto elements of some width, on the CPU without a matrix.

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
        As of `lines.trace` and `footprint_optics`.
    """

    engine = "matrix-free"

    def __init__(self, geometry: VectorGeometry, columns: int, shape: tuple[int, int], pixel_mm: float) -> None:
        super().__init__(shape, (geometry.views, columns))
        trace(geometry, columns, shape, pixel_mm)
        self._optics = footprint_optics(geometry, shape, pixel_mm)

    @property
    def bytes(self) -> int:
        """Memory that the views take."""
        return int(self._optics.nbytes)

    def _forward(self, x: Tensor) -> Tensor:
        out = x.new_empty((x.shape[0], *self.range), device="cpu")
        match_threads()
        for first in range(0, x.shape[0], LANES):
            sums = np.zeros((*self.range, LANES), dtype=out.numpy().dtype)
            _project(_laned(x[first : first + LANES]), self._optics, sums)
            out[first : first + LANES] = torch.from_numpy(sums).permute(2, 0, 1)[: x.shape[0] - first]
        return out.to(x.device)

    def _adjoint(self, y: Tensor) -> Tensor:
        out = y.new_empty((y.shape[0], *self.shape), device="cpu")
        match_threads()
        for first in range(0, y.shape[0], LANES):
            sums = np.zeros((*self.shape, LANES), dtype=out.numpy().dtype)
            _backproject(_laned(y[first : first + LANES]), self._optics, sums)
            out[first : first + LANES] = torch.from_numpy(sums).permute(2, 0, 1)[: y.shape[0] - first]
        return out.to(y.device)


def _laned(slices: Tensor) -> _Array:
    """Return up to eight slices `(batch, ...)` as `(..., 8)`."""
    out = slices.new_zeros((*slices.shape[1:], LANES), device="cpu")
    out[..., : slices.shape[0]] = slices.permute(1, 2, 0)
    return np.asarray(out.numpy())
