"""The physics of computed tomography slice by slice: parallel beam and fan beam."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import filter_rows, filtered_back_projection, is_offset, padded_length
from equipoise_engine.geometry import FanBeam, ParallelBeam, SliceGeometry
from equipoise_engine.operators import operator_norm
from equipoise_engine.projection.projector import Engine, Footprint, Projector, build_projector
from equipoise_engine.thinning import ScannerPhysics


class TomographyPhysics(ScannerPhysics[SliceGeometry]):
    """Projection of slices by a parallel beam or a fan beam.

    Images are `(batch, y, x)`, attenuation per millimetre; measurements are `(batch, view, column)`, dimensionless.

    Parameters
    ----------
    geometry
        Angles, lengths and rotation centre; the centre must be known.
    columns
        Number of detector columns.
    size
        Side of the image in pixels of `geometry.image_pixel_mm`; None takes `natural_size`. A larger one is for objects
        that reach beyond the detector: what lies outside its view then has a place to be, instead of lighting up the
        edge.
    footprint
        How a pixel meets a ray: "joseph" interpolates along lines, "strip" averages over the width of an element.
    engine
        How it is computed: "sparse" matrices, "matrix-free", or "auto", whichever is quicker and fits into memory.

    Raises
    ------
    BadInput
        The rotation centre is unknown or outside the detector, or the image reaches the source.
    """

    def __init__(
        self,
        geometry: SliceGeometry,
        columns: int,
        size: int | None = None,
        *,
        footprint: Footprint = "joseph",
        engine: Engine = "auto",
    ) -> None:
        if geometry.centre_px is None:
            raise BadInput("the rotation centre is not known", "Give it, or let it be found.")
        if not 0 <= geometry.centre_px <= columns - 1:
            raise BadInput(
                f"a rotation centre at column {geometry.centre_px:g} lies outside the detector (0 to {columns - 1})",
                "Give a centre inside the detector.",
            )
        natural = natural_size(geometry, columns)
        side = natural if size is None else size
        if isinstance(geometry, FanBeam) and side * geometry.image_pixel_mm / math.sqrt(2) >= geometry.source_axis_mm:
            raise BadInput(
                f"an image of {side} pixels of {geometry.image_pixel_mm:g} mm reaches the source, "
                f"{geometry.source_axis_mm:g} mm from the axis",
                "Check the distances, or crop the detector.",
            )
        views = geometry.angle_rad.shape[0]
        super().__init__((side, side), (views, columns))
        self.geometry = geometry
        self.footprint, self.engine = footprint, engine
        self.truncated = side > natural
        self.centre_px = geometry.centre_px
        self._frame = min(side, natural)
        self._projectors: dict[torch.device, Projector] = {}
        # Fourier lines of the views overlap below this frequency (cycles per pixel); there the ramp evens them out
        overlap = views / (np.pi * side)
        frequency = np.fft.rfftfreq(padded_length(columns))
        spectrum = np.clip(frequency, 0.25 / columns, max(overlap, 0.5 / columns))
        self._unscaled_weight = torch.from_numpy(spectrum)

    @cached_property
    def _weight(self) -> Tensor:
        def normal(x: Tensor) -> Tensor:
            return self._adjoint(filter_rows(self._forward(x), self._unscaled_weight))

        start = torch.randn((1, *self.domain), generator=torch.Generator().manual_seed(0))
        return self._unscaled_weight / (1.02 * operator_norm(normal, start))

    def projector(self, device: torch.device) -> Projector:
        """Return what computes line integrals on a device; built when first wanted."""
        if device not in self._projectors:
            self._projectors[device] = build_projector(
                self.geometry.vectors(),
                self.range[1],
                (self.domain[0], self.domain[1]),
                self.geometry.image_pixel_mm,
                footprint=self.footprint,
                engine=self.engine,
                device=device,
            )
        return self._projectors[device]

    def _forward(self, x: Tensor) -> Tensor:
        return self.projector(x.device).forward(x.detach())

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.projector(y.device).adjoint(y.detach())

    def weight(self, residual: Tensor) -> Tensor:
        """Return W r `(batch, view, column)`: a ramp that saturates where the Fourier lines of the views part."""
        return filter_rows(residual, self._weight)

    def analytic(self, y: Tensor) -> Tensor:
        """Return the filtered back-projection with the Ram-Lak filter `(batch, y, x)`."""
        return self.fbp(y)

    def fbp(self, y: Tensor, window: str = "ram-lak") -> Tensor:
        """Return the filtered back-projection `(batch, y, x)`. Raises BadInput for an unknown window."""
        shape = (self.domain[0], self.domain[1])
        return filtered_back_projection(y, self.geometry, shape, self.geometry.image_pixel_mm, window=window)

    def _with_angles(self, angle_rad: NDArray[np.float64]) -> TomographyPhysics:
        # used for a few products only, which would not pay for the making of a matrix
        engine: Engine = "matrix-free" if self.engine == "auto" else self.engine
        geometry = replace(self.geometry, angle_rad=angle_rad)
        other = TomographyPhysics(geometry, self.range[1], self.domain[0], footprint=self.footprint, engine=engine)
        # fewer views may no longer go all the way round, but they look at the same image
        other.truncated, other._frame = self.truncated, self._frame
        return other

    def framed(self, image: Tensor) -> Tensor:
        """Return the square as wide as the field of view about the axis `(batch, y, x)`."""
        first = (self.domain[0] - self._frame) // 2
        return image[..., first : first + self._frame, first : first + self._frame]

    def seen(self, image: Tensor) -> Tensor:
        """Return the image `(batch, y, x)` with zeros outside the disc that the detector sees all round."""
        return image * self._disc(image.shape[-1], max(1.0, self._radius_px)).to(image.device)

    @property
    def field_of_view(self) -> Tensor:
        """Pixels of the framed image inside the circle that the detector sees all round `(y, x)`, bool."""
        return self._disc(self._frame, min(self._radius_px, (self._frame - 1) / 2))

    @property
    def _radius_px(self) -> float:
        """Radius of the disc about the axis in which every line is measured from one side at least, image pixels."""
        near = min(self.centre_px, self.range[1] - 1 - self.centre_px)
        if is_offset(self.geometry, self.range[1]):
            near = max(self.centre_px, self.range[1] - 1 - self.centre_px)
        return _distance_from_axis(self.geometry, near) / self.geometry.image_pixel_mm

    @staticmethod
    def _disc(side: int, radius: float) -> Tensor:
        axis = torch.arange(side) - (side - 1) / 2
        return (axis[:, None] ** 2 + axis[None, :] ** 2) <= radius**2


def natural_size(geometry: SliceGeometry, columns: int) -> int:
    """Return the side in pixels of the image that the detector sees: its columns, or more about an offset axis."""
    if geometry.centre_px is None or not is_offset(geometry, columns):
        return columns
    return 2 * math.ceil(max(geometry.centre_px, columns - 1 - geometry.centre_px)) + 1


def compile_kernels() -> None:
    """Compile the kernels, or load them from the cache of an earlier run, so that the first image need not wait."""
    physics = TomographyPhysics(ParallelBeam(np.zeros(1), centre_px=1.5), 4)
    for batch in (1, 8):
        physics.adjoint(physics.forward(torch.zeros((batch, 4, 4))))
        physics.fbp(torch.zeros((batch, 1, 4)))


def _distance_from_axis(geometry: SliceGeometry, columns: float) -> float:
    """Return how far from the axis the ray passes that is measured so many columns from it, mm."""
    if isinstance(geometry, ParallelBeam):
        return columns * geometry.pixel_mm
    angle = columns * geometry.pixel_mm / geometry.source_detector_mm
    return geometry.source_axis_mm * math.sin(angle if geometry.detector == "curved" else math.atan(angle))
