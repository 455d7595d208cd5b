"""Reader for pairs of files of BART, the Berkeley Advanced Reconstruction Toolbox: k-space, with its trajectory.

Source: M. Uecker et al. 2015, Berkeley Advanced Reconstruction Toolbox, Proc. ISMRM 23, 2486; the pair is a text header
(.hdr) with up to 16 dimensions and complex single precision values (.cfl), the first dimension running fastest.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mri.kspace import (
    Slices,
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.preprocess.kspace import to_image
from equipoise_engine.recipe import Known, Source

START = b"# Dimensions"
MAX_HEADER_BYTES = 1 << 16
MAX_PAIRS = 200
LARGEST_MATRIX = 16384
READOUT, FIRST_PHASE, SECOND_PHASE, COIL, SLICE = 0, 1, 2, 3, 13
_DIMENSIONS = (
    "readout",
    "first phase encoding",
    "second phase encoding",
    "coil",
    "coil map",
    "echo",
    "coefficient",
    "second coefficient",
    "iteration",
    "shift",
    "time",
    "second time",
    "level",
    "slice",
    "average",
    "batch",
)
_VALUE_BYTES = 8


def is_bart(path: Path) -> bool:
    """Whether a file is a header of BART, or is named as the values beside one (values alone carry no mark)."""
    if path.suffix.lower() == ".cfl":
        return True
    with path.open("rb") as stream:
        return stream.read(len(START)) == START


def is_bart_folder(path: Path) -> bool:
    """Whether a folder holds one pair of files with k-space, beside others with its trajectory or its noise."""
    return len(_headers(path)) > 1 and _only_kspace(path) is not None


def read_bart(path: Path, known: Known) -> MriAcquisition:
    """Return the scan in a pair of files of which either, or the folder, is named; values are read when needed.

    k-space [1, sample, readout, coil] lies along a trajectory [3, sample, readout] where a pair beside it holds one.

    Raises
    ------
    BadInput
        One of the pair is missing, they do not fit together, or the values are no k-space.
    Unsupported
        The scan has dimensions other than readout, phase encoding, coil and slice, or its trajectory has three.
    OutOfMemory
        A three-dimensional scan does not fit into the memory.
    """
    told = told_roles(known, path, ("kspace", "trajectory", "noise"))
    if path.is_dir():
        path = _only_kspace(path) or path
    if told.get("kspace"):
        path = _told(path.parent, told["kspace"])
    data, header, size = _stored(path)
    for axis, count in enumerate(size):
        if count > 1 and axis not in (READOUT, FIRST_PHASE, SECOND_PHASE, COIL, SLICE):
            raise Unsupported(
                f"{data.name}: dimension {axis} ({_DIMENSIONS[axis]}) has the size {count}; readout, phase encoding,"
                " coil and slice are read",
                "Take one of them out with bart slice, or combine them.",
            )
    values = np.memmap(data, dtype="<c8", mode="r", shape=size, order="F")
    if size[READOUT] == 3 and size[COIL] == 1 and not np.any(values.imag):
        raise BadInput(
            f"{data.name}: three real values for each of {size[FIRST_PHASE]} x {size[SECOND_PHASE]} positions are a"
            " trajectory, not k-space",
            "Open the file with the k-space.",
        )
    scan = _along(data, values, known, told.get("trajectory")) or _cartesian(data, values, size)
    noise = None if not told.get("noise") else _noise(data, told["noise"], size[COIL])
    if noise is not None:
        scan = replace(scan, noise=noise, matched=(*scan.matched, Match("noise", told["noise"], noise.shape, "given")))
    return replace(scan, sources=_sources(header))


def _cartesian(data: Path, values: NDArray[np.complex64], size: tuple[int, ...]) -> MriAcquisition:
    matched = Match("k-space", data.name, _without_ones(size), _reading(size))
    plane_axes = [axis for axis in (READOUT, FIRST_PHASE, SECOND_PHASE) if size[axis] > 1]
    if len(plane_axes) == 3:
        return _read_volume(data, values, matched)
    if len(plane_axes) < 2:
        raise BadInput(
            f"{data.name}: the sizes {size[:3]} of readout and phase encodings span no plane of k-space",
            "Open a file with two-dimensional or three-dimensional k-space.",
        )
    # The readout runs along kx where there is one; with two phase encodings, the first is ky.
    across, down = (READOUT, plane_axes[1]) if plane_axes[0] == READOUT else (SECOND_PHASE, FIRST_PHASE)
    planes: NDArray[np.complex64] = np.moveaxis(values, (SLICE, COIL, down, across), (0, 1, 2, 3))
    planes = planes.reshape(planes.shape[:4])

    def load(index: int) -> NDArray[np.complex64]:
        return np.ascontiguousarray(planes[index], dtype=np.complex64)

    kspace = Slices(load, (size[SLICE], size[COIL], size[down], size[across]))
    check_memory(4 * _VALUE_BYTES * size[COIL] * size[down] * size[across], f"one slice of {data.name}")
    sampled = measured_positions(kspace, data)
    return _scan(data, kspace, sampled, matched)


# --- along a trajectory -----------------------------------------------------------------------------


def _along(data: Path, values: NDArray[np.complex64], known: Known, told: str | None) -> MriAcquisition | None:
    """Return a scan along the trajectory that is told or lies beside it; None where there is none."""
    size = values.shape
    if told == "" or size[READOUT] != 1:
        if told:
            raise BadInput(f"{data.name}: k-space along a trajectory is [1, sample, readout, coil], not {size[:4]}")
        return None
    fitting = [_told(data.parent, told)] if told else _beside(data, (3, *size[1:3]))
    if len(fitting) != 1:
        return None
    file, _, shape = _stored(fitting[0])
    if shape[:3] != (3, *size[1:3]) or max(shape[3:]) > 1:
        raise BadInput(
            f"{file.name}: dimensions {_without_ones(shape)} are no trajectory of {data.name}, which has"
            f" {_without_ones(size)}: [3, {size[1]}, {size[2]}] is needed"
        )
    check_memory(6 * _VALUE_BYTES * size[1] * size[2] * size[COIL], f"one slice of {data.name}")
    stored = np.memmap(file, dtype="<c8", mode="r", shape=shape[:3], order="F")
    positions = np.asarray(stored.real, dtype=np.float64)
    if not np.isfinite(positions).all():
        raise BadInput(f"{file.name}: the trajectory holds positions that are not finite", "Copy both files again.")
    reach = float(np.abs(positions[:2]).max())
    if np.abs(positions[2]).max() > 1e-3 * max(reach, 1e-12):
        raise Unsupported(f"{file.name}: a three-dimensional trajectory; those in the plane kz = 0 are read")
    if reach > LARGEST_MATRIX / 2:
        raise BadInput(f"{file.name}: positions reach {reach:.4g} cycles per field of view; at most 8192 are read")
    matrix = known.matrix or (max(2 * round(reach), 2),) * 2
    # The first coordinate belongs to the first dimension of an image, which is x here.
    points = np.ascontiguousarray(positions[1::-1].transpose(2, 1, 0))

    def load(index: int) -> NDArray[np.complex64]:
        plane = values[(0, slice(None), slice(None), slice(None), *(0,) * 9, index)]
        laid = np.ascontiguousarray(plane.reshape(size[1], size[2], size[COIL]).transpose(2, 1, 0))
        check_finite(laid, data, f"slice {index} (coil, readout, sample)")
        return laid

    kspace = Slices(load, (size[SLICE], size[COIL], size[2], size[1]))
    load(0)
    reason = f"beside it; cycles per field of view, up to {reach:.4g}" if not told else "given"
    return MriAcquisition(
        path=data,
        format="BART",
        kspace=kspace,
        geometry=NonCartesian(trajectory=points, matrix=matrix, field_of_view_mm=(float(matrix[0]), float(matrix[1]))),
        matched=(
            Match("k-space", data.name, _without_ones(size), "[1, sample, readout, coil], as the trajectory"),
            Match("trajectory", file.name, _without_ones(shape), reason),
        ),
        warnings=tuple(sampling_warnings(np.ones((1, 1), dtype=np.bool_), size[COIL])),
    )


def _noise(data: Path, source: str, coils: int) -> NDArray[np.complex64]:
    """Return the noise `(coil, sample)` in a pair of files beside the scan."""
    file, _, size = _stored(_told(data.parent, source))
    if size[COIL] != coils:
        raise BadInput(f"{file.name}: noise of {size[COIL]} coils, the k-space has {coils}")
    check_memory(2 * file.stat().st_size, f"the noise in {file.name}")
    values = np.moveaxis(np.memmap(file, dtype="<c8", mode="r", shape=size, order="F"), COIL, 0)
    noise = np.ascontiguousarray(values).reshape(coils, -1)
    check_finite(noise, file, "noise (coil, sample)")
    return np.asarray(noise, dtype=np.complex64)


def _told(folder: Path, source: str) -> Path:
    """Return the file of a source that is told, which must lie in the folder of the scan."""
    path = folder / source
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{source}: lies outside the folder of the scan", "Copy it beside the scan.")
    return path


def _stored(path: Path) -> tuple[Path, Path, tuple[int, ...]]:
    """Return the files of values and of dimensions, and the 16 sizes, which fit the values."""
    data, header = _pair(path if path.suffix.lower() in (".cfl", ".hdr") else path.with_name(f"{path.name}.cfl"))
    size = _dimensions(header)
    _check_size(data, header, size)
    return data, header, size


def _headers(folder: Path) -> list[tuple[Path, tuple[int, ...]]]:
    """Return the pairs of files in a folder that can be read, by their headers, with their sizes."""
    found = []
    try:
        headers = sorted(folder.glob("*.hdr"))[:MAX_PAIRS]
    except OSError:
        return []
    for header in headers:
        if header.with_suffix(".cfl").is_file():
            try:
                found.append((header, _dimensions(header)))
            except (BadInput, OSError):
                continue
    return found


def _only_kspace(folder: Path) -> Path | None:
    """Return the only pair of a folder that is neither a trajectory nor named as noise."""
    found = [h for h, size in _headers(folder) if size[READOUT] != 3 and "noise" not in h.stem.lower()]
    return found[0] if len(found) == 1 else None


def _beside(data: Path, shape: tuple[int, ...]) -> list[Path]:
    """Return the pairs in the folder of a scan that have the shape of its trajectory."""
    return [header for header, size in _headers(data.parent) if size[:3] == shape and max(size[3:]) == 1]


def _sources(header: Path) -> tuple[Source, ...]:
    return tuple(Source(h.stem + ".cfl", _without_ones(size), "complex64") for h, size in _headers(header.parent))


class _Transformed:
    """A three-dimensional scan taken to slices along its readout, when the first of them is asked for.

    Parameters
    ----------
    values
        `(readout, first phase, second phase, coil)`, complex64.
    """

    def __init__(self, values: NDArray[np.complex64]) -> None:
        self._values = values

    def load(self, index: int) -> NDArray[np.complex64]:
        """Return a slice `(coil, ky, kx)`."""
        return np.ascontiguousarray(np.moveaxis(self._slices[index], -1, 0))

    @cached_property
    def _slices(self) -> NDArray[np.complex64]:
        slices = np.empty(self._values.shape, dtype=np.complex64, order="F")
        for coil in range(self._values.shape[-1]):  # coil by coil, as they lie in the file
            slices[..., coil] = to_image(self._values[..., coil], (0,))
        return slices


def _read_volume(data: Path, values: NDArray[np.complex64], matched: Match) -> MriAcquisition:
    """Return a scan with one readout and two phase encodings as slices along the readout."""
    size = values.shape
    if size[SLICE] > 1:
        raise Unsupported(
            f"{data.name}: {size[SLICE]} slabs of three-dimensional k-space; one is read",
            "Take one of them out with bart slice.",
        )
    volume = values[(slice(None),) * 4 + (0,) * 12]
    check_memory(3 * volume.size * _VALUE_BYTES, f"the three-dimensional scan of {data.name}")
    measured = np.zeros(volume.shape[:3], dtype=bool)
    for coil in range(volume.shape[3]):
        check_finite(volume[..., coil], data, f"coil {coil}")
        measured |= volume[..., coil] != 0
    sampled = np.ascontiguousarray(measured.any(axis=0))
    if not sampled.any():
        raise BadInput(f"{data.name}: no k-space position was measured: all values are zero")
    # Whole positions may be empty, and single values zero by chance.
    full = float(measured.sum(axis=0)[sampled].mean()) / volume.shape[0]
    if full < 0.99:
        raise Unsupported(
            f"{data.name}: {100 * full:.1f} % of the positions along the readouts were measured; slices along a"
            " readout need all of them",
            "Transform the readout before, with a method for partial echoes.",
        )
    readout, down, across, coils = volume.shape
    kspace = Slices(_Transformed(volume).load, (readout, coils, down, across))
    return _scan(data, kspace, sampled, matched, looked_at=False)


def _scan(
    data: Path, kspace: Slices, sampled: NDArray[np.bool_], matched: Match, *, looked_at: bool = True
) -> MriAcquisition:
    _, coils, rows, columns = kspace.shape
    warnings = sampling_warnings(sampled, coils)
    if looked_at:
        warnings += centre_warnings(kspace[kspace.shape[0] // 2])
    return MriAcquisition(
        path=data,
        format="BART",
        kspace=kspace,
        geometry=Cartesian(
            sampled=sampled, field_of_view_mm=(float(rows), float(columns)), phase_axis=line_axis(sampled, 0)
        ),
        matched=(matched,),
        warnings=tuple(warnings),
    )


def _reading(size: tuple[int, ...]) -> str:
    """Say how the dimensions were understood."""
    slices = f"; {size[SLICE]} slices" if size[SLICE] > 1 else ""
    coils = f"{size[COIL]} coil{'s' if size[COIL] > 1 else ''}"
    if size[READOUT] == 1:
        return f"one readout position, so both phase encodings make the plane (ky, kx); {coils}{slices}"
    if size[FIRST_PHASE] > 1 and size[SECOND_PHASE] > 1:
        return f"transformed along the readout, which gives {size[READOUT]} slices of (ky, kx); {coils}"
    return f"phase encoding is ky and the readout kx; {coils}{slices}"


def _without_ones(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes without the ones at their end."""
    last = max((axis for axis, count in enumerate(size) if count > 1), default=0)
    return size[: last + 1]


