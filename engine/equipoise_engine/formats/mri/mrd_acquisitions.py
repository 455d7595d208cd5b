"""The readouts of ISMRMRD files: a list of headers, trajectories and samples in HDF5.

Source: Inati et al. 2017, ISMRM Raw data format, doi:10.1002/mrm.26089; flags and headers at
https://ismrmrd.readthedocs.io.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory, find, try_find
from equipoise_engine.formats.heap import Table

MAX_GROUPS = 200
NOISE, CALIBRATION, BOTH, REVERSE, NAVIGATION, PHASE_CORRECTION = (1 << at for at in (18, 19, 20, 21, 22, 23))
DUMMY, INTERFERENCE = 1 << 26, 1 << 56
"""Bits of the flags; interference is what this program marks with the first of the user's, on lines of no image."""
# Readouts that are none of the image, by their bits.
_OTHERS = {
    NAVIGATION: "navigator",
    1 << 25: "navigator",
    1 << 27: "navigator",
    DUMMY: "dummy",
    1 << 28: "surface coil correction",
    1 << 29: "phase stabilisation",
    1 << 30: "phase stabilisation",
}
_COMPRESSED = 0b1111 << 52
COUNTERS = ("contrast", "phase", "repetition", "set")
"""What a scan is repeated over; the first of each is read unless told otherwise."""
_NEEDED = (
    "flags",
    "number_of_samples",
    "active_channels",
    "center_sample",
    "discard_pre",
    "discard_post",
    "encoding_space_ref",
    "trajectory_dimensions",
    "sample_time_us",
    "position",
)
_INDEX = ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", *COUNTERS)
DAMAGE = (KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError, struct.error)
"""Whatever the libraries say of damage that was not met with at a known place."""


def scan_groups(file: h5py.File, path: Path) -> list[h5py.Group]:
    """Return the groups at the top of a file with a header called `xml`, or readouts; one called `dataset` first."""
    names = sorted(list(file)[:MAX_GROUPS], key=lambda name: name != "dataset")
    groups = [group for name in names if isinstance(group := try_find(file, name, path), h5py.Group)]
    return [group for group in groups if _is_scan(group, path)]


def _is_scan(group: h5py.Group, path: Path) -> bool:
    if isinstance(try_find(group, "xml", path), h5py.Dataset):
        return True
    data = try_find(group, "data", path)
    try:
        return isinstance(data, h5py.Dataset) and {"head", "traj", "data"} <= set(data.dtype.names or ())
    except TypeError:  # a type that numpy has not
        return False


class Acquisitions:
    """The readouts of a file: their headers, and their samples when they are asked for.

    Parameters
    ----------
    dataset
        `(readout,)` of head, traj and data.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        self._path = path
        self._table = Table(dataset, path)
        self.heads: NDArray[Any] = self._table.plain("head")

    def samples(self, at: int) -> NDArray[np.complex64]:
        """Return the samples of a readout `(coil, sample)`."""
        head = self.heads[at]
        coils, count = int(head["active_channels"]), int(head["number_of_samples"])
        values = self._values("data", at, 2 * coils * count)
        return values.view(np.complex64).reshape(coils, count)

    def trajectory(self, at: int) -> NDArray[np.float32]:
        """Return the positions of a readout `(sample, dimension)`."""
        head = self.heads[at]
        dimensions, count = int(head["trajectory_dimensions"]), int(head["number_of_samples"])
        return self._values("traj", at, dimensions * count).reshape(count, dimensions)

    def _values(self, member: str, at: int, size: int) -> NDArray[np.float32]:
        values = self._table.reals(member, at)
        if values.shape != (size,):
            raise BadInput(
                f"{self._path.name}: readout {at} has {values.size} values where its header says {size}",
                "The file is damaged; copy or export it again.",
            )
        return values


def acquisitions_of(group: h5py.Group, path: Path) -> Acquisitions:
    """Return the readouts in a group.

    Raises
    ------
    BadInput
        There are none, or they are no readouts.
    Unsupported
        There are images in their place.
    """
    data = find(group, "data", path)
    if data is None:
        images = [name for name in group if isinstance(try_find(group, f"{name}/header", path), h5py.Dataset)]
        if images:
            raise Unsupported(
                f"{path.name}: an ISMRMRD file of images ({', '.join(images[:4])}), without raw data",
                "Open the raw data that they were made from.",
            )
        raise BadInput(f"{path.name}: an ISMRMRD file without readouts: {group.name}/data is missing")
    names = data.dtype.names or () if isinstance(data, h5py.Dataset) else ()
    if not isinstance(data, h5py.Dataset) or data.ndim != 1 or not {"head", "data"} <= set(names):
        raise BadInput(f"{path.name}: {group.name}/data is no list of readouts")
    inner = data.dtype["head"].names or ()
    counters = (data.dtype["head"]["idx"].names or ()) if "idx" in inner else ()
    missing = [name for name in _NEEDED if name not in inner] + [name for name in _INDEX if name not in counters]
    if missing or "traj" not in names:
        raise BadInput(f"{path.name}: the headers of {group.name}/data lack {', '.join(missing) or 'a trajectory'}")
    if data.size == 0:
        raise BadInput(f"{path.name}: {group.name}/data holds no readouts")
    check_memory(3 * data.size * data.dtype.itemsize, f"the headers of {data.size} readouts in {path.name}")
    return Acquisitions(data, path)


@dataclass(frozen=True)
class Sorted:
    """Indices of the readouts of a file by what they are for, in the order in which they were measured."""

    imaging: NDArray[np.int64]
    calibration: NDArray[np.int64]
    navigators: NDArray[np.int64]
    noise: NDArray[np.int64]
    interference: NDArray[np.int64]
    others: Counter[str]


def sorted_out(heads: NDArray[Any], path: Path) -> Sorted:
    """Return the readouts by their flags. Raises Unsupported where their samples are compressed."""
    flags = heads["flags"].astype(np.uint64)

    def flagged(bits: int) -> NDArray[np.bool_]:
        return np.asarray((flags & np.uint64(bits)) != 0)

    if flagged(_COMPRESSED).any():
        raise Unsupported(f"{path.name}: the samples are compressed", "Write the file again without compression.")
    noise = flagged(NOISE)
    interference = flagged(INTERFERENCE) & flagged(DUMMY) & ~noise
    left = ~noise & ~interference
    others: Counter[str] = Counter()
    for bits, name in _OTHERS.items():
        found = left & flagged(bits)
        others[name] += int(found.sum())
        left &= ~found
    reference = flagged(CALIBRATION) & ~flagged(BOTH)
    # Those of calibration lines have their own phases.
    theirs = left & flagged(PHASE_CORRECTION) & reference
    others["calibration"] += int(theirs.sum())
    left &= ~theirs
    correction = left & flagged(PHASE_CORRECTION)
    left &= ~correction
    calibration = left & reference
    imaging = left & ~calibration
    kinds = (imaging, calibration, correction, noise, interference)
    indices = [np.asarray(np.flatnonzero(kind), dtype=np.int64) for kind in kinds]
    return Sorted(indices[0], indices[1], indices[2], indices[3], indices[4], others)
