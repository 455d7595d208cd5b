"""Parallel-beam computed tomography: Joseph's projector, its exact transpose, and filtered back-projection.

With the image pixel as unit of length, a ray of angle a at signed distance s from the axis meets a pixel centre at
signed distance t = x cos a + y sin a. Joseph's interpolation (P. M. Joseph 1982, doi:10.1109/TMI.1982.4307572) then
weighs the pixel by max(0, 1 - |t - s| / m) / m with m = max(|cos a|, |sin a|). The projector walks along rays, the
transpose gathers at pixels; both use this weight, so they are exact transposes of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.acquisition import ParallelBeam
from equipoise_engine.errors import BadInput
from equipoise_engine.operators import Physics, operator_norm

_Array = NDArray[Any]

FBP_WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hann")


@numba.njit(parallel=True, cache=True, nogil=True)
def _project(image: _Array, flipped: _Array, cosines: _Array, sines: _Array, centre: float, out: _Array) -> None:
    """Put line integrals of `image (batch, y, x)` into `out (batch, view, column)`; `flipped` is its transpose."""
    batch, size, _ = image.shape
    views, columns = cosines.shape[0], out.shape[2]
    half = (size - 1) / 2
    for task in numba.prange(batch * views):
        sample, view = task // views, task % views
        cosine, sine = cosines[view], sines[view]
        row = out[sample, view]
        row[:] = 0
        # lines[k] is a row (walking along y) or a column (walking along x) of the image
        if abs(cosine) >= abs(sine):
            lines, along, across, sign = image[sample], cosine, sine, -1.0
        else:
            lines, along, across, sign = flipped[sample], sine, cosine, 1.0
        # on a transposed image the running index is the image row, which grows against y
        slope = (1.0 if sign < 0 else -1.0) / along
        weight = 1.0 / abs(along)
        for k in range(size):
            other = sign * (k - half)
            start = half + (-centre - other * across) * slope
            line = lines[k]
            for column in range(columns):
                position = start + column * slope
                left = math.floor(position)
                if left < -1 or left >= size:
                    continue
                fraction = position - left
                value = 0.0
                if left >= 0:
                    value += (1.0 - fraction) * line[left]
                if left + 1 < size:
                    value += fraction * line[left + 1]
                row[column] += weight * value


@numba.njit(parallel=True, cache=True, nogil=True)
def _backproject(sinogram: _Array, cosines: _Array, sines: _Array, widths: _Array, centre: float, out: _Array) -> None:
    """Gather `sinogram (batch, view, column)` at the pixels of `out (batch, y, x)`.

    `widths (view,)` is the half-width m of the triangular footprint: max(|cos|, |sin|) gives the transpose of
    `_project`, one gives linear interpolation.
    """
    batch, views, columns = sinogram.shape
    size = out.shape[1]
    half = (size - 1) / 2
    for task in numba.prange(batch * size):
        sample, row_index = task // size, task % size
        row = out[sample, row_index]
        row[:] = 0
        y = half - row_index
        for view in range(views):
            cosine, inverse = cosines[view], 1.0 / widths[view]
            values = sinogram[sample, view]
            start = centre + y * sines[view] - half * cosine
            for column in range(size):
                position = start + column * cosine
                left = math.floor(position)
                if left < -1 or left >= columns:
                    continue
                fraction = position - left
                value = 0.0
                if left >= 0:
                    value += max(0.0, 1.0 - fraction * inverse) * values[left]
                if left + 1 < columns:
                    value += max(0.0, 1.0 - (1.0 - fraction) * inverse) * values[left + 1]
                row[column] += inverse * value


def angular_weights(angle_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the arc that each view stands for `(view,)`, in radians, summing to pi.

    Half the gap to each neighbour, with opposite views taken as the same direction; a gap of more than four median
    steps counts as missing data and is not spread over its neighbours.
    """
    order = np.argsort(np.mod(angle_rad, np.pi))
    sorted_angles = np.mod(angle_rad, np.pi)[order]
    gaps = np.diff(np.append(sorted_angles, sorted_angles[0] + np.pi))
    # equal directions (0 and 180 degrees, or a full turn) share one arc
    usual = np.median(gaps[gaps > 1e-9]) if np.any(gaps > 1e-9) else np.pi
    gaps = np.where(gaps > 4 * usual, usual, gaps)
    arcs = 0.5 * (gaps + np.roll(gaps, 1))
    weights = np.empty_like(arcs)
    weights[order] = arcs
    return weights