def _pair(path: Path) -> tuple[Path, Path]:
    """Return the files of values and of dimensions."""
    data = path if path.suffix.lower() == ".cfl" else path.with_suffix(".cfl")
    header = path.with_suffix(".hdr") if data == path else path
    for file, what in ((data, "the values"), (header, "the dimensions")):
        if not file.is_file():
            raise BadInput(
                f"{path.name}: {what} of a BART file are kept in {file.name}, which is missing",
                f"Copy {file.name} beside {path.name} and open it again.",
            )
    return data, header


def _dimensions(header: Path) -> tuple[int, ...]:
    """Return 16 sizes."""
    with header.open("rb") as stream:
        lines = stream.read(MAX_HEADER_BYTES).decode("ascii", "replace").splitlines()
    at = next((n for n, line in enumerate(lines) if line.startswith(START.decode())), None)
    words = lines[at + 1].split() if at is not None and at + 1 < len(lines) else []
    most = len(_DIMENSIONS)
    if not words or len(words) > most or not all(word.isdecimal() and len(word) < 10 and int(word) for word in words):
        said = " ".join(words)[:80]
        raise BadInput(
            f"{header.name}: the dimensions read {said!r}; one to {most} whole numbers above zero are needed",
            "Copy both files of the pair again.",
        )
    return tuple(int(word) for word in words) + (1,) * (most - len(words))


def _check_size(data: Path, header: Path, size: tuple[int, ...]) -> None:
    needed = _VALUE_BYTES
    for count in size:
        needed *= count
    there = data.stat().st_size
    if there != needed:
        raise BadInput(
            f"{data.name}: {there} bytes on disk, but the dimensions {_without_ones(size)} in {header.name} ask for"
            f" {needed}",
            "The file is cut short, or the files do not belong together; copy both again.",
        )
