"""The rays of a geometry as lines through the rows or the columns of an image grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import VectorGeometry

_Reals = NDArray[np.float64]
_Indices = NDArray[np.int32]


@dataclass(frozen=True)
class Lines:
    """Rays that cross the lines of an image one by one: its rows, or the columns of which it consists as well.

    On image line `k` a ray lies at `start + slope * k`, in pixels along the line. Its slope is at most one, so the ray
    passes `pixel_mm * sqrt(1 + slope ** 2)` from one line to the next.

    Parameters
    ----------
    start, slope
        Position on image line 0, and its growth from line to line `(ray,)`, in pixels.
    ray
        Number of the ray among `view * columns + column` `(ray,)`, int32.
    first, last
        The image lines `first <= k < last` on which the ray lies nearer than a pixel to the image `(ray,)`, int32.
    count
        Number of image lines.
    length
        Pixels on an image line.
    """

    start: _Reals
    slope: _Reals
    ray: _Indices
    first: _Indices
    last: _Indices
    count: int
    length: int

    @property
    def bytes(self) -> int:
        """Memory that the rays take."""
        return self.start.nbytes + self.slope.nbytes + self.ray.nbytes + self.first.nbytes + self.last.nbytes

    @property
    def crossings(self) -> int:
        """Pairs of a ray and an image line that it crosses: half the pairs of ray and pixel, at most."""
        return int((self.last - self.first).sum(dtype=np.int64))


def trace(geometry: VectorGeometry, columns: int, shape: tuple[int, int], pixel_mm: float) -> tuple[Lines, Lines]:
    """Return the rays that walk along y, across the rows of an image, and those that walk along x, across its columns.

    A ray walks along the axis that its direction is nearer to. Rays along y cross row `k` at a position counted in
    columns; rays along x cross column `k` at a position counted in rows.

    Parameters
    ----------
    geometry
        The views; z is left out of account.
    columns
        Number of detector columns.
    shape
        Rows and columns of the image, whose middle is the origin.
    pixel_mm
        Side of an image pixel.

    Raises
    ------
    BadInput
        The detector or the image has no elements, a pixel is not a length above zero, or a ray has no direction within
        the plane.
    """
    if columns < 1 or min(shape) < 1:
        raise BadInput(f"{columns} detector columns and an image of {shape} pixels: each must be at least 1")
    if not 0 < pixel_mm < np.inf:
        raise BadInput(f"an image pixel of {pixel_mm:g} mm is not a length above zero")
    elements = np.arange(columns, dtype=np.float64)
    points, directions = geometry.rays(elements, np.full(columns, float(geometry.reference_px[0])))
    # in pixels, x as column and y as row of the image
    x = (points[..., 0] / pixel_mm + (shape[1] - 1) / 2).reshape(-1)
    y = ((shape[0] - 1) / 2 - points[..., 1] / pixel_mm).reshape(-1)
    across, down = directions[..., 0].reshape(-1), -directions[..., 1].reshape(-1)
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(across) & np.isfinite(down)
    if not (finite & (np.maximum(np.abs(across), np.abs(down)) > 1e-9)).all():
        raise BadInput("a ray of the geometry is not finite, or has no direction within the plane of the image")
    along_y = np.abs(down) >= np.abs(across)
    return (
        _lines(np.flatnonzero(along_y), (x, y), (across, down), shape, geometry.parallel),
        _lines(np.flatnonzero(~along_y), (y, x), (down, across), (shape[1], shape[0]), geometry.parallel),
    )


def _lines(
    chosen: NDArray[np.int64],
    points: tuple[_Reals, _Reals],
    directions: tuple[_Reals, _Reals],
    shape: tuple[int, int],
    endless: bool,
) -> Lines:
    """Return the chosen rays as lines through `shape` = (image lines, pixels on a line).

    Points and directions are given along the image lines and across them. Rays begin at their points unless `endless`.
    """
    count, length = shape
    (position, line), (sideways, along) = ((one[chosen], other[chosen]) for one, other in (points, directions))
    slope = sideways / along
    start = position - line * slope
    # -1 < start + slope * k < length
    level = np.abs(slope) < 1e-12
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ends = np.sort(np.stack([(-1 - start) / slope, (length - start) / slope]), axis=0)
    inside = (start > -1) & (start < length)
    lowest = np.where(level, np.where(inside, 0.0, count), ends[0])
    highest = np.where(level, np.where(inside, count, 0.0), ends[1])
    if not endless:
        lowest, highest = (
            np.where(along > 0, np.maximum(lowest, line), lowest),
            np.where(along > 0, highest, np.minimum(highest, line)),
        )
    first = np.clip(np.ceil(lowest), 0, count)
    last = np.maximum(first, np.clip(np.floor(highest) + 1, 0, count))
    return Lines(start, slope, chosen.astype(np.int32), first.astype(np.int32), last.astype(np.int32), count, length)
