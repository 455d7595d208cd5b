"""What was measured: data, state, and how the parts of the file were matched; the geometry stands in `geometry`.

Coordinates of an image plane: column index grows with x to the right, row index grows *downwards*, y points up;
the origin lies on the rotation axis (CT) or in the centre of the field of view (MRI), at index `(n - 1) / 2` for CT and
at index `n // 2` for MRI (the sample that a centred discrete Fourier transform calls zero).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, CtGeometry, MriGeometry
from equipoise_engine.recipe import Recipe, Source


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


@dataclass(frozen=True, kw_only=True)
class CtAcquisition:
    """Projections of a scan.

    Parameters
    ----------
    path, format
        Where the scan was read from, and as what.
    state
        What the numbers in `projections` mean.
    projections
        `(view, row, column)`; a detector row is one slice of the object, but for a cone beam.
    flats, darks
        Open-beam and beam-off frames `(frame, row, column)`, or None.
    geometry
        Angles, lengths and rotation centre.
    matched
        What was taken for what, and why.
    warnings
        Sentences for the user.
    monitor
        Intensity of the beam during each view relative to that of the open-beam frames `(view,)`, float64, or None.
    guessed
        Which of the values of `recipe.Known` the files do not say and were guessed: "angles", "layout", "state", ...
    sources
        The parts of the files that may have a role, for a choice of others.
    recipe
        How it was read, cut and is to be prepared; complete once the scan is open.
    full_shape
        As `shape`, of all that the files hold; empty until the scan is open.
    rows_together
        How many detector rows of the files were put together to one.
    """

    path: Path
    format: str
    state: DataState
    projections: Samples
    geometry: CtGeometry
    flats: Samples | None = None
    darks: Samples | None = None
    matched: tuple[Match, ...] = ()
    warnings: tuple[str, ...] = ()
    monitor: NDArray[np.float64] | None = None
    guessed: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    full_shape: tuple[int, ...] = ()
    rows_together: int = 1

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
        """Number of slices that can be reconstructed: detector rows, or of a cone beam those of the volume."""
        rows = int(self.projections.shape[1])
        return self.geometry.slices(rows) if isinstance(self.geometry, ConeBeam) else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the measured data `(view, row, column)`."""
        return tuple(int(n) for n in self.projections.shape)


@dataclass(frozen=True, kw_only=True)
class MriAcquisition:
    """Multi-coil k-space.

    Parameters
    ----------
    path, format
        Where the scan was read from, and as what.
    kspace
        Complex64: of a `Cartesian` scan `(slice, coil, ky, kx)`, zero frequency at index `n // 2` of each axis; of a
        `NonCartesian` scan `(slice, coil, readout, sample)`, as its trajectory.
    geometry
        Sampling and field of view.
    matched
        What was taken for what, and why.
    warnings
        Sentences for the user.
    noise
        Samples measured without signal `(coil, sample)`, complex64, or None.
    navigators
        Readouts along the middle of k-space of each slice `(slice, readout, coil, kx)`, complex64, or None: alternately
        forward and reversed, the first forward, all laid out forward.
    reversed_lines
        Which lines were read out backwards `(ky,)`; they are laid out forward in `kspace`. None where none were.
    interference
        What coils that see no signal, only outside interference, measured `(slice, detector, ky, kx)`, complex64.
    guessed
        Which of the values of `recipe.Known` the files do not say and were guessed: "angles", "layout", "state", ...
    sources
        The parts of the files that may have a role, for a choice of others.
    recipe
        How it was read, cut and is to be prepared; complete once the scan is open.
    full_shape
        As `shape`, of all that the files hold; empty until the scan is open.
    """

    path: Path
    format: str
    kspace: Samples
    geometry: MriGeometry
    state: DataState = DataState.KSPACE
    matched: tuple[Match, ...] = ()
    warnings: tuple[str, ...] = ()
    noise: Samples | None = None
    navigators: Samples | None = None
    reversed_lines: NDArray[np.bool_] | None = None
    interference: Samples | None = None
    guessed: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    full_shape: tuple[int, ...] = ()

    @property
    def slices(self) -> int:
        """Number of slices that can be reconstructed."""
        return int(self.kspace.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the measured data `(slice, coil, ky, kx)` or `(slice, coil, readout, sample)`."""
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
