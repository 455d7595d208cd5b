"""Joseph's projector in operations of torch, without a matrix, for devices that have no kernels of their own.

Both directions gather. A ray takes the two pixels next to it from each image line; a pixel takes, from each view, the
few detector columns whose rays can pass it nearer than a pixel, each with the weight that the ray gives the pixel
(P. M. Joseph 1982, doi:10.1109/TMI.1982.4307572). Rays that miss have no weight, so it does no harm to ask too many
columns, and the two directions are exact transposes of each other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.lines import Lines, trace
from equipoise_engine.projection.strip import footprint_optics

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**28
_BYTES_PER_RAY_CROSSING = 64
# Rounding may put the end of a range of columns on the wrong side of a column.
_MARGIN_PX = 1e-6


@dataclass(frozen=True)
class _Walk:
    """The rays along one axis: as a list, and by view and column with no weight where a ray walks along the other."""

    lines: Lines
    start: Tensor
    slope: Tensor
    ray: Tensor
    first: Tensor
    last: Tensor
    weight: Tensor
    views: Tensor
    dense: tuple[Tensor, ...]
    optics: Tensor
    candidates: int

    @property
    def bytes(self) -> int:
        """Memory that the tensors take."""
        tensors = (self.start, self.slope, self.ray, self.first, self.last, self.weight, self.views, self.optics)
        return sum(part.nbytes for part in (*tensors, *self.dense))


class GatherProjector(Projector):
    """Joseph's projector in operations of torch; compiled on a GPU where that works.

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
    device
        Where it computes; what is projected comes back on the device that it came from.
    chunk_bytes
        Memory that intermediate results may take, about.

    Raises
    ------
    BadInput
        As of `lines.trace` and `strip.footprint_optics`.
    """

    engine = "matrix-free"

    def __init__(
        self,
        geometry: VectorGeometry,
        columns: int,
        shape: tuple[int, int],
        pixel_mm: float,
        *,
        device: torch.device,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        super().__init__(shape, (geometry.views, columns))
        self._device, self._chunk_bytes = device, chunk_bytes
        optics = footprint_optics(geometry, shape, pixel_mm)
        along_y, along_x = trace(geometry, columns, shape, pixel_mm)
        # a column of the image takes the place of a row where rays walk along x
        turned = optics[:, [0, 2, 1, 3, 5, 4, 6, 7, 9, 8, 10]]
        self._walks = (
            _walk(along_y, optics, self.range, pixel_mm, device),
            _walk(along_x, turned, self.range, pixel_mm, device),
        )
        self._project, self._backproject = _quickest(_project, device), _quickest(_backproject, device)

    @property
    def bytes(self) -> int:
        """Memory that the rays take."""
        return sum(walk.bytes for walk in self._walks)

    def _forward(self, x: Tensor) -> Tensor:
        image = x.to(self._device)
        out = image.new_zeros((x.shape[0], math.prod(self.range)))
        for walk, flipped in zip(self._walks, (False, True), strict=True):
            padded = torch.nn.functional.pad(image.transpose(1, 2) if flipped else image, (1, 2)).contiguous()
            chunk = self._chunk(walk.lines.count, x)
            for first in range(0, walk.start.shape[0], chunk):
                part = slice(first, first + chunk)
                rays = (walk.start[part], walk.slope[part], walk.first[part], walk.last[part], walk.weight[part])
                out[:, walk.ray[part]] = self._project(padded, *rays)
        return out.reshape(-1, *self.range).to(x.device)

    def _adjoint(self, y: Tensor) -> Tensor:
        sinogram = y.to(self._device)
        out = sinogram.new_zeros((y.shape[0], *self.shape))
        for walk, flipped in zip(self._walks, (False, True), strict=True):
            target = out.transpose(1, 2) if flipped else out
            chunk = self._chunk(walk.lines.count * walk.lines.length, y)
            for first in range(0, walk.views.shape[0], chunk):
                part = slice(first, first + chunk)
                dense = tuple(values[part] for values in walk.dense)
                shape = (walk.lines.count, walk.lines.length, walk.candidates)
                target += self._backproject(sinogram[:, walk.views[part]], walk.optics[part], dense, shape)
        return out.to(y.device)

    def _chunk(self, crossings: int, values: Tensor) -> int:
        each = _BYTES_PER_RAY_CROSSING + 3 * values.shape[0] * values.element_size()
        return max(1, self._chunk_bytes // (crossings * each))


def _walk(
    lines: Lines, optics: NDArray[np.float64], detector: tuple[int, int], pixel_mm: float, device: torch.device
) -> _Walk:
    weight = pixel_mm * np.sqrt(1 + lines.slope**2)
    views = np.unique(lines.ray // detector[1])

    def dense(values: NDArray[Any]) -> Tensor:
        """Return values by view and column, of the views that have any."""
        table = np.zeros(math.prod(detector), dtype=values.dtype)
        table[lines.ray] = values
        return torch.from_numpy(table.reshape(detector)[views]).to(device)

    def moved(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return _Walk(
        lines,
        start=moved(lines.start),
        slope=moved(lines.slope),
        ray=moved(lines.ray.astype(np.int64)),
        first=moved(lines.first),
        last=moved(lines.last),
        weight=moved(weight),
        views=moved(views.astype(np.int64)),
        dense=tuple(dense(part) for part in (lines.start, lines.slope, lines.first, lines.last, weight)),
        optics=moved(optics[views]),
        candidates=_candidates(torch.from_numpy(optics[views]), lines),
    )


def _candidates(optics: Tensor, lines: Lines) -> int:
    """Return how many detector columns a pixel must ask at most, from the pixels on the edge of the image."""
    if not optics.shape[0]:
        return 0
    most = 0
    line = torch.arange(lines.count, dtype=torch.float64)
    position = torch.arange(lines.length, dtype=torch.float64)
    for k, j in (
        (line, position[:1]),
        (line, position[-1:]),
        (line[:1], position),
        (line[-1:], position),
    ):
        first, last = _range(optics, k[:, None], j)
        most = max(most, int((last - first).max()))
    # seen from a source close by, the widest range may lie a little inside
    return most + 2


def _range(optics: Tensor, line: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last column whose ray may pass a pixel nearer than a pixel `(view, line, position)`."""
    o = [optics[:, n, None, None] for n in range(optics.shape[1])]

    def seen(place: Tensor) -> Tensor:
        above, below = o[0] + o[1] * place + o[2] * line, o[3] + o[4] * place + o[5] * line
        return o[6] + torch.where(o[7] == 0, above / below, o[7] * torch.atan2(above, below))

    one, other = seen(position - 1), seen(position + 1)
    return torch.ceil(torch.minimum(one, other) - _MARGIN_PX), torch.floor(torch.maximum(one, other) + _MARGIN_PX)


