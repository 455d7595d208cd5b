"""Writer for results as NeXus HDF5, after the application definition NXtomoproc.

Source: https://manual.nexusformat.org/classes/applications/NXtomoproc.html.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.atomic import new_file, reserve, sync
from equipoise_engine.formats.results.result import PROGRAM, check_volume, describe_json, program_version, unit_of
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.volume import Volume


def write_hdf5(volume: Volume, path: Path, watch: Watch) -> list[Path]:
    """Write a volume with its provenance as one NeXus HDF5 file, read it back and compare; return its path.

    Raises
    ------
    BadInput
        The target cannot be written, or the file read back differs.
    """
    check_volume(volume)
    path = Path(path)
    data = np.ascontiguousarray(volume.data, dtype="<f4")
    size = data.nbytes + (1 << 16)
    with new_file(path, size) as temporary:
        reserve(temporary, size)
        with h5py.File(temporary, "w", locking=False) as file:
            offset = _describe(file, volume, data)
        # The values are written past the HDF5 library, which does not recover from a drive that fills up.
        with temporary.open("r+b") as stream:
            stream.seek(offset)
            for index in range(data.shape[0]):
                stream.write(data[index].tobytes())
                watch(Progress("write", index + 1, 2 * data.shape[0]))
        sync(temporary)
        _compare(temporary, path, data, watch)
    return [path]


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _describe(file: h5py.File, volume: Volume, data: NDArray[np.float32]) -> int:
    """Write everything but the values; return where in the file these belong."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    file.attrs["default"] = "entry"
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "data"
    if volume.modality == "ct":
        entry["definition"] = "NXtomoproc"
    entry["title"] = f"{volume.provenance.get('method', 'reconstruction')}"
    instrument = _group(entry, "instrument", "NXinstrument")
    source = _group(instrument, "SOURCE", "NXsource")
    source["probe"] = "x-ray" if volume.modality == "ct" else "nuclear magnetic resonance"
    sample = _group(entry, "sample", "NXsample")
    sample["name"] = "anonymous"
    process = _group(entry, "reconstruction", "NXprocess")
    process["program"] = PROGRAM
    process["version"] = program_version()
    process["date"] = now
    parameters = _group(process, "parameters", "NXparameters")
    parameters["raw_file"] = str(volume.provenance.get("scan", ""))
    parameters["provenance"] = describe_json(volume)
    plot = _group(entry, "data", "NXdata")
    plot.attrs["signal"] = "data"
    plot.attrs["axes"] = ["z", "y", "x"]
    unit = "mm" if volume.calibrated else "pixel"
    for axis, name in enumerate("zyx"):
        start = volume.first_slice if axis == 0 else -(data.shape[axis] - 1) / 2
        positions = (start + np.arange(data.shape[axis])) * volume.voxel_mm[axis]
        plot[name] = positions.astype(np.float64)
        plot[name].attrs["units"] = unit
        plot.attrs[f"{name}_indices"] = axis
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(data.shape)
    stored = h5py.Dataset(h5py.h5d.create(plot.id, b"data", h5py.h5t.IEEE_F32LE, space, properties))
    stored.attrs["units"] = unit_of(volume)
    return int(stored.id.get_offset())


def _compare(temporary: Path, path: Path, data: NDArray[np.float32], watch: Watch) -> None:
    slices = data.shape[0]
    with h5py.File(temporary, "r", locking=False) as file:
        stored = file["entry/data/data"]
        for index in range(slices):
            if not np.array_equal(stored[index], data[index], equal_nan=True):
                raise BadInput(f"{path}: slice {index} reads back differently", "The drive is faulty; try another.")
            watch(Progress("write", slices + index + 1, 2 * slices))
