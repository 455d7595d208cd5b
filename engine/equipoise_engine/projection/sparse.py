"""Projectors as explicit sparse matrices: the matrix and its transpose, both by rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.lines import Lines, trace
from equipoise_engine.projection.strip import footprint_optics, pixel_footprint, seen_column
from equipoise_engine.projection.threads import match_threads

_Array = NDArray[Any]

# Row offsets are int32 as well.
LARGEST_MATRIX = 2**31 - 1
_ENTRY_BYTES = {torch.float32: 8, torch.float64: 12}


@numba.njit(parallel=True, cache=True, nogil=True)
def _count_rays(
    start: _Array, slope: _Array, ray: _Array, first: _Array, last: _Array, length: int, counts: _Array
) -> None:
    """Put the number of pixels that rays meet into `counts (ray,)`."""
    for r in numba.prange(start.shape[0]):
        count = 0
        for k in range(first[r], last[r]):
            left = int(start[r] + 1.0 + slope[r] * k) - 1
            count += (0 <= left < length) + (0 <= left + 1 < length)
        counts[ray[r]] = count


@numba.njit(parallel=True, cache=True, nogil=True)
def _fill_rays(
    start: _Array,
    slope: _Array,
    ray: _Array,
    first: _Array,
    last: _Array,
    length: int,
    strides: tuple[int, int],
    scale: float,
    offsets: _Array,
    pixels: _Array,
    weights: _Array,
) -> None:
    """Put the pixels that rays meet, and their weights, at `offsets (ray,)`; strides lead to the next line, pixel."""
    one = weights.dtype.type(1)
    for r in numba.prange(start.shape[0]):
        at = offsets[ray[r]]
        weight = weights.dtype.type(scale * math.sqrt(1.0 + slope[r] * slope[r]))
        for k in range(first[r], last[r]):
            position = start[r] + 1.0 + slope[r] * k
            left = int(position)
            fraction = weights.dtype.type(position - left)
            if 0 <= left - 1 < length:
                pixels[at], weights[at] = k * strides[0] + (left - 1) * strides[1], (one - fraction) * weight
                at += 1
            if 0 <= left < length:
                pixels[at], weights[at] = k * strides[0] + left * strides[1], fraction * weight
                at += 1


@numba.njit(parallel=True, cache=True, nogil=True)
def _count_pixels(optics: _Array, elements: int, counts: _Array) -> None:
    """Put the number of elements that pixels are seen on into `counts (y, x)`."""
    for row in numba.prange(counts.shape[0]):
        weights = np.empty(elements)
        for view in range(optics.shape[0]):
            lens = optics[view]
            left = (seen_column(lens, row - 0.5, -0.5), seen_column(lens, row + 0.5, -0.5))
            for column in range(counts.shape[1]):
                _, count, left = pixel_footprint(lens, row, column, left, weights)
                counts[row, column] += count


@numba.njit(parallel=True, cache=True, nogil=True)
def _fill_pixels(optics: _Array, elements: int, offsets: _Array, rays: _Array, entries: _Array) -> None:
    """Put the elements that pixels are seen on, and their weights, at `offsets (y, x)`, which end where rows end."""
    for row in numba.prange(offsets.shape[0]):
        weights = np.empty(elements)
        for view in range(optics.shape[0]):
            lens = optics[view]
            left = (seen_column(lens, row - 0.5, -0.5), seen_column(lens, row + 0.5, -0.5))
            for column in range(offsets.shape[1]):
                first, count, left = pixel_footprint(lens, row, column, left, weights)
                at = offsets[row, column]
                for n in range(count):
                    rays[at + n] = view * elements + first + n
                    entries[at + n] = weights[n]
                offsets[row, column] = at + count


def _joseph_matrix(lines: tuple[Lines, Lines], rays: int, shape: tuple[int, int], pixel_mm: float, kind: Any) -> Any:
    """Return Joseph's projector `(ray, pixel)`."""
    counts = np.zeros(rays, dtype=np.int32)
    strides = ((shape[1], 1), (1, shape[1]))
    for part in lines:
        _count_rays(part.start, part.slope, part.ray, part.first, part.last, part.length, counts)
    offsets = _offsets(counts)
    pixels, weights = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=kind)
    for part, stride in zip(lines, strides, strict=True):
        arrays = (part.start, part.slope, part.ray, part.first, part.last)
        _fill_rays(*arrays, part.length, stride, pixel_mm, offsets, pixels, weights)
    return csr_array((weights, pixels, offsets), shape=(rays, math.prod(shape)))