def _project(image: Tensor, start: Tensor, slope: Tensor, first: Tensor, last: Tensor, weight: Tensor) -> Tensor:
    """Return line integrals `(batch, ray)` of `image (batch, line, position)`, zeros before and behind each line."""
    line = torch.arange(image.shape[1], device=image.device)
    inside = (line >= first[:, None]) & (line < last[:, None])
    position = torch.where(inside, start[:, None] + 1 + slope[:, None] * line, 0)
    left = position.to(torch.int64)
    fraction = (position - left).to(image.dtype)
    index = left + line * image.shape[2]
    flat = image.flatten(1)
    sums = ((1 - fraction) * flat[:, index] + fraction * flat[:, index + 1]).sum(-1)
    return sums * weight.to(image.dtype)


def _backproject(sinogram: Tensor, optics: Tensor, dense: tuple[Tensor, ...], shape: tuple[int, int, int]) -> Tensor:
    """Return the transpose of `_project` at `sinogram (batch, view, column)`: `(batch, line, position)`."""
    lines, length, candidates = shape
    columns = sinogram.shape[2]
    start, slope, first, last, weight = dense
    line = torch.arange(lines, device=sinogram.device)[:, None]
    position = torch.arange(length, device=sinogram.device)
    base = torch.arange(sinogram.shape[1], device=sinogram.device)[:, None, None] * columns
    lowest = _range(optics, line.to(torch.float64), position.to(torch.float64))[0].clamp(-candidates, columns)
    lowest = lowest.to(torch.int64)
    flat = sinogram.flatten(1)
    out = sinogram.new_zeros((sinogram.shape[0], lines, length))
    for candidate in range(candidates):
        column = lowest + candidate
        index = base + column.clamp(0, columns - 1)
        near = 1 - (start.take(index) + slope.take(index) * line - position).abs()
        hit = (column >= 0) & (column < columns) & (line >= first.take(index)) & (line < last.take(index))
        share = torch.where(hit, near.clamp(min=0) * weight.take(index), 0).to(sinogram.dtype)
        out += (share * flat[:, index]).sum(1)
    return out


def _quickest(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Return the function compiled for a GPU, or as it is where that does not work."""
    if device.type != "cuda":
        return function
    chosen = [torch.compile(function)]

    def run(*arguments: Any) -> Tensor:
        try:
            return chosen[0](*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as trouble:
            if chosen[0] is function:
                raise
            _log.warning("%s cannot be compiled and runs step by step: %s", function.__name__, trouble)
            chosen[0] = function
            return function(*arguments)

    return run
