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
from equipoise_engine.formats.atomic import new_file, sync
from equipoise_engine.formats.result import PROGRAM, check_volume, describe_json, program_version, unit_of
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
    data = np.ascontiguousarray(volume.data, dtype=np.float32)
    with new_file(path, data.nbytes + 1024 * data.shape[0] + (1 << 16)) as temporary:
        with h5py.File(temporary, "w", libver="latest", locking=False) as file:
            _fill(file, volume, data, watch)
        sync(temporary)
        _compare(temporary, path, data, watch)
    return [path]


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _fill(file: h5py.File, volume: Volume, data: NDArray[np.float32], watch: Watch) -> None:
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
    stored = plot.create_dataset(
        "data",
        data.shape,
        np.float32,
        chunks=(1, *data.shape[1:]),
        shuffle=True,
        compression="gzip",
        compression_opts=1,
    )
    stored.attrs["units"] = unit_of(volume)
    for index in range(data.shape[0]):
        stored[index] = data[index]
        watch(Progress("write", index + 1, 2 * data.shape[0]))


def _compare(temporary: Path, path: Path, data: NDArray[np.float32], watch: Watch) -> None:
    slices = data.shape[0]
    with h5py.File(temporary, "r", locking=False) as file:
        stored = file["entry/data/data"]
        for index in range(slices):
            if not np.array_equal(stored[index], data[index], equal_nan=True):
                raise BadInput(
                    f"{path}: slice {index} reads back differently", "The drive is faulty; try another."
                )
            watch(Progress("write", slices + index + 1, 2 * slices))