def ramp_spectrum(columns: int, window: str = "ram-lak") -> NDArray[np.float64]:
    """Return the apodised ramp |f| at the frequencies of a real transform of the zero-padded detector `(frequency,)`.

    The transform of the band-limited kernel sampled in space, which has the right mean value (Kak and Slaney 1988,
    eq. 3.61).

    Raises
    ------
    BadInput
        The window is not one of `FBP_WINDOWS`.
    """
    padded = _padded(columns)
    offset = np.fft.fftfreq(padded, 1 / padded)
    kernel = np.zeros(padded)
    kernel[0] = 0.25
    odd = offset % 2 == 1
    kernel[odd] = -1 / (np.pi * offset[odd]) ** 2
    ramp: NDArray[np.float64] = np.fft.rfft(kernel).real
    frequency = np.fft.rfftfreq(padded)
    match window:
        case "ram-lak":
            taper = np.ones_like(frequency)
        case "shepp-logan":
            taper = np.sinc(frequency)
        case "cosine":
            taper = np.cos(np.pi * frequency)
        case "hann":
            taper = 0.5 * (1 + np.cos(2 * np.pi * frequency))
        case _:
            raise BadInput(f"unknown filter window {window!r}", f"Choose one of {', '.join(FBP_WINDOWS)}.")
    return np.asarray(ramp * taper, dtype=np.float64)