def _strip_matrix(optics: _Array, columns: int, shape: tuple[int, int], kind: Any) -> Any:
    """Return the transpose of the strip projector `(pixel, ray)`."""
    counts = np.zeros(shape, dtype=np.int32)
    _count_pixels(optics, columns, counts)
    offsets = _offsets(counts.reshape(-1))
    rays, weights = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=kind)
    _fill_pixels(optics, columns, offsets[:-1].reshape(shape).copy(), rays, weights)
    return csr_array((weights, rays, offsets), shape=(math.prod(shape), optics.shape[0] * columns))


def _offsets(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)


class SparseProjector(Projector):
    """A projector as a sparse matrix and its transpose, built when first wanted, for each type of number.

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
    footprint
        "joseph" or "strip".
    device
        Where the matrices are kept; what is projected comes back on the device that it came from.

    Raises
    ------
    BadInput
        As of `lines.trace` and `strip.footprint_optics`.
    """

    engine = "sparse"

    def __init__(
        self,
        geometry: VectorGeometry,
        columns: int,
        shape: tuple[int, int],
        pixel_mm: float,
        *,
        footprint: Literal["joseph", "strip"],
        device: torch.device,
    ) -> None:
        super().__init__(shape, (geometry.views, columns))
        lines = trace(geometry, columns, shape, pixel_mm)
        rays = math.prod(self.range)
        self._device = device
        self._matrices: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._build: Callable[[Any], tuple[Any, Any]]
        if footprint == "joseph":

            def from_rays(kind: Any) -> tuple[Any, Any]:
                matrix = _joseph_matrix(lines, rays, shape, pixel_mm, kind)
                return matrix, matrix.T.tocsr()

            self._build = from_rays
        else:
            optics = footprint_optics(geometry, shape, pixel_mm)

            def from_pixels(kind: Any) -> tuple[Any, Any]:
                matrix = _strip_matrix(optics, columns, shape, kind)
                return matrix.T.tocsr(), matrix

            self._build = from_pixels

    @property
    def bytes(self) -> int:
        """Memory that the matrices take that were built."""
        return sum(
            part.nbytes
            for pair in self._matrices.values()
            for matrix in pair
            for part in (matrix.crow_indices(), matrix.col_indices(), matrix.values())
        )

    def _forward(self, x: Tensor) -> Tensor:
        return self._times(self._pair(x.dtype)[0], x).reshape(-1, *self.range)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._times(self._pair(y.dtype)[1], y).reshape(-1, *self.shape)

    def _pair(self, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        if kind not in self._matrices:
            match_threads()
            one, other = self._build(np.float32 if kind == torch.float32 else np.float64)
            self._matrices[kind] = (_moved(one, self._device), _moved(other, self._device))
        return self._matrices[kind]

    def _times(self, matrix: Tensor, values: Tensor) -> Tensor:
        columns = values.flatten(1).to(self._device).T
        product = matrix @ columns.contiguous()
        return product.T.contiguous().to(values.device)


def entry_bytes(kind: torch.dtype) -> int:
    """Return the memory of one pair of ray and pixel, in the matrix and in its transpose together."""
    return 2 * _ENTRY_BYTES[kind]


def _moved(matrix: Any, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        # torch says once that its sparse matrices are young
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=False,
        ).to(device)
