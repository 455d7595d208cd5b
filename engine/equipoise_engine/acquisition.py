"""What was measured: data, geometry, state, and how the parts of the file were matched.

Coordinates of an image plane: column index grows with x to the right, row index grows *downwards*, y points up;
the origin lies on the rotation axis (CT) or in the centre of the field of view (MRI), at index `(n - 1) / 2` for CT and
at index `n // 2` for MRI (the sample that a centred discrete Fourier transform calls zero).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput


class DataState(Enum):
    """What a measured number means."""

    COUNTS = "counts"
    TRANSMISSION = "transmission"
    ATTENUATION = "attenuation"
    KSPACE = "k-space"


class Samples(Protocol):
    """An array on disk or in memory that is read by slicing (numpy, memory map, HDF5 dataset)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Match:
    """Which part of the file was taken for which role, and why."""

    role: str
    source: str
    shape: tuple[int, ...]
    reason: str


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
    """

    angle_rad: NDArray[np.float64]
    pixel_mm: float = 1.0
    centre_px: float | None = None
    calibrated: bool = False
    truncated: bool = False


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


@dataclass(frozen=True, kw_only=True)
class CtAcquisition:
    """Projections of a parallel-beam scan.

    Parameters
    ----------
    path, format
        Where the scan was read from, and as what.
    state
        What the numbers in `projections` mean.
    projections
        `(view, row, column)`; a detector row is one slice of the object.
    flats, darks
        Open-beam and beam-off frames `(frame, row, column)`, or None.
    geometry
        Angles, pixel size and rotation centre.
    matched
        What was taken for what, and why.
    warnings
        Sentences for the user.
    """

    path: Path
    format: str
    state: DataState
    projections: Samples
    geometry: ParallelBeam
    flats: Samples | None = None
    darks: Samples | None = None
    matched: tuple[Match, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        views, angles = self.projections.shape[0], self.geometry.angle_rad.shape[0]
        if views != angles:
            first = min(views, angles)
            raise BadInput(
                f"{self.path.name}: {views} projections but {angles} angles; "
                f"{'no angle' if views > angles else 'no projection'} for index {first} and later",
                "Give as many angles as there are projections, or correct which dataset holds them.",
            )

    @property
    def slices(self) -> int:
        """Number of slices that can be reconstructed."""
        return int(self.projections.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the measured data `(view, row, column)`."""
        return tuple(int(n) for n in self.projections.shape)


@dataclass(frozen=True, kw_only=True)
class MriAcquisition:
    """Multi-coil Cartesian k-space.

    Parameters
    ----------
    path, format
        Where the scan was read from, and as what.
    kspace
        `(slice, coil, ky, kx)`, complex64, zero frequency at index `n // 2` of each axis.
    geometry
        Sampling and field of view.
    matched
        What was taken for what, and why.
    warnings
        Sentences for the user.
    """

    path: Path
    format: str
    kspace: Samples
    geometry: Cartesian
    state: DataState = DataState.KSPACE
    matched: tuple[Match, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def slices(self) -> int:
        """Number of slices that can be reconstructed."""
        return int(self.kspace.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the measured data `(slice, coil, ky, kx)`."""
        return tuple(int(n) for n in self.kspace.shape)


Acquisition = CtAcquisition | MriAcquisition


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files of a folder, as hexadecimal text."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
