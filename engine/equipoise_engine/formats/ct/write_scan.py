"""Writers for CT scans as they were measured: NXtomo and Data Exchange HDF5.

Values keep their type, and each file says what they mean: an attribute `data_state` of the projections is "counts",
"transmission" or "attenuation", which neither format has a word for; `description` says the same for people.

Sources: NeXus application definition NXtomo, https://manual.nexusformat.org/classes/applications/NXtomo.html; Data
Exchange, doi:10.1107/S160057751401604X.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.atomic import new_file, reserve, sync
from equipoise_engine.formats.ct.dataexchange import MONITOR, PIXEL
from equipoise_engine.formats.ct.hdf5_ct import STATE_ATTRIBUTE
from equipoise_engine.formats.ct.nxtomo import DARK, FLAT, PROJECTION
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.geometry import ConeBeam, FanBeam, ParallelBeam
from equipoise_engine.progress import Progress, Watch

BLOCK = 1 << 24
"""Bytes that are written in one go."""
_DESCRIBED = {
    DataState.COUNTS: "counts of the detector",
    DataState.TRANSMISSION: "transmission: the share of the open beam that arrives",
    DataState.ATTENUATION: "attenuation: line integrals, after the logarithm",
}


@dataclass(frozen=True)
class _Run:
    """Frames that go into a file one after the other, from an offset on."""

    name: str
    first: int
    frames: Samples
    offset: int
    dtype: np.dtype[Any]


def write_nxtomo(scan: CtAcquisition, path: Path, watch: Watch) -> Path:
    """Write a scan as one NXtomo file, read it back and compare; return its path.

    Darks, flats and projections follow each other in one dataset of a type that holds the values of all. Where a beam
    fans out, the distances of source and detector are written as the ESRF does.

    Raises
    ------
    BadInput
        The target cannot be written, or the file read back differs.
    Unsupported
        The detector is curved, tilted or not level with the source, for which the format has no place.
    """
    _check_beam(scan)
    parts = [(scan.darks, DARK), (scan.flats, FLAT), (scan.projections, PROJECTION)]
    stacked = [(frames, key) for frames, key in parts if frames is not None]
    dtype = np.result_type(*(frames.dtype for frames, _ in stacked)).newbyteorder("<")
    shape = (sum(int(frames.shape[0]) for frames, _ in stacked), *scan.shape[1:])

    def describe(file: h5py.File) -> list[_Run]:
        dataset = _describe_nxtomo(file, scan, [(int(f.shape[0]), key) for f, key in stacked], shape, dtype)
        runs, first = [], 0
        for frames, _ in stacked:
            runs.append(_Run(str(dataset.name), first, frames, int(dataset.id.get_offset()), dtype))
            first += int(frames.shape[0])
        return runs

    return _written(scan, path, watch, describe, int(np.prod(shape, dtype=np.float64)) * dtype.itemsize)


def write_dataexchange(scan: CtAcquisition, path: Path, watch: Watch) -> Path:
    """Write a scan of a parallel beam as one Data Exchange file, read it back and compare; return its path.

    Raises
    ------
    BadInput
        The target cannot be written, or the file read back differs.
    Unsupported
        The beam diverges, for which the format has no place.
    """
    if not isinstance(scan.geometry, ParallelBeam):
        raise Unsupported(
            f"{scan.path.name}: Data Exchange has no place for the distances of a diverging beam", "Write NXtomo."
        )
    parts = [("data", scan.projections), ("data_white", scan.flats), ("data_dark", scan.darks)]
    stacked = [(name, frames) for name, frames in parts if frames is not None]

    def describe(file: h5py.File) -> list[_Run]:
        _describe_dataexchange(file, scan)
        runs = []
        for name, frames in stacked:
            dtype = np.dtype(frames.dtype).newbyteorder("<")
            dataset = _reserved(file["exchange"], name, tuple(int(n) for n in frames.shape), dtype)
            _say_state(dataset, scan.state if name == "data" else DataState.COUNTS)
            if name == "data":
                dataset.attrs["axes"] = "theta:y:x"
            runs.append(_Run(str(dataset.name), 0, frames, int(dataset.id.get_offset()), dtype))
        return runs

    size = sum(int(np.prod(f.shape, dtype=np.float64)) * np.dtype(f.dtype).itemsize for _, f in stacked)
    return _written(scan, path, watch, describe, size)


# --- values -----------------------------------------------------------------------------------------


def _written(
    scan: CtAcquisition, path: Path, watch: Watch, describe: Callable[[h5py.File], list[_Run]], values: int
) -> Path:
    """Write what `describe` makes of a new file and then the values, and compare."""
    path = Path(path)
    size = values + (1 << 18) + 64 * scan.shape[0]
    with new_file(path, size) as temporary:
        reserve(temporary, size)
        with h5py.File(temporary, "w", locking=False) as file:
            runs = describe(file)
        total = 2 * sum(int(run.frames.shape[0]) for run in runs)
        done = 0
        # The values are written past the HDF5 library, which does not recover from a drive that fills up.
        with temporary.open("r+b") as stream:
            for run in runs:
                frame = int(np.prod(run.frames.shape[1:], dtype=np.float64)) * run.dtype.itemsize
                stream.seek(run.offset + run.first * frame)
                for _, block in _blocks(run):
                    stream.write(np.ascontiguousarray(block).tobytes())
                    done += block.shape[0]
                    watch(Progress("write", done, total))
        sync(temporary)
        with h5py.File(temporary, "r", locking=False) as file:
            for run in runs:
                stored = file[run.name]
                for start, block in _blocks(run):
                    first, last = run.first + start, run.first + start + block.shape[0]
                    if not _equal(stored[first:last], block):
                        raise BadInput(
                            f"{path}: frames {first} to {last - 1} of {run.name} read back differently",
                            "The drive is faulty; try another.",
                        )
                    done += block.shape[0]
                    watch(Progress("write", done, total))
    return path


def _blocks(run: _Run) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the index of the first frame and the values of blocks of frames."""
    count = int(run.frames.shape[0])
    frame = int(np.prod(run.frames.shape[1:], dtype=np.float64)) * run.dtype.itemsize
    check_memory(2 * frame, f"one frame of {run.name}")
    several = max(BLOCK // frame, 1)
    for start in range(0, count, several):
        yield start, np.asarray(run.frames[start : min(start + several, count)]).astype(run.dtype, copy=False)


def _equal(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _reserved(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """Return a new dataset whose place in the file is fixed, but whose values are not written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, properties))


def _say_state(dataset: h5py.Dataset, state: DataState) -> None:
    dataset.attrs[STATE_ATTRIBUTE] = state.value
    dataset.attrs["description"] = _DESCRIBED[state]
    if state is DataState.COUNTS:
        dataset.attrs["units"] = "counts"


# --- what stands around them --------------------------------------------------------------------------


def _check_beam(scan: CtAcquisition) -> None:
    beam, rows = scan.geometry, scan.shape[1]
    said = ""
    if isinstance(beam, FanBeam) and beam.detector == "curved":
        said = "curved"
    elif isinstance(beam, (FanBeam, ConeBeam)) and beam.yaw_rad != 0:
        said = "turned"
    elif isinstance(beam, ConeBeam) and (beam.roll_rad != 0 or beam.pitch_rad != 0):
        said = "tilted"
    elif isinstance(beam, ConeBeam) and abs(beam.middle_px - (rows - 1) / 2) > 1e-6:
        said = f"level with the source at row {beam.middle_px:g}, not at its middle"
    if said:
        raise Unsupported(f"{scan.path.name}: its detector is {said}, for which NXtomo has no place")


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _put(group: h5py.Group, name: str, value: Any, units: str) -> None:
    group[name] = value
    group[name].attrs["units"] = units


def _describe_nxtomo(
    file: h5py.File,
    scan: CtAcquisition,
    runs: list[tuple[int, int]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> h5py.Dataset:
    """Write everything but the values of the frames; return their dataset."""
    file.attrs["default"] = "entry"
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    entry["definition"] = "NXtomo"
    entry["title"] = "converted scan"
    detector = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
    dataset = _reserved(detector, "data", shape, dtype)
    _say_state(dataset, scan.state)
    dataset.attrs["interpretation"] = "image"
    keys = np.concatenate([np.full(count, key, dtype=np.int32) for count, key in runs])
    detector["image_key"] = keys
    sample = _group(entry, "sample", "NXsample")
    sample["name"] = "anonymous"
    angles = np.rad2deg(scan.geometry.angle_rad)
    # Darks and flats come first, before the object turns.
    _put(sample, "rotation_angle", np.where(keys == PROJECTION, 0.0, angles[0]), "degree")
    sample["rotation_angle"][np.flatnonzero(keys == PROJECTION)[0] :] = angles
    if scan.geometry.calibrated:
        _lengths(entry, scan)
    if scan.monitor is not None:
        beam = np.ones(keys.size)
        beam[keys == PROJECTION] = scan.monitor
        control = _group(entry, "control", "NXmonitor")
        control["data"] = beam
        control["mode"] = "monitor"
    plot = _group(entry, "data", "NXdata")
    plot.attrs["signal"] = "data"
    plot.attrs["axes"] = ["rotation_angle", ".", "."]
    plot["data"] = h5py.SoftLink("/entry/instrument/detector/data")
    plot["image_key"] = h5py.SoftLink("/entry/instrument/detector/image_key")
    plot["rotation_angle"] = h5py.SoftLink("/entry/sample/rotation_angle")
    return dataset


def _lengths(entry: h5py.Group, scan: CtAcquisition) -> None:
    beam, detector, sample = scan.geometry, entry["instrument/detector"], entry["sample"]
    row_mm = beam.row_mm if isinstance(beam, ConeBeam) else beam.pixel_mm
    _put(detector, "x_pixel_size", beam.pixel_mm, "mm")
    _put(detector, "y_pixel_size", row_mm, "mm")
    if isinstance(beam, ParallelBeam):
        return
    _put(sample, "x_pixel_size", beam.pixel_mm / beam.magnification, "mm")
    _put(sample, "y_pixel_size", row_mm / beam.magnification, "mm")
    _put(detector, "distance", beam.source_detector_mm - beam.source_axis_mm, "mm")
    source = _group(entry["instrument"], "source", "NXsource")
    # The origin is the sample, and the source lies against the beam.
    _put(source, "distance", -beam.source_axis_mm, "mm")


def _describe_dataexchange(file: h5py.File, scan: CtAcquisition) -> None:
    """Write everything but the frames."""
    file["implements"] = "exchange:measurement"
    exchange = file.create_group("exchange")
    exchange["title"] = "converted scan"
    _put(exchange, "theta", np.rad2deg(scan.geometry.angle_rad), "deg")
    if scan.geometry.calibrated:
        _put(file, PIXEL, scan.geometry.pixel_mm, "mm")
        _put(file, PIXEL.removesuffix("x") + "y", scan.geometry.pixel_mm, "mm")
    if scan.monitor is not None:
        file[MONITOR] = np.asarray(scan.monitor, dtype=np.float64)
        file[MONITOR].attrs["description"] = "intensity of the beam in each view, relative to the open-beam frames"
