"""Reader for pairs of files of BART, the Berkeley Advanced Reconstruction Toolbox: Cartesian k-space.

Source: M. Uecker et al. 2015, Berkeley Advanced Reconstruction Toolbox, Proc. ISMRM 23, 2486; the pair is a text header
(.hdr) with up to 16 dimensions and complex single precision values (.cfl), the first dimension running fastest.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.kspace import (
    Slices,
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.geometry import Cartesian
from equipoise_engine.preprocess.kspace import to_image

START = b"# Dimensions"
MAX_HEADER_BYTES = 1 << 16
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


def read_bart(path: Path) -> MriAcquisition:
    """Return the scan in a pair of files of which either is named; values are read when needed.

    Raises
    ------
    BadInput
        One of the pair is missing, they do not fit together, or the values are no k-space.
    Unsupported
        The scan has dimensions other than readout, phase encoding, coil and slice.
    OutOfMemory
        A three-dimensional scan does not fit into the memory.
    """
    data, header = _pair(path)
    size = _dimensions(header)
    _check_size(data, header, size)
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
            "Open a file with Cartesian k-space.",
        )
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
