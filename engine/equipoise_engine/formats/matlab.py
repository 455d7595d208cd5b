"""Reader for MATLAB files: fan-beam scans of the Helsinki laboratory, and k-space by the names of the variables.

Fan-beam scans are structures as the Helsinki Tomography Challenge and the HelTomo toolbox write them: attenuation
already, the rotation axis in the middle, angles of the ASTRA toolbox, whose convention is that of `FanBeam`.

Sources: A. Meaney et al. 2022, Helsinki Tomography Challenge 2022 open tomographic dataset,
doi:10.5281/zenodo.6984868; M. Lustig and J. M. Pauly 2010, SPIRiT, doi:10.1002/mrm.22428, whose examples name the
variables of k-space.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from equipoise_engine.acquisition import Acquisition, CtAcquisition, DataState, Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import repeated_views, to_radians
from equipoise_engine.formats.hdf5 import attribute, check_memory, open_file
from equipoise_engine.formats.kspace import (
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.geometry import Cartesian, FanBeam, NonCartesian

SCAN_NAMES = ("CtDataLimited", "CtDataFull", "CtData")
KSPACE_NAMES = frozenset({"data", "kspace", "k_space", "kdata", "ksp", "rawdata", "raw"})
TRAJECTORY_NAMES = frozenset({"k", "traj", "trajectory", "ktraj", "kloc"})
DENSITY_NAMES = frozenset({"w", "dcf", "density", "weights"})
MAX_COILS = 128
MATRICES = (32, 64, 128, 256, 512, 1024)
"""Sizes of an image that are tried for readouts that curve."""
FILLED = 0.7
"""Share of the cells of k-space that samples must lie in, for a matrix to be covered by them."""
_START_5, _START_7 = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"
_MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
# Whatever the libraries say of damage that was not met with at a known place.
_DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MatReadError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

Value = Any  # NDArray, str or dict[str, Value]: what a variable of MATLAB holds


@dataclass(frozen=True)
class _Variable:
    """Name, shape in the order of MATLAB, and class of a variable."""

    name: str
    shape: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.kind}"


def is_matlab(path: Path) -> bool:
    """Whether a file begins as MATLAB 5 to 7.3 files do."""
    with path.open("rb") as stream:
        start = stream.read(128)
    if start.startswith((_START_5, _START_7)):
        return True
    # Other programs write another text before the version.
    return start.startswith(b"MATLAB") and start[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


def read_matlab(path: Path, centre_px: float | None = None, *, matrix: tuple[int, int] | None = None) -> Acquisition:
    """Return the scan in a MATLAB file: a fan-beam structure, Cartesian k-space, or k-space along a trajectory.

    Parameters
    ----------
    centre_px
        Detector column of the rotation axis; the middle of the detector where it is None.
    matrix
        Rows and columns of the image of k-space along a trajectory; estimated where it is None.

    Raises
    ------
    BadInput
        The file is damaged, its variables are not known, or their shapes do not fit together.
    Unsupported
        The scan was measured with another beam than a fan.
    OutOfMemory
        A variable is larger than the free memory.
    """
    try:
        variables = _variables(path)
        names = {variable.name for variable in variables}
        scan = next((name for name in SCAN_NAMES if name in names), None) or _only_structure(path, variables)
        if scan is not None:
            return _read_fan(path, scan, _load(path, [scan])[scan], centre_px)
        return _read_kspace(path, variables, matrix)
    except _DAMAGE as error:
        raise BadInput(f"{path.name}: the MATLAB file is damaged ({error})", "Copy or download it again.") from error


# --- variables --------------------------------------------------------------------------------------


def _variables(path: Path) -> list[_Variable]:
    if not _is_hdf5_kind(path):
        _check_complete(path)
        return [
            _Variable(str(name), tuple(int(n) for n in shape), str(kind))
            for name, shape, kind in scipy.io.whosmat(str(path), appendmat=False)
        ]
    with open_file(path) as file:
        found = []
        for name in file:
            item = file[name]
            if not name.startswith("#"):
                shape = tuple(reversed(item.shape)) if isinstance(item, h5py.Dataset) else (1, 1)
                found.append(_Variable(name, shape, attribute(item, "MATLAB_class") or "unknown"))
        return found


def _check_complete(path: Path) -> None:
    """Check that the variables of a MATLAB 5 file end where the file does: the library would not miss the last."""
    size = path.stat().st_size
    at = 128
    with path.open("rb") as stream:
        stream.seek(at - 2)
        order = "<" if stream.read(2) == b"IM" else ">"
        while at < size:
            stream.seek(at + 4)
            length = stream.read(4)
            at += 8 + (struct.unpack(f"{order}I", length)[0] if len(length) == 4 else 0)
    if at != size:
        raise BadInput(
            f"{path.name}: the MATLAB file is cut short: {size} bytes on disk, its variables end at {at}",
            "Copy or download it again.",
        )


def _is_hdf5_kind(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_START_7)) == _START_7


def _load(path: Path, names: Iterable[str]) -> dict[str, Value]:
    """Return the values of variables, their axes in the order of MATLAB."""
    wanted = list(names)
    if not _is_hdf5_kind(path):
        loaded = scipy.io.loadmat(str(path), appendmat=False, variable_names=wanted)
        return {name: _plain(loaded[name]) for name in wanted}
    with open_file(path) as file:
        return {name: _from_hdf5(file[name], path) for name in wanted}


def _plain(value: Any) -> Value:
    """Return a value of a MATLAB 5 file with structures as dictionaries and texts as str."""
    if isinstance(value, np.ndarray) and value.dtype.names is not None:
        if value.size != 1:
            raise ValueError(f"an array of {value.size} structures")
        record = value.reshape(-1)[0]
        return {name: _plain(record[name]) for name in value.dtype.names}
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return str(value.reshape(-1)[0]) if value.size else ""
    return value


def _from_hdf5(item: h5py.Dataset | h5py.Group, path: Path) -> Value:
    """Return a value of a MATLAB 7.3 file, whose arrays lie with their axes reversed."""
    if isinstance(item, h5py.Group):
        return {name: _from_hdf5(item[name], path) for name in item}
    kind = attribute(item, "MATLAB_class")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else np.zeros((0, 0))
    check_memory(2 * item.size * item.dtype.itemsize, f"{item.name} of {path.name}")
    values = np.asarray(item[()])
    if kind == "char":
        return "".join(chr(int(code)) for code in values.T.reshape(-1))
    if values.dtype.names == ("real", "imag"):
        values = values["real"] + 1j * values["imag"]
    return values.T


def _only_structure(path: Path, variables: list[_Variable]) -> str | None:
    """Return the only structure of a file where it has the parts of a scan."""
    structures = [v.name for v in variables if v.kind == "struct" and v.shape == (1, 1)]
    if len(structures) != 1:
        return None
    value = _load(path, structures)[structures[0]]
    return structures[0] if isinstance(value, dict) and {"sinogram", "parameters"} <= value.keys() else None


def _unknown(path: Path, variables: list[_Variable]) -> BadInput:
    said = ", ".join(str(variable) for variable in variables[:8]) + (", ..." if len(variables) > 8 else "")
    return BadInput(
        f"{path.name}: the variables of this MATLAB file are not known: it holds {said or 'none'}",
        f"A structure {', '.join(SCAN_NAMES)} (fan-beam CT), or complex k-space DATA (ky, kx, coil), with k (sample,"
        " readout) where it lies along a trajectory, is read.",
    )


# --- computed tomography ----------------------------------------------------------------------------


def _read_fan(path: Path, name: str, scan: Value, centre_px: float | None) -> CtAcquisition:
    if not isinstance(scan, dict):
        raise BadInput(f"{path.name}: {name} is no structure", "Export the scan again.")
    parameters = scan.get("parameters")
    if not isinstance(parameters, dict):
        raise BadInput(f"{path.name}: {name}.parameters is missing", "Export the scan again.")
    kind = str(scan.get("type", "2d"))
    beam = str(parameters.get("geometryType", "cone"))
    if kind.lower() != "2d" or beam.lower() not in ("cone", "fan"):
        raise Unsupported(
            f"{path.name}: {name} is of type {kind!r} and geometry {beam!r}; two-dimensional scans with a fan beam are"
            " read",
        )
    part = next((part for part in ("sinogram", "sinogramTotal") if part in scan), None)
    if part is None:
        raise BadInput(f"{path.name}: {name}.sinogram is missing (there are {', '.join(scan)})")
    sinogram = _reals(scan[part], path, f"{name}.{part}")
    if sinogram.ndim != 2 or min(sinogram.shape) < 2:
        raise BadInput(f"{path.name}: {name}.{part} has shape {sinogram.shape}; (view, column) is needed")
    angles = _reals(parameters.get("angles"), path, f"{name}.parameters.angles").reshape(-1)
    reason = "(view, column): as many rows as angles"
    if sinogram.shape[0] != angles.size and sinogram.shape[1] == angles.size:
        sinogram, reason = sinogram.T, "(column, view) in the file: as many columns as angles"
    angle_rad, _, warnings = to_radians(angles, "degrees", where=f"{path.name}: {name}.parameters.angles")
    if np.ptp(angle_rad) > 1.5 * np.pi:
        warnings += repeated_views(angle_rad)  # half a turn later, a fan does not see the same rays
    unit = str(parameters.get("distanceUnit", "mm"))
    if unit.lower() not in _MILLIMETRES:
        raise BadInput(f"{path.name}: distances in {unit!r}; {', '.join(_MILLIMETRES)} are read")
    factor = _MILLIMETRES[unit.lower()]

    def length(key: str) -> float:
        return factor * _number(parameters, key, path, name)

    columns = sinogram.shape[1]
    pixel_name, pixel_mm = _pixel(parameters, columns, path, name)
    source_axis_mm, source_detector_mm = length("distanceSourceOrigin"), length("distanceSourceDetector")
    geometry = FanBeam(
        angle_rad=angle_rad,
        source_axis_mm=source_axis_mm,
        source_detector_mm=source_detector_mm,
        pixel_mm=factor * pixel_mm,
        centre_px=(columns - 1) / 2 if centre_px is None else centre_px,
    )
    distances = f"source to axis {source_axis_mm:g} mm, source to detector {source_detector_mm:g} mm"
    centre = "the middle of the detector, where files of this kind are corrected to have it"
    matched = (
        Match("projections", f"{name}.{part}", tuple(int(n) for n in scan[part].shape), reason),
        Match("angles", f"{name}.parameters.angles", (angles.size,), "degrees, as files of this kind have them"),
        Match("distances", f"{name}.parameters.distanceSource...", (), distances),
        Match("pixel size", f"{name}.parameters.{pixel_name}", (), f"{factor * pixel_mm:g} mm at the detector"),
        Match("rotation centre", "the detector", (), centre if centre_px is None else "as given"),
    )
    return CtAcquisition(
        path=path,
        format="MATLAB fan-beam structure",
        state=DataState.ATTENUATION,
        projections=np.ascontiguousarray(sinogram[:, None, :], dtype=np.float32),
        geometry=geometry,
        matched=matched,
        warnings=warnings,
    )


def _pixel(parameters: Mapping[str, Value], columns: int, path: Path, name: str) -> tuple[str, float]:
    """Return the name and the size of a detector element as the sinogram has it, after binning."""
    if "pixelSizePost" in parameters:
        return "pixelSizePost", _number(parameters, "pixelSizePost", path, name)
    size = _number(parameters, "pixelSize", path, name)
    if "detectorCols" in parameters:
        binned = _number(parameters, "detectorCols", path, name) / columns
        return "pixelSize", size * max(round(binned), 1)
    return "pixelSize", size


def _number(parameters: Mapping[str, Value], key: str, path: Path, name: str) -> float:
    value = _reals(parameters.get(key), path, f"{name}.parameters.{key}")
    if value.size != 1 or not np.isfinite(value).all() or value.item() <= 0:
        raise BadInput(
            f"{path.name}: {name}.parameters.{key} is {value.reshape(-1)[:3]}; one number above zero is needed"
        )
    return float(value.item())


def _reals(value: Value, path: Path, what: str) -> NDArray[np.float64]:
    if value is None:
        raise BadInput(f"{path.name}: {what} is missing", "Export the scan again.")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb" or value.size == 0:
        said = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise BadInput(f"{path.name}: {what} holds {said}; real numbers are needed")
    return np.asarray(value, dtype=np.float64)


# --- magnetic resonance imaging ---------------------------------------------------------------------


def _read_kspace(path: Path, variables: list[_Variable], matrix: tuple[int, int] | None) -> MriAcquisition:
    def named(names: frozenset[str]) -> _Variable | None:
        fitting = [v for v in variables if v.name.lower() in names and len(v.shape) in (2, 3)]
        return fitting[0] if len(fitting) == 1 else None

    data, trajectory, density = named(KSPACE_NAMES), named(TRAJECTORY_NAMES), named(DENSITY_NAMES)
    if data is None or data.kind == "struct":
        raise _unknown(path, variables)
    check_memory(int(np.prod(data.shape, dtype=np.float64)) * 32, f"{data.name} of {path.name}")
    along = trajectory is not None and max(trajectory.shape) > 1
    if trajectory is not None and along and trajectory.shape != data.shape[:2]:
        raise BadInput(
            f"{path.name}: the trajectory {trajectory} does not fit {data}; the first two axes must be the same",
            "Order the axes of both as (sample, readout).",
        )
    wanted = [data, *([trajectory] if along else []), *([density] if along and density is not None else [])]
    values = _load(path, [variable.name for variable in wanted if variable is not None])
    kspace = values[data.name]
    if not isinstance(kspace, np.ndarray) or kspace.dtype.kind != "c" or min(kspace.shape) < 1:
        raise BadInput(
            f"{path.name}: {data} is not complex; k-space is",
            "Export complex k-space, not magnitudes.",
        )
    coils = kspace.shape[2] if kspace.ndim == 3 else 1
    if coils > MAX_COILS or (kspace.ndim == 3 and coils >= min(kspace.shape[:2])):
        raise BadInput(
            f"{path.name}: {data.name} has shape {kspace.shape}; the last axis, the coils, must be the shortest and at"
            f" most {MAX_COILS}",
            "Order the axes as (ky, kx, coil).",
        )
    planes = np.ascontiguousarray(kspace.reshape(*kspace.shape[:2], coils).transpose(2, 0, 1), dtype=np.complex64)
    check_finite(planes, path, f"{data.name} (coil, {'sample, readout' if along else 'ky, kx'})")
    if along:
        assert trajectory is not None
        weights = values.get(density.name) if density is not None else None
        return _along(path, planes, data, (trajectory, values[trajectory.name]), (density, weights), matrix)
    stack = planes[None]
    sampled = measured_positions(stack, path)
    rows, columns = sampled.shape
    order = "(ky, kx, coil)" if kspace.ndim == 3 else "(ky, kx), one coil"
    return MriAcquisition(
        path=path,
        format="MATLAB k-space",
        kspace=stack,
        geometry=Cartesian(
            sampled=sampled, field_of_view_mm=(float(rows), float(columns)), phase_axis=line_axis(sampled, 0)
        ),
        matched=(Match("k-space", data.name, data.shape, f"complex, taken as {order}"),),
        warnings=(*sampling_warnings(sampled, coils), *centre_warnings(planes)),
    )


def _along(
    path: Path,
    planes: NDArray[np.complex64],
    data: _Variable,
    trajectory: tuple[_Variable, Value],
    density: tuple[_Variable | None, Value],
    matrix: tuple[int, int] | None,
) -> MriAcquisition:
    """Return k-space `(coil, sample, readout)` that lies along a trajectory."""
    variable, positions = trajectory
    if not isinstance(positions, np.ndarray) or positions.dtype.kind != "c" or not np.isfinite(positions).all():
        raise BadInput(
            f"{path.name}: {variable} must hold finite complex positions, ky + i kx, in cycles per pixel",
            "Export the trajectory again.",
        )
    reach = float(max(np.abs(positions.real).max(), np.abs(positions.imag).max()))
    if not 0.05 < reach < 0.51:
        raise BadInput(
            f"{path.name}: {variable} reaches {reach:.4g}; positions in cycles per pixel reach up to 0.5",
            "Divide the positions by twice the largest one.",
        )
    # The real part runs down the rows, the first axis in MATLAB; so read, letters on a phantom are not mirrored.
    points = np.stack([positions.real.T, positions.imag.T], axis=-1).astype(np.float64)
    note: list[str] = []
    if matrix is None:
        size, why = _matrix(points)
        chosen = (size, size)
        note = [f"The file gives no size of the image; {size} x {size} was taken, as {why}."]
    else:
        chosen = matrix
    matched = [
        Match("k-space", data.name, data.shape, "complex, (sample, readout, coil), as long as the trajectory"),
        Match("trajectory", variable.name, variable.shape, f"ky + i kx in cycles per pixel, up to {reach:.3g}"),
    ]
    weights, compensation = density[1], None
    if isinstance(weights, np.ndarray) and weights.dtype.kind in "iuf" and weights.shape == positions.shape:
        if not np.isfinite(weights).all() or weights.min() < 0:
            raise BadInput(f"{path.name}: {density[0]} must hold finite weights, none below zero")
        compensation = np.ascontiguousarray(weights.T, dtype=np.float64)
        matched.append(Match("density compensation", str(density[0]).split()[0], weights.shape, "as the trajectory"))
    coils = planes.shape[0]
    return MriAcquisition(
        path=path,
        format="MATLAB k-space along a trajectory",
        kspace=np.ascontiguousarray(planes.transpose(0, 2, 1))[None],
        geometry=NonCartesian(
            trajectory=points * np.asarray(chosen, dtype=np.float64),
            matrix=chosen,
            field_of_view_mm=(float(chosen[0]), float(chosen[1])),
            density=compensation,
        ),
        matched=tuple(matched),
        warnings=(*note, *sampling_warnings(np.ones((1, 1), dtype=np.bool_), coils)),
    )


def _matrix(points: NDArray[np.float64]) -> tuple[int, str]:
    """Return the size of an image that a trajectory `(readout, sample, 2)` in cycles per pixel covers, and why."""
    steps = np.diff(points, axis=1)
    lengths = np.linalg.norm(steps, axis=-1)
    whole = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1)
    if np.median(lengths) > 0 and np.allclose(whole, lengths.sum(axis=1), rtol=1e-3):
        size = int(np.clip(2 * round(0.5 / float(np.median(lengths))), MATRICES[0], 4 * MATRICES[-1]))
        return size, "the straight readouts are sampled finely enough for it"
    fitting = [n for n in MATRICES if _filled(points, n) >= FILLED]
    size = max(fitting, default=MATRICES[0])
    return size, f"{100 * _filled(points, size):.0f} % of so many cells of k-space hold a sample"


def _filled(points: NDArray[np.float64], size: int) -> float:
    """Return the share of the cells of a round k-space of so many rows and columns that hold a sample."""
    cells = np.clip(np.floor((points.reshape(-1, 2) + 0.5) * size).astype(np.int64), 0, size - 1)
    held = np.zeros((size, size), dtype=bool)
    held[cells[:, 0], cells[:, 1]] = True
    middle = (np.arange(size) + 0.5) / size - 0.5
    inside = middle[:, None] ** 2 + middle[None, :] ** 2 < (0.5 - 1.0 / size) ** 2
    return float(held[inside].mean())
