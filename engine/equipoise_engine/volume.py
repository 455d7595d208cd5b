"""What was made from a measurement: volumes, iterates, and the store that holds them in the engine."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Acquisition
from equipoise_engine.errors import BadInput


@dataclass(frozen=True)
class Volume:
    """A reconstructed volume.

    Parameters
    ----------
    data
        `(slice, y, x)`, float32. CT: linear attenuation per millimetre (per pixel where the scan is not calibrated).
        MRI: magnitude in arbitrary units.
    voxel_mm
        Voxel size `(slice, y, x)`.
    modality
        "ct" or "mri".
    calibrated
        Whether `voxel_mm` is known; otherwise it counts pixels.
    provenance
        How it was made: scan, hash, method, parameters, outcome, versions. JSON values only.
    first_slice
        Index in the scan of `data[0]`.
    """

    data: NDArray[np.float32]
    voxel_mm: tuple[float, float, float]
    modality: str
    calibrated: bool
    provenance: dict[str, Any] = field(default_factory=dict)
    first_slice: int = 0


MAX_ITERATE_BYTES = 1 << 29
"""Of the iterates of one run, unless that were fewer than eight."""


@dataclass
class Iterates:
    """The images that a solver passed through on one slice, oldest first.

    At most `limit` are kept, of large images fewer; when full, every second one is dropped and only every second later
    one is kept, so the whole run stays covered.
    """

    slice_index: int
    limit: int = 64
    stride: int = 1
    steps: list[int] = field(default_factory=list)
    images: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, step: int, image: NDArray[np.float32]) -> None:
        """Keep the image `(y, x)` of a solver step."""
        if step % self.stride:
            return
        if len(self.steps) >= max(8, min(self.limit, MAX_ITERATE_BYTES // max(1, image.nbytes))):
            self.stride *= 2
            kept = [i for i, s in enumerate(self.steps) if s % self.stride == 0]
            self.steps, self.images = [self.steps[i] for i in kept], [self.images[i] for i in kept]
            if step % self.stride:
                return
        self.steps.append(step)
        self.images.append(image)

    def at(self, step: int) -> tuple[int, NDArray[np.float32]]:
        """Return the kept step nearest to `step`, and its image `(y, x)`."""
        if not self.steps:
            raise BadInput("this run has kept no iterates yet")
        nearest = min(range(len(self.steps)), key=lambda i: abs(self.steps[i] - step))
        return self.steps[nearest], self.images[nearest]


class Store:
    """The scans, volumes and iterates that the engine holds, by id. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scans: dict[str, Acquisition] = {}
        self._volumes: dict[str, Volume] = {}
        self._iterates: dict[str, Iterates] = {}
        self._count = 0

    def new_id(self, prefix: str) -> str:
        """Return an id that was not used before."""
        with self._lock:
            self._count += 1
            return f"{prefix}-{self._count}"

    def put_scan(self, key: str, scan: Acquisition) -> None:
        """Keep a scan under `key`."""
        with self._lock:
            self._scans[key] = scan

    def scan(self, key: str) -> Acquisition:
        """Return the scan `key`. Raises BadInput where there is none."""
        with self._lock:
            if key not in self._scans:
                raise BadInput(f"the engine holds no scan {key}", "Open the scan again.")
            return self._scans[key]

    def put_volume(self, key: str, volume: Volume) -> None:
        """Keep a volume under `key`."""
        with self._lock:
            self._volumes[key] = volume

    def volume(self, key: str) -> Volume:
        """Return the volume `key`. Raises BadInput where there is none."""
        with self._lock:
            if key not in self._volumes:
                raise BadInput(f"the engine holds no result {key}", "Run the reconstruction again.")
            return self._volumes[key]

    def put_iterates(self, key: str, iterates: Iterates) -> None:
        """Start to keep the iterates of the run `key`."""
        with self._lock:
            self._iterates[key] = iterates

    def add_iterate(self, key: str, step: int, image: NDArray[np.float32]) -> None:
        """Keep one more iterate `(y, x)` of the run `key`."""
        with self._lock:
            # it may have been dropped while it runs
            if (kept := self._iterates.get(key)) is not None:
                kept.add(step, image)

    def iterate(self, key: str, step: int) -> tuple[int, NDArray[np.float32]]:
        """Return the kept iterate of run `key` nearest to `step`. Raises BadInput where there is none."""
        with self._lock:
            if key not in self._iterates:
                raise BadInput(f"the engine holds no iterates of {key}")
            return self._iterates[key].at(step)

    def iterate_slice(self, key: str) -> int | None:
        """Index of the slice whose iterates are kept for run `key`, or None."""
        with self._lock:
            kept = self._iterates.get(key)
            return None if kept is None else kept.slice_index

    def forget(self, key: str) -> None:
        """Drop whatever is kept under `key`."""
        with self._lock:
            for table in (self._scans, self._volumes, self._iterates):
                table.pop(key, None)
