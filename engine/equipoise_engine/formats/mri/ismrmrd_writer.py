"""Writer of MRI scans as ISMRMRD files, which other programs for reconstruction read.

Source: Inati et al. 2017, ISMRM Raw data format, doi:10.1002/mrm.26089; https://ismrmrd.readthedocs.io.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.atomic import new_file
from equipoise_engine.formats.hdf5 import open_file
from equipoise_engine.formats.mri.ismrmrd_file import read_ismrmrd
from equipoise_engine.formats.mri.mrd_acquisitions import DUMMY, INTERFERENCE, NOISE, PHASE_CORRECTION, REVERSE
from equipoise_engine.formats.mri.mrd_header import FIELD_KNOWN, READOUT_AXIS, WEIGHTS_KNOWN
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.recipe import Known

LARGEST = 65535
"""Most lines, samples and slices that the headers of readouts count."""
MOST_COILS = 1024
NOISE_SAMPLES = 4096
"""Longest readout of noise that is written."""
_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
# Flags of the first and the last readout of an image for which programs wait: of its lines, its slice, all slices.
_FIRST_OF_SLICE, _LAST_OF_SLICE = 1 << 0 | 1 << 6, 1 << 1 | 1 << 7
_FIRST_OF_ALL, _LAST_OF_ALL = 1 << 12, 1 << 13 | 1 << 24
_COUNTERS = np.dtype(
    [
        ("kspace_encode_step_1", "<u2"),
        ("kspace_encode_step_2", "<u2"),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("segment", "<u2"),
        ("user", "<u2", (8,)),
    ]
)
_HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", _COUNTERS),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
_REALS = h5py.special_dtype(vlen=np.dtype("<f4"))
_READOUT = np.dtype([("head", _HEAD), ("traj", _REALS), ("data", _REALS)])


def write_ismrmrd(scan: MriAcquisition, path: Path, watch: Watch) -> Path:
    """Write a scan as an ISMRMRD file, read it back and compare; return its path.

    Every measured line becomes a readout, of a `NonCartesian` scan with its positions in cycles per pixel, and the
    weights of its samples in place of a third coordinate, as Gadgetron has them. Noise lines,
    navigators and readouts of the other direction are flagged; reference coils for interference are on lines flagged as
    dummies. The header holds geometry only, nothing of a person.

    Raises
    ------
    BadInput
        The target cannot be written, the scan is too large for the format, or the file read back differs.
    """
    path = Path(path)
    slices, coils, lines, samples = scan.shape
    if max(slices, lines, samples) > LARGEST or coils > MOST_COILS:
        raise BadInput(
            f"{path.name}: {slices} slices of {lines} x {samples} samples and {coils} coils; ISMRMRD takes at most"
            f" {LARGEST} of each and {MOST_COILS} coils"
        )
    needed = 8 * int(np.prod(scan.shape, dtype=np.float64)) + 512 * slices * lines + (1 << 20)
    with new_file(path, needed) as temporary:
        with h5py.File(temporary, "w", locking=False) as file:
            group = file.create_group("dataset")
            group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = _header(scan)
            data = group.create_dataset("data", (0,), _READOUT, maxshape=(None,), chunks=(64,))
            for readouts in _before(scan):
                _append(data, readouts)
            for index in range(slices):
                for readouts in _slice(scan, index):
                    _append(data, readouts)
                watch(Progress("write", index + 1, slices))
        _compare(scan, temporary, path)
    return path


def _append(data: h5py.Dataset, readouts: NDArray[Any]) -> None:
    first = data.shape[0]
    data.resize((first + readouts.size,))
    readouts["head"]["scan_counter"] = first + np.arange(readouts.size)
    data[first:] = readouts


def _readouts(samples: NDArray[np.complex64], flags: int = 0) -> NDArray[Any]:
    """Return readouts `(readout,)` of samples `(readout, coil, sample)`, with what all headers have."""
    count, coils, length = samples.shape
    readouts = np.zeros(count, dtype=_READOUT)
    head = readouts["head"]
    head["version"] = 1
    head["flags"] = flags
    head["number_of_samples"] = length
    head["active_channels"] = head["available_channels"] = coils
    head["channel_mask"] = [
        sum(1 << bit for bit in range(64) if 64 * word + bit < coils) for word in range(MOST_COILS // 64)
    ]
    head["center_sample"] = length // 2
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    for at in range(count):
        readouts["data"][at] = np.ascontiguousarray(samples[at], dtype="<c8").view("<f4").reshape(-1)
        readouts["traj"][at] = np.zeros(0, dtype="<f4")
    return readouts


def _before(scan: MriAcquisition) -> Iterator[NDArray[Any]]:
    """Yield the readouts that stand before those of the image."""
    if scan.noise is not None:
        noise = np.asarray(scan.noise[...])
        for first in range(0, noise.shape[1], NOISE_SAMPLES):
            yield _readouts(noise[None, :, first : first + NOISE_SAMPLES], NOISE)
    if scan.navigators is not None:
        for index in range(scan.slices):
            forward = np.asarray(scan.navigators[index])
            backwards = np.arange(forward.shape[0]) % 2 == 1
            readouts = _readouts(np.where(backwards[:, None, None], forward[..., ::-1], forward), PHASE_CORRECTION)
            readouts["head"]["flags"][backwards] |= REVERSE
            _place(scan, readouts, index)
            readouts["head"]["idx"]["kspace_encode_step_1"] = scan.shape[2] // 2
            yield readouts


def _place(scan: MriAcquisition, readouts: NDArray[Any], index: int) -> None:
    readouts["head"]["idx"]["slice"] = index
    readouts["head"]["position"][:, 2] = (index - (scan.slices - 1) / 2) * scan.geometry.slice_mm


def _slice(scan: MriAcquisition, index: int) -> Iterator[NDArray[Any]]:
    """Yield the readouts of a slice; those of its image come last."""
    values = np.asarray(scan.kspace[index])
    match scan.geometry:
        case Cartesian() as geometry:
            if scan.interference is not None:
                other = np.asarray(scan.interference[index])
                seen = _lines(other, geometry, scan.reversed_lines, DUMMY | INTERFERENCE)
                _place(scan, seen, index)
                yield seen
            readouts = _lines(values, geometry, scan.reversed_lines, 0)
        case NonCartesian() as geometry:
            readouts = _along(values, geometry)
    _place(scan, readouts, index)
    flags = readouts["head"]["flags"]
    flags[0] |= _FIRST_OF_SLICE | (_FIRST_OF_ALL if index == 0 else 0)
    flags[-1] |= _LAST_OF_SLICE | (_LAST_OF_ALL if index == scan.slices - 1 else 0)
    yield readouts


def _along(values: NDArray[np.complex64], geometry: NonCartesian) -> NDArray[Any]:
    """Return the readouts of a slice `(coil, readout, sample)` with their positions, and weights where it has any."""
    readouts = _readouts(np.ascontiguousarray(values.transpose(1, 0, 2)))
    points = (geometry.trajectory / np.array(geometry.matrix))[..., ::-1]
    if geometry.density is not None:
        points = np.concatenate([points, geometry.density[..., None]], axis=-1)
    readouts["head"]["trajectory_dimensions"] = points.shape[-1]
    readouts["head"]["idx"]["kspace_encode_step_1"] = np.arange(readouts.size)
    for at in range(readouts.size):
        readouts["traj"][at] = points[at].astype("<f4").reshape(-1)
    return readouts


def _lines(
    values: NDArray[np.complex64], geometry: Cartesian, backwards: NDArray[np.bool_] | None, flags: int
) -> NDArray[Any]:
    """Return the readouts of the lines that were measured of a slice `(coil, ky, kx)`."""
    sampled = geometry.sampled
    if geometry.phase_axis == 1:
        values, sampled = np.swapaxes(values, -1, -2), sampled.T
    taken = np.flatnonzero(sampled.any(axis=1))
    columns = np.flatnonzero(sampled.any(axis=0))
    lines = np.ascontiguousarray((values * sampled)[:, taken].transpose(1, 0, 2))
    turned = np.zeros(taken.size, dtype=bool)
    if backwards is not None and geometry.phase_axis == 0:
        turned = backwards[taken]
        lines[turned] = lines[turned, :, ::-1]
    readouts = _readouts(lines, flags)
    head = readouts["head"]
    head["flags"][turned] |= REVERSE
    head["idx"]["kspace_encode_step_1"] = taken
    before, after = columns[0], sampled.shape[1] - 1 - columns[-1]
    head["discard_pre"], head["discard_post"] = np.where(turned, after, before), np.where(turned, before, after)
    return readouts


def _header(scan: MriAcquisition) -> bytes:
    """Return the header as XML."""
    geometry = scan.geometry
    slices, coils, lines, _ = scan.shape
    rows, columns = geometry.sampled.shape if isinstance(geometry, Cartesian) else geometry.matrix
    height, width = geometry.field_of_view_mm
    readout_axis = 1
    if isinstance(geometry, Cartesian) and geometry.phase_axis == 1:
        (rows, columns), (height, width), readout_axis = (columns, rows), (width, height), 0
    if isinstance(geometry, Cartesian):
        trajectory, lines = "cartesian" if scan.reversed_lines is None else "epi", rows
    else:
        trajectory = "other"
    ElementTree.register_namespace("", _NAMESPACE)
    root = ElementTree.Element(f"{{{_NAMESPACE}}}ismrmrdHeader")

    def put(parent: ElementTree.Element, name: str, value: object = None) -> ElementTree.Element:
        part = ElementTree.SubElement(parent, f"{{{_NAMESPACE}}}{name}")
        part.text = None if value is None else str(value)
        return part

    put(put(root, "acquisitionSystemInformation"), "receiverChannels", coils)
    # The schema wants a frequency, which no scan tells here.
    put(put(root, "experimentalConditions"), "H1resonanceFrequency_Hz", 0)
    encoding = put(root, "encoding")
    for name in ("encodedSpace", "reconSpace"):
        space = put(encoding, name)
        for part, numbers in (
            ("matrixSize", (columns, rows, 1)),
            ("fieldOfView_mm", (width, height, geometry.slice_mm)),
        ):
            sizes = put(space, part)
            for axis, number in zip("xyz", numbers, strict=True):
                put(sizes, axis, number)
    limits = put(encoding, "encodingLimits")
    for name, count in (("kspace_encoding_step_1", lines), ("slice", slices)):
        limit = put(limits, name)
        for part, number in (("minimum", 0), ("maximum", count - 1), ("center", count // 2 if name != "slice" else 0)):
            put(limit, part, number)
    put(encoding, "trajectory", trajectory)
    user = put(root, "userParameters")
    weighted = isinstance(geometry, NonCartesian) and geometry.density is not None
    for name, number in (
        (READOUT_AXIS, readout_axis),
        (FIELD_KNOWN, int(geometry.calibrated)),
        *(((WEIGHTS_KNOWN, 1),) if weighted else ()),
    ):
        parameter = put(user, "userParameterLong")
        put(parameter, "name", name)
        put(parameter, "value", number)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _compare(scan: MriAcquisition, written: Path, path: Path) -> None:
    """Raise BadInput where the file read back holds other values."""
    with open_file(written) as file:
        read = read_ismrmrd(file, path, Known())
        same = read.shape == scan.shape
        for index in range(scan.slices if same else 0):
            values = np.asarray(scan.kspace[index])
            if isinstance(scan.geometry, Cartesian):
                values = values * scan.geometry.sampled
            same = same and np.array_equal(np.asarray(read.kspace[index]), values)
    if not same:
        raise BadInput(f"{path.name}: what was written reads back otherwise", "Write to another drive.")