class ParallelBeamPhysics(Physics):
    """Parallel-beam projection of square slices.

    Images are `(batch, y, x)`, attenuation per millimetre; measurements are `(batch, view, column)`, dimensionless.

    Parameters
    ----------
    geometry
        Angles, pixel size and rotation centre; the centre must be known.
    columns
        Number of detector columns.
    size
        Side of the image in pixels of `geometry.pixel_mm`; None takes `columns`. A larger one is for objects that
        reach beyond the detector: what lies outside its view then has a place to be, instead of lighting up the edge.

    Raises
    ------
    BadInput
        The rotation centre is unknown or outside the detector.
    """

    complex_image = False

    def __init__(self, geometry: ParallelBeam, columns: int, size: int | None = None) -> None:
        if geometry.centre_px is None:
            raise BadInput("the rotation centre is not known", "Give it, or let it be found.")
        if not 0 <= geometry.centre_px <= columns - 1:
            raise BadInput(
                f"a rotation centre at column {geometry.centre_px:g} lies outside the detector (0 to {columns - 1})",
                "Give a centre inside the detector.",
            )
        side = columns if size is None else size
        views = geometry.angle_rad.shape[0]
        super().__init__((side, side), (views, columns))
        self.geometry = geometry
        self.truncated = side > columns
        self.centre_px = geometry.centre_px
        self._cosines, self._sines = np.cos(geometry.angle_rad), np.sin(geometry.angle_rad)
        self._joseph = np.maximum(np.abs(self._cosines), np.abs(self._sines))
        self._arcs = torch.from_numpy(angular_weights(geometry.angle_rad))
        # Fourier lines of the views overlap below this frequency (cycles per pixel); there the ramp evens them out
        overlap = views / (np.pi * side)
        frequency = np.fft.rfftfreq(_padded(columns))
        spectrum = np.clip(frequency, 0.25 / columns, max(overlap, 0.5 / columns))
        self._unscaled_weight = torch.from_numpy(spectrum)

    @cached_property
    def _weight(self) -> Tensor:
        def normal(x: Tensor) -> Tensor:
            return self._adjoint(self._filter(self._forward(x), self._unscaled_weight))

        start = torch.randn((1, *self.domain), generator=torch.Generator().manual_seed(0))
        return self._unscaled_weight / (1.02 * operator_norm(normal, normal(start), steps=12))

    def _forward(self, x: Tensor) -> Tensor:
        image = np.ascontiguousarray(x.detach().cpu().numpy())
        out = np.empty((image.shape[0], *self.range), dtype=image.dtype)
        flipped = np.ascontiguousarray(image.transpose(0, 2, 1))
        _match_threads()
        _project(image, flipped, self._cosines, self._sines, self.centre_px, out)
        return torch.from_numpy(out).to(x.device).mul_(self.geometry.pixel_mm)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._gather(y, self._joseph, self.centre_px).mul_(self.geometry.pixel_mm)

    def _gather(self, y: Tensor, widths: _Array, centre_px: float) -> Tensor:
        sinogram = np.ascontiguousarray(y.detach().cpu().numpy())
        out = np.empty((sinogram.shape[0], *self.domain), dtype=sinogram.dtype)
        _match_threads()
        _backproject(sinogram, self._cosines, self._sines, widths, centre_px, out)
        return torch.from_numpy(out).to(y.device)

    def weight(self, residual: Tensor) -> Tensor:
        """Return W r `(batch, view, column)`: a ramp that saturates where the Fourier lines of the views part."""
        return self._filter(residual, self._weight)

    def analytic(self, y: Tensor) -> Tensor:
        """Return the filtered back-projection with the Ram-Lak filter `(batch, y, x)`."""
        return self.fbp(y)

    def fbp(self, y: Tensor, window: str = "ram-lak") -> Tensor:
        """Return the filtered back-projection `(batch, y, x)`. Raises BadInput for an unknown window."""
        spectrum = torch.from_numpy(ramp_spectrum(self.range[1], window)) / self.geometry.pixel_mm
        weighted = y.detach() * self._arcs.to(y.device, y.dtype)[:, None]
        margin = max(0, -(-(self.domain[0] - self.range[1]) // 2))
        if margin:
            # beyond the detector the edge value goes on: a fall to zero would become a bright rim under the ramp
            weighted = torch.nn.functional.pad(weighted, (margin, margin), mode="replicate")
            spectrum = torch.from_numpy(ramp_spectrum(weighted.shape[-1], window)) / self.geometry.pixel_mm
        return self._gather(self._filter(weighted, spectrum), np.ones_like(self._joseph), self.centre_px + margin)

    def _filter(self, sinogram: Tensor, spectrum: Tensor) -> Tensor:
        columns = sinogram.shape[-1]
        transformed = torch.fft.rfft(sinogram, n=_padded(columns), dim=-1)
        filtered: Tensor = torch.fft.irfft(
            transformed * spectrum.to(sinogram.device, sinogram.dtype), n=_padded(columns), dim=-1
        )
        return filtered[..., :columns]

    def select(self, slices: Tensor) -> ParallelBeamPhysics:
        """Return this physics: all slices of a parallel-beam scan share it."""
        return self

    def joined(self, others: Sequence[Physics]) -> ParallelBeamPhysics:
        """Return this physics: all slices of a parallel-beam scan share it."""
        return self

    def thinned(self, kept: Tensor) -> ParallelBeamPhysics:
        """Return the physics of some of the views; `kept (view,)` bool."""
        return self._with_angles(self.geometry.angle_rad[kept.cpu().numpy()])

    def part(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return the kept views of y `(batch, view, column)`."""
        return y[:, kept.to(y.device)]

    def withheld(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y `(batch, view, column)` with zeros in the kept views."""
        return y * ~kept.to(y.device)[:, None]

    def random_split(self, generator: torch.Generator, share: float = 0.6) -> Tensor:
        """Draw which views to keep `(view,)`, bool: whole views, because noise within one is correlated.

        Raises
        ------
        BadInput
            Fewer than two views.
        """
        views = self.range[0]
        if views < 2:
            raise BadInput("a scan of one view cannot be split", "Use a scan with at least two views.")
        kept = torch.zeros(views, dtype=torch.bool)
        kept[torch.randperm(views, generator=generator)[: min(max(1, round(share * views)), views - 1)]] = True
        return kept

    def turned(self, angle_rad: float) -> ParallelBeamPhysics:
        """Return the physics of an object turned counter-clockwise: every view comes from an angle that much less."""
        turned = self._with_angles(self.geometry.angle_rad - angle_rad)
        # the spectrum of A^H W A turns with the views, so the scale of W stays
        turned._weight = self._weight
        return turned

    def _with_angles(self, angle_rad: NDArray[np.float64]) -> ParallelBeamPhysics:
        return ParallelBeamPhysics(replace(self.geometry, angle_rad=angle_rad), self.range[1], self.domain[0])

    def to(self, device: torch.device) -> ParallelBeamPhysics:
        """Return this physics: it takes its device from its argument."""
        return self

    def framed(self, image: Tensor) -> Tensor:
        """Return the square as wide as the detector about the axis `(batch, y, x)`."""
        side = min(self.domain[0], self.range[1])
        first = (self.domain[0] - side) // 2
        return image[..., first : first + side, first : first + side]

    def seen(self, image: Tensor) -> Tensor:
        """Return the image `(batch, y, x)` with zeros outside the disc that the detector sees in every view."""
        side = image.shape[-1]
        axis = torch.arange(side, device=image.device) - (side - 1) / 2
        radius = max(1.0, min(self.centre_px, self.range[1] - 1 - self.centre_px))
        return image * (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2)

    @property
    def field_of_view(self) -> Tensor:
        """Pixels of the framed image inside the circle that the detector sees in every view `(y, x)`, bool."""
        side = min(self.domain[0], self.range[1])
        radius = min(self.centre_px, self.range[1] - 1 - self.centre_px, (side - 1) / 2)
        axis = torch.arange(side) - (side - 1) / 2
        return (axis[:, None] ** 2 + axis[None, :] ** 2) <= radius**2


def compile_kernels() -> None:
    """Compile the kernels, or load them from the cache of an earlier run, so that the first image need not wait."""
    physics = ParallelBeamPhysics(ParallelBeam(np.zeros(1), centre_px=1.5), 4)
    physics.adjoint(physics.forward(torch.zeros((1, 4, 4))))


def _match_threads() -> None:
    """Let numba take as many threads as torch.

    When it starts, it sets the number for torch as well; sums then round differently after the first projection than
    before it, and a training that is resumed would not repeat bit for bit.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _padded(columns: int) -> int:
    return int(2 ** math.ceil(math.log2(2 * columns)))
